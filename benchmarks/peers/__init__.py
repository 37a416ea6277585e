"""The server beside others that serve models, and beside the decoding and the model alone, in one run."""

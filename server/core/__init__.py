"""Vocabulary of the server: images, a model's contract, engines as a protocol, verdicts; numpy and Pillow only."""

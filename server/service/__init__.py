"""The core behind every front end: who may ask, how a request becomes verdicts, and what this process is to others."""

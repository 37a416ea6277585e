"""Versions of models: opened and tested, given a role, reloaded from the repository, closed."""

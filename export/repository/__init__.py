"""A model repository: where its files lie, and how a version is published as a whole."""

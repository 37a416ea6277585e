"""Fetches a version of a model from elsewhere into the repository: bounded, verified, whole or not at all."""

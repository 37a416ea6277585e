"""Measures of a trained network: detection, corruptions, the report they go into."""

"""Evaluation of trained networks: attackers, detection, corruptions, and the report."""

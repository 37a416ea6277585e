"""Evaluation of trained networks: attackers, detection, and the report."""

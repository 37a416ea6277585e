"""Measurements of speed; each writes JSON and Markdown under benchmarks/results/."""

"""Measurements: one program each, in rooms by what they measure; each writes JSON and Markdown to results/."""

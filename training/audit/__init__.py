"""The audit of a checkpoint: every threat level, its controls and a linter, as one report for people and programs."""

"""What a detector's thresholds speak for: statistics of pixels that say where an image lies, and benign corruptions."""

__version__ = "0.1.0"  # of all packages, since all of them know this one; pyproject.toml takes it from here

"""What all packages agree on: what a picture is to a network, what thresholds speak for, how files are written."""

__version__ = "0.1.0"  # of all packages, since all of them know this one; pyproject.toml takes it from here

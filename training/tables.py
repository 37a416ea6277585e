"""The old name of `training.reproduction.sweep`, for one release (`renames`)."""

import sys

from .renames import run_renamed

if __name__ == "__main__":
    sys.exit(run_renamed("training.tables", sys.argv[1:]))

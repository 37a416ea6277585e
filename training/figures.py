"""The old name of `training.reproduction.figures`, for one release (`renames`)."""

import sys

from .renames import run_renamed

if __name__ == "__main__":
    sys.exit(run_renamed("training.figures", sys.argv[1:]))

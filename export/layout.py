"""Where things lie: models, versions and files in a repository, the contract in a file. The server reads them likewise.

Standard library only: `export.triton_python` runs in the small environment of Triton itself.
"""

from __future__ import annotations

import re
from pathlib import Path

MODEL_FILE, CONFIG_FILE, MANIFEST_FILE = "model.onnx", "config.pbtxt", "manifest.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
METADATA_KEY = "awnet.contract"  # of the ONNX metadata
VERSION = re.compile(r"[1-9][0-9]{0,17}")


def numbered(home: Path) -> list[int]:
    """The folders of a model that are named as versions, finished or not, ascending; `012` is none."""
    return sorted(int(p.name) for p in home.iterdir() if VERSION.fullmatch(p.name))


def versions(home: Path) -> list[int]:
    """The finished versions in a model's folder, ascending."""
    return [version for version in numbered(home) if (home / str(version) / MODEL_FILE).is_file()]

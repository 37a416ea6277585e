"""Where things lie: models, versions and files in a repository, the contract in a file. The server reads them likewise.

Standard library only: `export.triton_python` runs in the small environment of Triton itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

MODEL_FILE, CONFIG_FILE, MANIFEST_FILE = "model.onnx", "config.pbtxt", "manifest.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
METADATA_KEY = "awnet.contract"  # of the ONNX metadata
MANIFEST_SCHEMA = 1
STAGING = ".partial-"  # prefix of a version folder under construction
VERSION = re.compile(r"[1-9][0-9]{0,17}")


def numbered(home: Path) -> list[int]:
    """The folders of a model that are named as versions, finished or not, ascending; `012` is none."""
    return sorted(int(p.name) for p in home.iterdir() if VERSION.fullmatch(p.name))


def versions(home: Path) -> list[int]:
    """The finished versions in a model's folder, ascending."""
    return [version for version in numbered(home) if (home / str(version) / MODEL_FILE).is_file()]


def manifest(model: bytes, name: str, version: int) -> bytes:
    """`manifest.json`: what the files of a version must be. A signature (export.sign) is over these bytes."""
    document = {
        "schema_version": MANIFEST_SCHEMA,
        "model": name,
        "version": version,
        "files": {MODEL_FILE: {"sha256": hashlib.sha256(model).hexdigest(), "bytes": len(model)}},
    }
    return (json.dumps(document, indent=1) + "\n").encode()


def quoted(text: str) -> str:
    """A protobuf text-format string; text may hold any character."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'

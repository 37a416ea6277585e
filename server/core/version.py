"""Names and versions of models. Versions are integers inside, text at the edges (paths, JSON, labels, settings)."""

from __future__ import annotations

import re

MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"  # also a folder
_TEXT = re.compile(r"[1-9][0-9]{0,17}")
WHAT = "a version is a number from 1 on, of at most 18 digits, without sign or leading zeros"


def parse_version(text: str) -> int | None:
    """The version that `text` names, in the one way in which it is written (see `WHAT`); None where it names none."""
    return int(text) if _TEXT.fullmatch(text) else None

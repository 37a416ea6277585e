"""The repository's files, as git knows them."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@cache
def tracked(pattern: str = "*") -> tuple[Path, ...]:
    """Files that match a pattern of git's (a star crosses folders), those not yet added too, without what it ignores.

    Outside a checkout the test that asks is skipped.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", pattern],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout, so nobody can say which files belong to the repository")
    return tuple(ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file())

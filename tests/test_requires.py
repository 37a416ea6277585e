"""A missing program skips a test and says how to install it, or fails it where it is demanded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.requires import NAMES, requires

ROOT = Path(__file__).resolve().parent.parent
TEST = """
import sys
sys.path.insert(0, {root!r})
from tests.requires import requires

@requires("haproxy")
def test_one():
    pass

@requires("triton")
def test_two():
    pass
"""


def outcome(folder: Path, **variables: str) -> str:
    """What pytest says about two tests on a machine without any of the programs."""
    file = folder / "test_sample.py"
    file.write_text(TEST.format(root=str(ROOT)))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWNET_")}
    environment |= {"PATH": str(folder), "AWNET_TRITON_VENV": str(folder), **variables}
    told = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", str(file)]
    return subprocess.run(told, cwd=folder, env=environment, capture_output=True, text=True).stdout


@pytest.mark.process
def test_a_missing_program_skips_with_the_command_that_installs_it(tmp_path: Path) -> None:
    """Whoever reads the summary knows what to do."""
    told = outcome(tmp_path)
    assert "2 skipped" in told and "apt-get install haproxy" in told and "make .venv-triton/.locked" in told


@pytest.mark.process
def test_a_demanded_program_fails_the_test(tmp_path: Path) -> None:
    """Only those that are named; the reason is the same."""
    told = outcome(tmp_path, AWNET_REQUIRE="triton,chromium")
    assert "1 skipped, 1 error" in told and "AWNET_REQUIRE demands triton" in told


@pytest.mark.process
def test_a_moto_of_other_versions_is_not_taken(tmp_path: Path) -> None:
    """What is on PATH is somebody else's: a checkout without its own environment says which command makes it."""
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests/requires.py", tmp_path / "tests")
    other = tmp_path / "moto_server"
    other.touch(0o755)
    asked = [sys.executable, "-c", "from tests.requires import missing; print(missing('moto'))"]
    environment = {**os.environ, "PATH": str(tmp_path)}
    told = subprocess.run(asked, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert told == "no .venv-moto/bin/moto_server: make .venv-moto/.locked\n"


def test_a_name_that_nobody_knows_is_an_error() -> None:
    """A typing error must not skip a test for ever."""
    with pytest.raises(ValueError, match="haproxy"):
        requires("haprox")
    assert len(set(NAMES)) == len(NAMES)

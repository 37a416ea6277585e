"""The wheel of this checkout, built once, and what it installs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.repository import ROOT, tracked

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def quiet(no_variables: None) -> None:
    """Commands read the settings."""


@pytest.fixture(scope="session")
def wheel(process: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of the files that belong to the repository, in a copy: setuptools leaves build/ and *.egg-info behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for pattern in (
        "awnet",
        "domain",
        "server",
        "export",
        "training",
        "tests",
        "model_repository",
        "examples",
        "*.toml",
    ):
        for path in tracked(pattern):
            heavy = path.suffix == ".pt" or (path.suffix == ".json" and pattern in ("tests", "training"))
            if not heavy:
                (source / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, source / path.relative_to(ROOT))
    for name in ("setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out]
    built = subprocess.run([*pip, source], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages: what the wheel holds and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def environment(installed: Path) -> dict[str, str]:
    """Of a process that finds the installed packages, and not the checkout."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("AWNET_", "PYTHON"))}
    return ours | {"PYTHONPATH": str(installed)}


@pytest.fixture
def awnet(environment: dict[str, str], tmp_path: Path) -> Run:
    """Runs the installed command in an empty folder, as the script that pip makes does: without that folder on the
    path."""

    def run(*arguments: object, folder: Path = tmp_path, **further: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "awnet", *map(str, arguments)]
        given = {"capture_output": True, "text": True, "timeout": 120, "env": environment, "cwd": folder} | further
        return subprocess.run(command, **given)  # type: ignore[call-overload,no-any-return]

    return run

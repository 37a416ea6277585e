"""The import rules of docs/architecture.md hold, and each of them bites."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the packages that lie in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [LINT_IMPORTS, "--config", "pyproject.toml", "--no-cache"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the three packages that a test may spoil."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("server", "export", "training"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "*.onnx", "*.pt")
        )
    return tmp_path


def test_the_import_rules_hold(house):
    """Nobody imports across a wall; the report says where."""
    report = lint(house)
    assert report.returncode == 0, report.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("server/verdict.py", "import training.awnet"),
        ("server/embedded.py", "import onnx"),
        ("server/app.py", "import torch"),
        ("server/images.py", "import fastapi"),
        ("server/batching.py", "import uvicorn"),
        ("server/contract.py", "import pydantic"),
        ("server/lifecycle.py", "import starlette"),
        ("server/versions.py", "import server.rollout"),
        ("server/service.py", "import tritonclient.grpc"),
        ("export/graph.py", "import server.contract"),
        ("export/graph.py", "import training.train"),
        ("training/awnet.py", "import training.static"),
        ("training/attacks.py", "import training.data"),
        ("training/train.py", "import export.graph"),
        ("training/recipe.py", "import training.run"),
    ],
)
def test_a_forbidden_import_is_caught(house, module, line):
    """Each rule of the house, broken once, breaks `make check`."""
    with (house / module).open("a", encoding="utf-8") as f:
        f.write(f"\n{line}\n")
    report = lint(house)
    assert report.returncode != 0
    assert "BROKEN" in report.stdout

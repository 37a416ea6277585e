"""The import rules of docs/architecture.md hold, and each of them bites."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

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
        ("server/core/verdict.py", "import training.awnet"),
        ("server/engines/onnxruntime.py", "import onnx"),
        ("server/http/app.py", "import torch"),
        ("server/core/images.py", "from ..engines import batching"),
        ("server/engines/batching.py", "from ..versions import models"),
        ("server/versions/models.py", "from ..monitoring import metrics"),
        ("server/monitoring/metrics.py", "from .. import service"),
        ("server/oip/protocol.py", "from ..http import app"),
        ("server/http/app.py", "from ..workers import member"),
        ("server/workers/member.py", "from .. import process"),
        ("server/errors.py", "from .core import images"),
        ("server/versions/open_versions.py", "from . import rollout"),
        ("server/core/images.py", "import fastapi"),
        ("server/engines/batching.py", "import uvicorn"),
        ("server/versions/models.py", "import starlette"),
        ("server/service.py", "import prometheus_client"),
        ("server/process.py", "import onnxruntime"),
        ("server/service.py", "import tritonclient.grpc"),
        ("server/core/contract.py", "import pydantic"),
        ("export/graph.py", "import server.core.contract"),
        ("export/source.py", "import training.train"),
        ("export/graph.py", "import training.awnet"),
        ("training/awnet.py", "from . import baselines"),
        ("training/attacks.py", "from . import data"),
        ("training/network.py", "from . import awnet"),
        ("training/train.py", "import export.graph"),
        ("training/evaluation/report.py", "from ..trainer import recipe"),
        ("training/trainer/recipe.py", "from .. import train"),
        ("training/trainer/build.py", "from . import run"),
        ("training/trainer/objectives.py", "from . import distillation"),
        ("training/evaluation/detection.py", "from . import judge"),
        ("training/trainer/recipe.py", "from . import build"),
        ("training/evaluate.py", "from .reproduction import tables"),
        ("training/reproduction/sweep.py", "from . import tables"),
    ],
)
def test_a_forbidden_import_is_caught(house, module, line):
    """Each rule of the house, broken once, breaks `make check`: first walls of folders, then of packages."""
    with (house / module).open("a", encoding="utf-8") as f:
        f.write(f"\n{line}\n")
    report = lint(house)
    assert report.returncode != 0
    assert "BROKEN" in report.stdout

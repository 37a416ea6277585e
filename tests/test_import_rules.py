"""The import rules of docs/architecture.md hold, and each of them bites."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parent.parent
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")
PACKAGES = ("awnet", "domain", "server", "export", "training", "benchmarks")

# Contract of pyproject.toml -> imports that break it: a module, and the line that it should not have.
FORBIDDEN = {
    "No circle anywhere: neither between rooms nor between the modules of one": [
        ("server/monitoring/detection.py", "from . import metrics"),
        ("server/oip/tensors.py", "from . import protocol"),
        ("server/engines/repository.py", "from . import onnxruntime"),
        ("export/graph/graph.py", "from . import contract"),
        ("training/reproduction/filters.py", "from . import figures"),
        ("benchmarks/harness/load.py", "from . import closed_loop"),
    ],
    "The command knows the programs, and none of them knows it": [
        ("server/process/parts.py", "import awnet.command.doctor"),
        ("training/core/files.py", "import awnet"),
    ],
    "The server stands alone: no training, export, torch or onnx": [
        ("server/core/verdict.py", "import training.networks.awnet"),
        ("server/engines/onnxruntime.py", "import onnx"),
        ("server/http/app.py", "import torch"),
        ("server/service/service.py", "import benchmarks.project.hops"),
        ("server/core/images.py", "import domain.corruptions"),
    ],
    "The server's rooms, from the composition root down; rooms of one line do not know each other": [
        ("server/core/images.py", "from ..engines import batching"),
        ("server/engines/batching.py", "from ..versions import models"),
        ("server/versions/models.py", "from ..monitoring import metrics"),
        ("server/access/keys.py", "from ..monitoring import metrics"),
        ("server/findings/recorder.py", "from ..monitoring import metrics"),
        ("server/findings/finding.py", "from ..guard import guard"),
        ("server/monitoring/metrics.py", "from ..service import service"),
        ("server/model_sources/pull.py", "from ..service import service"),
        ("server/access/access.py", "from ..model_sources import transfer"),
        ("server/oip/protocol.py", "from ..http import app"),
        ("server/http/app.py", "from ..workers import member"),
        ("server/workers/member.py", "from ..process import process"),
        ("server/errors.py", "from .core import images"),
        ("server/monitoring/request.py", "from ..telemetry import spans"),
        ("server/ports/tls.py", "from ..settings import settings"),
        ("server/engines/repository.py", "from ..settings import settings"),
    ],
    "A process has parts and ports, which know neither each other nor the process": [
        ("server/process/servers.py", "from . import parts"),
        ("server/process/parts.py", "from . import process"),
    ],
    "The service answers through one way; what it makes of a request knows nobody above": [
        ("server/service/answer_cache.py", "from . import outcome"),
        ("server/service/answering.py", "from . import service"),
    ],
    "Settings: as options, as one object, where they come from, what they were called": [
        ("server/settings/declared.py", "from . import settings"),
    ],
    "Requests know versions, versions know roles, roles know what is open": [
        ("server/versions/open_versions.py", "from . import rollout"),
        ("server/versions/shadow.py", "from . import open_versions"),
    ],
    "Only http knows FastAPI, only the composition root uvicorn": [
        ("server/core/images.py", "import fastapi"),
        ("server/engines/batching.py", "import uvicorn"),
        ("server/versions/models.py", "import starlette"),
        ("server/__main__.py", "import uvicorn"),
        ("server/settings/renames.py", "import fastapi"),
    ],
    "Only monitoring knows Prometheus": [("server/service/service.py", "import prometheus_client")],
    "Only telemetry knows OpenTelemetry": [("server/process/process.py", "import opentelemetry.trace")],
    "Only the engines know ONNX Runtime; only the Triton engine and the gRPC front know gRPC": [
        ("server/process/process.py", "import onnxruntime"),
        ("server/service/service.py", "import tritonclient.grpc"),
    ],
    "What thresholds speak for knows nobody of ours": [("domain/statistics.py", "import training.data")],
    "The client reaches the server in one module, and neither torch nor what trains and exports": [
        ("awnet/client/results.py", "import server.http.schemas"),
        ("awnet/client/local.py", "import torch"),
    ],
    "Only awnet.ray knows Ray": [
        ("awnet/command/predict.py", "import ray"),
        ("server/process/process.py", "from ray import serve"),
    ],
    "Training imports nothing of ours outside itself but the domain": [
        ("training/train.py", "import export.graph"),
        ("training/data/sets.py", "import benchmarks.project.hops"),
    ],
    "Training's rooms, from the reproduction down to what export may import": [
        ("training/networks/awnet.py", "from ..attacks import ascent"),
        ("training/data/images.py", "from ..networks import network"),
        ("training/core/files.py", "from ..data import images"),
        ("training/evaluation/report.py", "from ..trainer import recipe"),
        ("training/trainer/recipe.py", "from .. import train"),
        ("training/evaluate.py", "from .reproduction import tables"),
    ],
    "Networks: their interface, what has it, what is made of those": [
        ("training/networks/awnet.py", "from . import baselines"),
        ("training/networks/folded.py", "from . import checkpoint"),
        ("training/networks/network.py", "from . import awnet"),
    ],
    "Images: what a set is, the sets, their batches": [
        ("training/data/images.py", "from . import sets"),
        ("training/data/folder.py", "from . import images"),
    ],
    "An attack knows networks by their interface alone": [
        ("training/attacks/ascent.py", "from ..data import images"),
        ("training/attacks/pgd.py", "from ..networks import awnet"),
    ],
    "The reproduction in its order: networks, their figures, tables of them, claims about those": [
        ("training/reproduction/sweep.py", "from . import tables"),
    ],
    "A run knows its parts, and no part knows the run": [
        ("training/trainer/build.py", "from . import run"),
        ("training/trainer/step.py", "from . import captured"),
        ("training/trainer/objectives.py", "from . import distillation"),
        ("training/trainer/recipe.py", "from . import build"),
    ],
    "Who judges a network knows its attackers; measures know neither": [
        ("training/evaluation/detection.py", "from . import judge"),
        ("training/evaluation/points.py", "from . import frontier"),
    ],
    "Attacks have names last; no kind of attack knows another": [
        ("training/attacks/pgd.py", "from . import evasion"),
    ],
    "An audit is composed of parts; its linter, curves and plan know no network": [
        ("training/audit/linter.py", "from . import report"),
        ("training/audit/plan.py", "from . import subject"),
    ],
    "Export's rooms, from its commands down; a repository and the audit of a file know no graph": [
        ("export/repository/repository.py", "from ..graph import contract"),
        ("export/repository/publication.py", "from .. import sign"),
        ("export/audit/parts.py", "from ..graph import parity"),
    ],
    "Export never imports the server, nor what trains or judges": [
        ("export/graph/graph.py", "import server.core.contract"),
        ("export/graph/source.py", "import training.train"),
    ],
    "The audit of a model file needs the file alone: no torch, onnx, training or server": [
        ("export/audit/parts.py", "import torch"),
        ("export/audit/model_file.py", "from ..graph import contract"),
    ],
    "Export reaches training in one module": [("export/graph/graph.py", "import training.networks.awnet")],
}

# Room -> the packages of others that its modules import: all of them, and no other. Modules on top of `awnet` and
# `server` stand each for itself.
LIBRARIES = {
    "awnet.client": {"PIL", "httpx", "numpy", "pydantic", "pydantic_settings"},
    "domain": {"PIL", "numpy", "scipy"},
    "awnet.__main__": set(),
    "awnet.local": set(),
    "awnet.ray": {"pyarrow", "ray"},
    "awnet.command": {"PIL", "numpy", "onnxruntime", "orjson", "pyarrow"},
    "awnet.planning": {"simpy"},
    "server.__main__": set(),
    "server.errors": set(),
    "server.keys": set(),
    "server.ports": set(),
    "server.process": {"uvicorn"},
    "server.service": {"numpy"},
    "server.settings": {"pydantic", "pydantic_settings"},
    "server.access": {"pydantic"},
    "server.core": {"numpy"},
    "server.core.codecs": {"PIL", "numpy"},
    "server.engines": {"cryptography", "numpy", "onnxruntime"},
    "server.engines.triton": {"grpc", "numpy", "tritonclient"},
    "server.findings": {"httpx", "orjson"},
    "server.model_sources": {"httpx"},
    "server.guard": {"numpy"},
    "server.versions": {"numpy"},
    "server.monitoring": {"PIL", "numpy", "orjson", "prometheus_client"},
    "server.oip": {"google", "grpc", "numpy", "orjson", "tritonclient"},
    "server.http": {"fastapi", "httptools", "numpy", "orjson", "pydantic", "starlette"},
    "server.telemetry": {"opentelemetry", "orjson", "requests"},
    "server.workers": set(),
    "export": {"cryptography", "onnx", "torch"},
    "export.graph": {"PIL", "numpy", "onnx", "onnxruntime", "torch"},
    "export.repository": {"numpy", "onnx", "onnxruntime", "triton_python_backend_utils"},
    "export.audit": {"PIL", "numpy", "onnxruntime", "tqdm"},
    "training": {"numpy", "torch", "tqdm"},
    "training.core": {"matplotlib", "torch"},
    "training.data": {"PIL", "numpy", "torch", "torchvision"},
    "training.networks": {"torch", "torchvision"},
    "training.attacks": {"pyautoattack", "torch"},
    "training.trainer": {"torch"},
    "training.evaluation": {"numpy", "sklearn", "torch", "tqdm"},
    "training.audit": {"numpy", "onnxruntime", "sklearn", "torch", "tqdm"},
    "training.reproduction": {"scipy", "torch"},
}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the packages that a test may spoil."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    return tmp_path


def spoil(module: Path, line: str) -> None:
    """Add an import to a module."""
    with module.open("a", encoding="utf-8") as f:
        f.write(f"\n{line}\n")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the packages that lie in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "300"}
    command = [LINT_IMPORTS, "--config", "pyproject.toml", "--no-cache"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def libraries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """What each room of the packages in `folder` imports that is neither ours nor Python's."""
    monkeypatch.syspath_prepend(folder)
    for package in PACKAGES:  # one that a test has imported would be found where that came from
        monkeypatch.delitem(sys.modules, package, raising=False)
    graph = grimp.build_graph(
        "awnet", "domain", "server", "export", "training", include_external_packages=True, cache_dir=None
    )
    ours = {module for module in graph.modules if not graph.is_module_squashed(module)}
    python = {*sys.stdlib_module_names, "_typeshed"}
    found: dict[str, set[str]] = {}
    for module in ours - {"awnet", "server"}:
        parent = module.rpartition(".")[0]
        room = module if graph.find_children(module) or parent in ("awnet", "server") else parent
        found.setdefault(room, set()).update(graph.find_modules_directly_imported_by(module) - ours - python)
    return found


def test_the_import_rules_hold(house):
    """Nobody imports across a wall; the report says where."""
    report = lint(house)
    assert report.returncode == 0, report.stdout


def test_every_contract_is_broken_once():
    """A contract that no row below breaks might hold nothing."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    assert set(FORBIDDEN) == {contract["name"] for contract in contracts}


@pytest.mark.parametrize(
    ("contract", "module", "line"), [(name, *row) for name, rows in FORBIDDEN.items() for row in rows]
)
def test_a_forbidden_import_is_caught(house, contract, module, line):
    """Each contract, broken, breaks `make check` under its own name; what it leads to may break others with it."""
    spoil(house / module, line)
    report = lint(house)
    assert report.returncode != 0
    assert contract in re.findall(r"^(.+) BROKEN", report.stdout, re.MULTILINE), report.stdout


def test_each_room_imports_the_libraries_it_is_known_for(house, monkeypatch):
    """`core` is numpy and Pillow, `workers` plain Python: a package more, or a room more, is decided here."""
    assert libraries(house, monkeypatch) == LIBRARIES


def test_a_library_more_is_found_in_every_room(house, monkeypatch):
    """The table bites, wherever the import stands."""
    for room in LIBRARIES:
        folder = house / room.replace(".", "/")
        spoil(
            max(folder.glob("*.py")) if folder.is_dir() else folder.with_suffix(".py"), "def f():\n    import requests"
        )
    assert libraries(house, monkeypatch) == {room: known | {"requests"} for room, known in LIBRARIES.items()}

"""What `pip install .` brings: one name in site-packages, which works in any folder."""

from __future__ import annotations

import ast
import configparser
import re
import runpy
import shutil
import signal
import sys
import urllib.request
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.harness.processes import Process, free_port
from domain import __version__
from server.settings.settings import Settings
from tests.repository import ROOT, tracked

pytestmark = pytest.mark.real

BELOW = ("domain", "server", "export", "training")


def test_the_wheel_takes_one_name_and_holds_the_packages_and_their_data_only(wheel: Path) -> None:
    """No `server` or `training` of ours in anybody's site-packages, no tests, reports or weights; the default model in
    its latest version, the page, the recipes and the examples are there."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert {name.partition("/")[0] for name in names} == {"awnet"}
    model = Settings.model_fields["model"].default
    latest = max((ROOT / "model_repository" / model).glob("*/model.onnx"), key=lambda path: int(path.parent.name))
    sources = tuple(f"{package}/*.py" for package in ("awnet", *BELOW))
    data = (
        "awnet/planning/times.json",
        "server/http/assets/*",
        "training/recipes/*.toml",
        "training/reproduction/*.toml",
        "examples/*.png",
        "examples/twins.json",
    )
    beside = f"{latest.parent.relative_to(ROOT).as_posix()}/*"
    wanted = {path.relative_to(ROOT).as_posix() for pattern in (*sources, *data, beside) for path in tracked(pattern)}
    assert set(names) == {name if name.startswith("awnet/") else f"awnet/{name}" for name in wanted}
    assert 1 << 20 < wheel.stat().st_size < 30 << 20


def test_in_the_wheel_packages_know_each_other_under_their_new_names(installed: Path) -> None:
    """Neither an import nor a command in a text names what is not there."""
    old = []
    for path in installed.rglob("*.py"):
        text = path.read_text("utf-8")
        for node in ast.walk(ast.parse(text)):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                named = [node.module or ""]
            old += [f"{path}: {name}" for name in named if name.partition(".")[0] in BELOW]
        old += [f"{path}: {found}" for found in re.findall(rf"python -m (?:{'|'.join(BELOW)})\b.*", text)]
    assert old == []


def test_only_lines_that_name_a_package_change_on_the_way_into_the_wheel() -> None:
    """Strings, relative imports and other people's packages stay; `import domain` has no new spelling: refused."""
    rewritten = runpy.run_path(str(ROOT / "setup.py"))["installed"]
    source = '''"""from domain.x import y: `python -m export.onnx`, python -m pip."""
from domain.statistics import (
    measure,
)
from . import domain
from servers import server
def f():
    from training import data; return "training.data"
'''
    assert rewritten(source) == source.replace("from domain.statistics", "from awnet.domain.statistics").replace(
        "from training import", "from awnet.training import"
    ).replace("-m export.onnx", "-m awnet.export.onnx")
    assert rewritten(rewritten(source)) == rewritten(source)
    with pytest.raises(ValueError, match="line 2"):
        rewritten("import numpy\nimport training.data")


def test_the_version_stands_in_one_place(wheel: Path, awnet) -> None:
    """Wheel, command and server say what `domain/__init__.py` says."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        assert Parser().parsestr(archive.read(name).decode())["Version"] == __version__
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read(name.replace("METADATA", "entry_points.txt")).decode())
    assert scripts["console_scripts"]["awnet"] == "awnet.__main__:main"
    assert awnet("--version").stdout == f"awnet {__version__}\n"
    sources = [path for path in tracked("*") if path.suffix in (".py", ".toml") and "tests" not in path.parts]
    said = [path for path in sources if f'"{__version__}"' in path.read_text("utf-8")]
    assert [path.relative_to(ROOT).as_posix() for path in said] == ["domain/__init__.py"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_runs_in_any_folder_and_runs_nothing_that_lies_there(
    workers: int, environment: dict[str, str], tmp_path: Path
) -> None:
    """With the model of the wheel, workers and decoders of the wheel, whatever the folder has under their names."""
    for name in ("json", "numpy", "server", "awnet"):
        (tmp_path / f"{name}.py").write_text("import os\nopen('run', 'w').close()\nos._exit(9)\n", "utf-8")
    shutil.copy(ROOT / "examples/ship.png", tmp_path / "a.png")
    Image.effect_noise((1200, 900), 30).convert("RGB").save(tmp_path / "b.jpg", progressive=True)  # decoded by a child
    port = free_port()
    options = ("--port", str(port), "--admin-port", "none", "--drain-seconds", "0", "--workers", str(workers))
    serve = [sys.executable, "-P", "-m", "awnet", "serve", *options]
    with Process(serve, tmp_path / "log", {"PYTHONPATH": environment["PYTHONPATH"]}, tmp_path) as server:
        server.answering(f"http://127.0.0.1:{port}/v2/health/ready")
        for name in ("a.png", "b.jpg"):
            body, kind = (tmp_path / name).read_bytes(), {"Content-Type": "application/octet-stream"}
            asked = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, kind)
            with urllib.request.urlopen(asked, timeout=60) as answer:
                assert answer.status == 200
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/page/examples.json", timeout=60) as answer:
            assert b"ship-adversarial.png" in answer.read()
        assert server.stop(signal.SIGTERM) == 0
    assert not (tmp_path / "run").exists()


def test_a_repository_here_wins_over_the_bundled_one(awnet, tmp_path: Path) -> None:
    """The rule: `model_repository` in the current folder, else the one of the wheel; a named one must be there."""
    assert "model         awnet version" in awnet("doctor", "--port", 0, "--admin-port", "none").stdout
    (tmp_path / "model_repository").mkdir()
    here = awnet("doctor", "--port", 0, "--admin-port", "none")
    assert here.returncode == 1 and f"fail  repository    {tmp_path / 'model_repository'}: no models" in here.stdout
    named = awnet("doctor", "--port", 0, "--admin-port", "none", "--repository", "elsewhere")
    assert named.returncode == 1 and "fail  repository    there is no" in named.stdout

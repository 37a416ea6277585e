"""docs/your-own-data.md is true: its commands are run in the order in which they stand there."""

from __future__ import annotations

import csv
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repository import ROOT
from tests.waiting import eventually

PAGE = (ROOT / "docs/your-own-data.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
ADDRESS = "127.0.0.1:8000"
CLASSES = {"disc", "hexagon", "square", "triangle"}

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of somebody who has the command `awnet`, and this Python as `python`."""
    programs = tmp_path_factory.mktemp("bin")
    for name, what in (("awnet", f'"{sys.executable}" -m awnet'), ("python", f'"{sys.executable}"')):
        (programs / name).write_text(f'#!/bin/sh\nexec {what} "$@"\n')
        (programs / name).chmod(0o755)
    ours = {key: value for key, value in os.environ.items() if not key.startswith("AWNET_")}
    return ours | {"PATH": f"{programs}{os.pathsep}{ours['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def followed(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder in which the page was followed, and what each command wrote; the server runs."""
    folder = tmp_path_factory.mktemp("own")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said: dict[str, str] = {}
    servers: list[subprocess.Popen[bytes]] = []
    log = folder / "serve.log"
    try:
        for command in COMMANDS:
            if command.startswith("awnet serve"):
                words = [*command.split(), "--port", str(port), "--admin-port", "none"]
                with log.open("wb") as out:
                    servers.append(subprocess.Popen(words, cwd=folder, env=environment, stdout=out, stderr=out))
                eventually(lambda: b"ready" in log.read_bytes() or servers[0].poll() is not None)
                assert servers[0].poll() is None, log.read_text("utf-8")
                continue
            asked = command.replace(ADDRESS, f"127.0.0.1:{port}")
            done = subprocess.run(["bash", "-c", asked], cwd=folder, env=environment, capture_output=True, text=True)
            accepted = (0, 1) if command.startswith("awnet audit") else (0,)  # 1: the linter objects to so few pictures
            assert done.returncode in accepted, f"{command}\n{done.stdout}\n{done.stderr}"
            said[command] = done.stdout
        yield folder, said
    finally:
        for server in servers:
            server.terminate()
            server.wait(60)


def of(said: dict[str, str], begin: str) -> str:
    return next(text for command, text in said.items() if command.startswith(begin))


def test_the_page_goes_from_a_folder_to_a_served_answer(followed: tuple[Path, dict[str, str]]) -> None:
    """One of the page's own classes, by thresholds that were drawn from the honest pictures."""
    _, said = followed
    answer = json.loads(of(said, "curl -sS -F"))
    (result,) = answer["results"]
    assert result["predictions"] and {row["label"] for row in result["predictions"]} <= CLASSES
    assert result["adversarial"]["domain"] == "site" and result["adversarial"]["calibrated"]
    assert answer["model"]["version"] == "2"


def test_every_step_leaves_what_the_page_says(followed: tuple[Path, dict[str, str]]) -> None:
    folder, said = followed
    for path in ("audit/audit.md", "audit/card.json", "models/awnet/1/model.onnx", "models/awnet/2/model.onnx"):
        assert (folder / path).is_file()
    report = json.loads((folder / "calibrated.json").read_text("utf-8"))
    assert report["images"] == 280 and (folder / "calibrated.svg").is_file()
    few, enough = report["thresholds"]["suspicious"], report["thresholds"]["adversarial"]
    assert (few["enough"], enough["enough"]) == (300, 1530)  # as the page says
    assert "serve it:  awnet serve --repository models --model awnet" in of(said, "awnet calibrate")
    with (folder / "results.csv").open() as f:
        assert len(list(csv.DictReader(f))) == 280


def test_the_dashboards_metrics_count_the_pictures(followed: tuple[Path, dict[str, str]]) -> None:
    """Of the model that was trained here, 281 of them: one by curl, 280 by `awnet predict`."""
    metrics = of(followed[1], "curl -sS http")
    counts = re.findall(r'^awnet_verdicts_total\{.*model="awnet".*version="2".*\} (\S+)$', metrics, re.MULTILINE)
    assert sum(map(float, counts)) == 281


def test_other_pictures_than_those_it_was_trained_on_are_refused_by_audit_and_export(
    followed: tuple[Path, dict[str, str]], environment: dict[str, str]
) -> None:
    """Classes that were renamed, and a folder that is not there: one line, and nothing is written."""
    folder, _ = followed
    (folder / "other").mkdir()
    (folder / "other/train").symlink_to(folder / "honest/test")
    (folder / "renamed/train").mkdir(parents=True)
    for n, name in enumerate(sorted(CLASSES)):
        (folder / f"renamed/train/{n}").symlink_to(folder / "honest/test" / name)
    for data, complaint in (("renamed", "the checkpoint was trained on disc, hexagon"), ("nowhere", "is not there")):
        for command in (
            "audit --ckpt runs/awnet/best.pt --out refused",
            "export --ckpt runs/awnet/best.pt --repository refused",
        ):
            words = ["awnet", *command.split(), "--data-dir", data]
            done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
            (line,) = done.stderr.splitlines()
            assert done.returncode == 2 and complaint in line
            assert not (folder / "refused").exists()

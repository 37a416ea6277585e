"""docs/your-own-data.md is true: its commands are run in the order in which they stand there."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from benchmarks.project.own_data import markdown
from tests.repository import ROOT
from tests.test_pages import Folder, fences

CLASSES = {"disc", "hexagon", "square", "triangle"}

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Folder, dict[str, str]]]:
    """The folder in which the page was followed, with its server, and what each command wrote."""
    folder, said = Folder(tmp_path_factory.mktemp("own")), dict[str, str]()
    try:
        for fence in fences((ROOT / "docs/your-own-data.md").read_text("utf-8")):
            for command in fence.body.splitlines() if fence.kind == "bash" else ():
                said[command] = folder.run(replace(fence, body=command))
        yield folder, said
    finally:
        folder.stop()


def of(said: dict[str, str], begin: str) -> str:
    return next(text for command, text in said.items() if command.startswith(begin))


def test_the_page_goes_from_a_folder_to_a_served_answer(followed: tuple[Folder, dict[str, str]]) -> None:
    """One of the page's own classes, by thresholds that were drawn from the honest pictures."""
    _, said = followed
    answer = json.loads(of(said, "curl -sS -F"))
    (result,) = answer["results"]
    assert result["predictions"] and {row["label"] for row in result["predictions"]} <= CLASSES
    assert result["adversarial"]["domain"] == "site" and result["adversarial"]["calibrated"]
    assert answer["model"]["version"] == "2"


def test_every_step_leaves_what_the_page_says(followed: tuple[Folder, dict[str, str]]) -> None:
    folder, said = followed[0].path, followed[1]
    for path in ("audit/audit.md", "audit/card.json", "models/awnet/1/model.onnx", "models/awnet/2/model.onnx"):
        assert (folder / path).is_file()
    report = json.loads((folder / "calibrated.json").read_text("utf-8"))
    assert report["images"] == 280 and (folder / "calibrated.svg").is_file()
    few, enough = report["thresholds"]["suspicious"], report["thresholds"]["adversarial"]
    assert (few["enough"], enough["enough"]) == (300, 1530)  # as the page says
    assert "serve it:  awnet serve --repository models --model awnet" in of(said, "awnet calibrate")
    with (folder / "results.csv").open() as f:
        assert len(list(csv.DictReader(f))) == 280


def test_the_dashboards_metrics_count_the_pictures(followed: tuple[Folder, dict[str, str]]) -> None:
    """Of the model that was trained here, 281 of them: one by curl, 280 by `awnet predict`."""
    metrics = of(followed[1], "curl -sS http")
    counts = re.findall(r'^awnet_verdicts_total\{.*model="awnet".*version="2".*\} (\S+)$', metrics, re.MULTILINE)
    assert sum(map(float, counts)) == 281


def test_other_pictures_than_those_it_was_trained_on_are_refused_by_audit_and_export(
    followed: tuple[Folder, dict[str, str]],
) -> None:
    """Classes that were renamed, and a folder that is not there: one line, and nothing is written."""
    folder, environment = followed[0].path, followed[0].environment
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


def test_what_to_expect_is_what_was_measured() -> None:
    """The page's figures are those of the kept run, whose recipes are today's stages."""
    report = json.loads((ROOT / "benchmarks/results/own_data.json").read_text("utf-8"))
    page = (ROOT / "docs/your-own-data.md").read_text("utf-8")
    seconds = [f"{step['seconds']:,.0f}" for step in report["steps"]]
    parts, flagged = report["figures"]["parts"], report["figures"]["calibrated"]["flagged"]["as it is"]
    assert "{}, {}, {} and {} s".format(*seconds[:4]) in page and "{}, {} and {} s".format(*seconds[4:]) in page
    shares = [parts["clean"]["accuracy"], parts["worst_case@8"]["accuracy"], parts["clean"]["fpr"]["0.05"]]
    shares += [parts[name]["tpr"]["0.05"] for name in ("worst_case@8", "T3@8")]
    shares += [flagged[when]["suspicious"][0] for when in ("before", "after")]
    assert [f"{100 * share:.1f} %" for share in shares if f"{100 * share:.1f} %" not in page] == []
    assert all(finding["holds"] for finding in report["figures"]["linter"])
    assert markdown(report) == (ROOT / "benchmarks/results/own_data.md").read_text("utf-8")

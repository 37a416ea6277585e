"""`awnet bench`: latencies and rates that can be believed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from awnet.__main__ import main
from awnet.command import load
from awnet.command.load import LabelledImage, Load, report, told
from benchmarks.harness.processes import free_port
from tests.repository import ROOT


def test_the_examples_are_measured_in_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundled model finds every twin and calls no clean example adversarial; the report says so with intervals."""
    out = tmp_path / "bench.json"
    assert main(["bench", "--seconds", "0.2", "--concurrency", "4", "--out", str(out)]) == 0
    document = json.loads(out.read_text("utf-8"))
    pairs = len(list((ROOT / "examples").glob("*-adversarial.png")))
    assert document["clean"]["images"] == document["adversarial"]["images"] == pairs
    assert document["adversarial"]["tpr"]["adversarial"]["share"] == 1.0
    assert document["clean"]["fpr"]["adversarial"]["flagged"] == 0
    assert 0 < document["clean"]["fpr"]["adversarial"]["high"] < 0.4
    latency = document["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert document["answered"] >= 2 * pairs and document["failed"] == {}
    said = capsys.readouterr().out
    assert "TPR 100.0 % at 'adversarial'" in said and "FPR 0.0 %" in said and "p99" in said


def test_folders_of_ones_own_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image that cannot be answered is a failure by its title, and status 1; either kind may be left out."""
    for name in ("ship.png", "cat.png"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    (tmp_path / "bad.png").write_bytes(b"none")
    assert main(["bench", "--seconds", "0.1", "--clean", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "2 images" in said and "Unsupported media type" in said and "TPR" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seconds", "0"], "--concurrency must be at least 1, --seconds above 0"),
        (["--concurrency", "0"], "--concurrency must be at least 1"),
        (["--clean", "nowhere"], "nowhere: no such file or folder"),
        (["--repository", "nowhere"], "Startup failed: awnet cannot be served"),
        (["--url", f"http://127.0.0.1:{free_port()}"], "http://127.0.0.1:"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


def test_quantiles_are_values_that_were_measured() -> None:
    """The 99th of 100 is not the largest, and one latency is all of them."""
    made = Load([LabelledImage("a", b"", False)], 1.0, 1)
    made.seconds, made.latencies = 2.0, [n / 1000 for n in range(100, 0, -1)]
    assert report(made, None)["latency_ms"] == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
    made.latencies = [0.004]
    assert set(report(made, None)["latency_ms"].values()) == {4.0}
    assert "nobody answered" in told(report(made, None))


def test_without_examples_a_bench_needs_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(load, "EXAMPLES", tmp_path)
    with pytest.raises(ValueError, match="holds no image"):
        load.examples()

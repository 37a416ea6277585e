"""`awnet bench`: latencies and rates that can be believed."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from awnet.__main__ import main
from awnet.client.results import ModelId, Result
from awnet.command import load
from awnet.command.arrivals import KINDS, Arrivals, arrivals
from awnet.command.load import LabelledImage, Load, Pace, report, summary
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
        (["--rate", "0"], "--rate must be above 0"),
        (["--rate", "nan"], "--rate must be above 0"),
        (["--arrivals", "bursts"], "--arrivals needs --rate"),
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


def test_answers_that_the_model_did_not_give_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server with an answer cache is as fast as that, and the report says so; without one it says nothing."""
    shutil.copy(ROOT / "examples/ship.png", tmp_path)
    asked = ["bench", "--seconds", "0.1", "--clean", str(tmp_path / "ship.png"), "--out", str(tmp_path / "bench.json")]
    for more, cached in (([], False), (["--answer-cache", "16"], True)):
        assert main([*asked, *more]) == 0
        document, said = json.loads((tmp_path / "bench.json").read_bytes()), capsys.readouterr().out
        # The first request of all, which is not measured, has filled the cache.
        assert document["cached"] == (document["answered"] if cached else 0)
        assert (f"{document['cached']} of these answers came from the answer cache" in said) == cached


def test_a_version_that_came_in_between_is_told() -> None:
    """A reload or a canary: the figures are of both versions, and the report says so; one version needs no line."""

    class Reloads:
        """Answers as version 3 four times (the first is not measured), then as 4."""

        def __init__(self) -> None:
            self.asked = 0

        async def __aenter__(self) -> Reloads:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def answer(self, images: Sequence[object], timeout: float | None, options: object) -> list[Result]:
            self.asked += 1
            return [Result(model=ModelId("awnet", "3" if self.asked <= 4 else "4", "08ae"))]

    async def opened() -> Any:
        return Reloads()

    made = Load([LabelledImage("a", b"", False)], 0.1, 1, Pace(100.0, "constant"))
    asyncio.run(made.run(opened))
    document = report(made, None)
    assert document["versions"] == {"3": 3, "4": 7}
    assert summary(document).startswith("awnet version 3 and 4, ")
    assert "version 3 gave 3, version 4 gave 7 of these answers" in summary(document)
    made.versions = Counter({"4": 10})
    assert "versions" not in summary(report(made, None))


def test_quantiles_are_values_that_were_measured() -> None:
    """The 99th of 100 is not the largest, and one latency is all of them."""
    made = Load([LabelledImage("a", b"", False)], 1.0, 1)
    made.seconds, made.latencies = 2.0, [n / 1000 for n in range(100, 0, -1)]
    assert report(made, None)["latency_ms"] == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
    made.latencies = [0.004]
    assert set(report(made, None)["latency_ms"].values()) == {4.0}
    assert "nobody answered" in summary(report(made, None))


def test_without_examples_a_bench_needs_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(load, "EXAMPLES", tmp_path)
    with pytest.raises(ValueError, match="holds no image"):
        load.examples()


def test_an_open_loop_counts_the_time_in_which_it_could_not_ask() -> None:
    """A server stalls once: a closed loop has one slow answer, an open one each request that was due meanwhile."""

    class Stalls:
        """Answers at once, but for one stall that nobody passes."""

        def __init__(self) -> None:
            self.asked = 0
            self.lock = asyncio.Lock()

        async def __aenter__(self) -> Stalls:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def answer(self, images: Sequence[object], timeout: float | None, options: object) -> list[Result]:
            async with self.lock:
                self.asked += 1
                await asyncio.sleep(0.8 if self.asked == 20 else 0.001)
            return [Result()]

    def slow(pace: Pace | None) -> tuple[int, int]:
        made = Load([LabelledImage("a", b"", False)], 2.0, 1, pace)

        async def opened() -> Any:
            return Stalls()

        asyncio.run(made.run(opened))
        return sum(latency > 0.3 for latency in made.latencies), len(made.latencies)

    assert 1 <= slow(None)[0] <= 5  # a busy machine may put this process off, too
    late, answered = slow(Pace(100.0, "constant"))
    assert answered == 200 and late >= 40  # due within 0.5 of the 0.8 s, at 100 a second: 50


@pytest.mark.parametrize("kind", KINDS)
def test_arrivals_come_at_the_rate_that_was_asked_for(kind: Arrivals) -> None:
    """On average, in order, within the time; a Poisson process has gaps as long as exponential ones."""
    times = list(arrivals(kind, 200.0, 50.0))
    assert times == sorted(times) and times[0] >= 0 and times[-1] < 50
    assert abs(len(times) - 10_000) <= (400 if kind == "poisson" else 0)  # four standard deviations
    gaps = [after - before for before, after in pairwise(times)]
    long = sum(gap > 3 / 200 for gap in gaps) / len(gaps)
    assert {"constant": long == 0, "poisson": abs(long - math.exp(-3)) < 0.01, "bursts": long < 0.01}[kind]


def test_a_rate_is_measured_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert main(["bench", "--seconds", "1", "--rate", "30", "--arrivals", "constant", "--out", str(out)]) == 0
    document = json.loads(out.read_text("utf-8"))
    assert document["pace"] == {"rate": 30.0, "arrivals": "constant"} and document["answered"] == 30
    assert set(document["sent_late_ms"]) == {"p50", "p90", "p99"}
    assert "30 requests a second (constant), at most 32 requests at a time" in capsys.readouterr().out

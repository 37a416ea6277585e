"""The benchmarks of the server run from end to end; their figures are not judged here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.project.natural_images import natural_images
from server.core.images import Limits, decode
from tests.requires import requires
from tests.server.schema_3 import publish_modes
from tests.server.tiny import ROOT, SIZE, noise

pytestmark = pytest.mark.process


def test_the_cost_of_the_domain_check_is_measured_in_pairs(tmp_path: Path) -> None:
    """Of every payload and of the judgement; the interval holds the median, and the check costs something."""
    from benchmarks.speed.domain_check import PAYLOADS, main

    assert main(["--pairs", "100", "--out", str(tmp_path / "result")]) == 0
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert list(rows) == [*(f"decoding, {name}" for name in PAYLOADS), "judgement"]
    for row in rows.values():
        assert row["more_low_us"] <= row["more_us"] <= row["more_high_us"]
    assert rows["decoding, PNG, 32 pixels"]["more_low_us"] > 0
    assert "| judgement |" in (tmp_path / "result.md").read_text()


@requires("wrk")
def test_two_models_are_measured_through_the_server(repository: Path, tmp_path: Path) -> None:
    """Each by a server of its own, without a failure, and as a ratio to the first."""
    from benchmarks.speed.models_http import main

    arguments = ["--rounds", "1", "--seconds", "1", "--clients", "2", "--out", str(tmp_path / "result")]
    assert main(["--repository", str(repository), "--models", "awnet", "awnet/1", *arguments]) == 0
    report = json.loads((tmp_path / "result.json").read_text())
    assert list(report["models"]) == ["awnet", "awnet/1"]
    for model, rows in report["models"].items():
        assert rows["2"]["rps"] > 0 and rows["2"]["failed"] == 0, model
    assert report["ratios"]["awnet"]["2"] == {"rps": 1, "cpu_ms": 1}
    assert "| 2 | awnet/1 |" in (tmp_path / "result.md").read_text()


def test_the_twelve_natural_images_are_of_twelve_kinds_and_the_server_takes_each(tmp_path: Path) -> None:
    """The same bytes each time; a palette, lossy and scaled ones among them."""
    for name in ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg"):
        noise(450, 300).save(tmp_path / name)
    images = natural_images(tmp_path)
    assert images == natural_images(tmp_path)
    assert len({image.kind for image in images}) == len({image.content for image in images}) == 12
    decoded = [decode(image.content, SIZE, Limits()) for image in images]
    assert {image.format for image in decoded} == {"PNG", "JPEG", "WEBP"}
    assert {image.resized for image in decoded} == {True, False}
    assert [image.traits.unusual for image in decoded if image.traits.unusual] == ["colour palette"]


def test_modes_are_measured_beside_the_whole_model(tmp_path: Path) -> None:
    """Every session of every file, in both batch sizes; a mode's model is smaller than the whole."""
    from benchmarks.model.modes import main

    for version, modes in (("1", ("auto",)), ("2", ())):
        publish_modes(tmp_path, version, *modes)
    files = [str(tmp_path / "awnet" / version / "model.onnx") for version in ("1", "2")]
    assert main(["--onnx", *files, "--turns", "3", "--out", str(tmp_path / "result")]) == 0
    alone, several = (model["sessions"] for model in json.loads((tmp_path / "result.json").read_text())["models"])
    assert (list(alone), list(several)) == (["whole", "auto"], ["whole", "auto", "robust", "natural"])
    assert alone["auto"]["bytes"] == alone["whole"]["bytes"]
    assert all(several[mode]["bytes"] < several["whole"]["bytes"] for mode in ("auto", "robust", "natural"))
    assert all(row["ms_1"] > 0 and row["of_whole_8"] > 0 for row in (*alone.values(), *several.values()))


def test_the_parts_of_tracing_are_measured_alone() -> None:
    """What a request pays at its beginning, and what the sending thread pays for its spans: of every trace."""
    from benchmarks.monitoring.telemetry import parts

    measured = parts(traces=8, rounds=3)
    assert list(measured) == ["begin", "spans"]
    assert all(0 < microseconds < 1e5 for microseconds in measured.values())


@requires("wrk")
def test_a_reload_is_measured_beside_the_calm_before_it(repository: Path, tmp_path: Path) -> None:
    """By one process and by two; nobody fails, the stages are those of the log, and each part takes some time."""
    from benchmarks.speed.reload import main

    arguments = ["--rounds", "1", "--reloads", "2", "--rate", "50", "--repository", str(repository)]
    assert main([*arguments, "--out", str(tmp_path / "result")]) == 0
    told = json.loads((tmp_path / "result.json").read_text())
    assert list(told["servers"]) == ["1", "2"]
    for servers in told["servers"].values():
        row = servers["now"]
        assert row["calm"]["failed"] == row["reload"]["failed"] == 0
        assert 0 < sum(row["stages_ms"]) <= row["longest_reload_ms"]
    assert all(part["cpu_ms"] > 0 for part in told["parts"].values())
    assert "| now | reload |" in (tmp_path / "result.md").read_text()


@requires("wrk")
def test_stages_are_measured_under_load_and_alone(tmp_path: Path) -> None:
    """Two checkouts in turns; the threads' CPU time is the process's, and parts cost less than what they are of."""
    from benchmarks.speed.stages import main

    with pytest.MonkeyPatch.context() as patch:
        given = ["--before", str(ROOT), "--rounds", "1", "--seconds", "1", "--clients", "2"]
        patch.setattr(sys, "argv", ["stages", *given, "--out", str(tmp_path / "result")])
        patch.setattr("benchmarks.speed.stages.TURNS", 1)
        assert main() == 0
    found = json.loads((tmp_path / "result.json").read_text())
    for name in ("before", "now"):
        load, alone = found["load"][name]["2"], found["alone_us"][name]
        parts = load["loop_user_ms"] + load["loop_kernel_ms"] + load["others_ms"]
        assert load["rps"] > 0 and load["batch"] >= 1
        assert parts == pytest.approx(load["cpu_ms"], rel=0.5)
        assert 0 < alone["structure"] + alone["statistics"] < alone["decode, with structure and statistics"]
        assert alone["session, batch of 1"] > alone["parse"] > 0
        loop = found["loop_us"][name]
        assert loop["all"] > loop["all but decoding"] > loop["document"] > loop["connection, bytes out"] > 0
    assert "| statistics |" in (tmp_path / "result.md").read_text()


@requires("wrk")
def test_what_http_cannot_do_without_is_measured_step_by_step(tmp_path: Path) -> None:
    """Each step answers, the port of the server's own too, and the server takes more than what only counts bytes."""
    from benchmarks.speed.floor import STEPS, main

    with pytest.MonkeyPatch.context() as patch:
        given = ["--rounds", "1", "--seconds", "1", "--clients", "2"]
        patch.setattr(sys, "argv", ["floor", *given, "--out", str(tmp_path / "result")])
        assert main() == 0
    found = json.loads((tmp_path / "result.json").read_text())
    assert list(found["loop_us"]) == list(STEPS)
    assert 0 < found["loop_us"]["sockets"]["2"] < found["loop_us"]["predict"]["2"]
    assert "| clients | sockets |" in (tmp_path / "result.md").read_text()

"""The comparison with peers: what is asked, how answers are read, which goals were met, and one short real run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import contestants, page
from benchmarks.peers.contestants import Answer
from tests.requires import requires


def found(**rates: float) -> dict[str, Any]:
    """A report with these requests a second at 8 clients."""
    row = {"p50_ms": 1.0, "p99_ms": 2.0, "cpu_ms": 1.0, "cores": 1.0, "failed": 0.0}
    return {
        "machine": {"cpu": "a CPU", "cores": 2, "load_before": [0.0], "load_after": [1.0]},
        "image_bytes": 3000,
        "rounds": 1,
        "seconds": 1.0,
        "contestants": {name.replace("_", "-"): {"8": row | {"rps": rate}} for name, rate in rates.items()},
    }


@pytest.mark.parametrize("processes", [1, 2])
def test_a_ratio_is_to_the_best_peer_with_as_many_processes(processes: int) -> None:
    """Neither a slower peer nor one with another number of processes counts."""
    rates = {f"awnet_{processes}": 340.0, f"fastapi_{processes}": 200.0, f"litserve_{processes}": 100.0}
    rates[f"litserve_{3 - processes}"] = 1000.0
    (goal,) = page.goals(found(**rates))
    assert goal.met
    assert goal.found == f"1.70 of fastapi-{processes}"
    (goal,) = page.goals(found(**rates | {f"awnet_{processes}": 339.0}))
    assert not goal.met


def test_the_page_says_of_each_goal_whether_it_was_met() -> None:
    """And has a row for each contestant."""
    text = page.markdown(found(awnet_1=100.0, fastapi_1=100.0))
    assert (
        "| requests a second at 8 clients, 1 process | >= 1.7 of the best peer | 1.00 of fastapi-1 | **not met** |"
        in text
    )
    assert "| fastapi, 1 | 100 | 1.00 | 2.0 | 1.00 | 1.00 | 0 |" in text


def test_an_image_goes_into_every_form_of_request_whole() -> None:
    """Binary tensors say how long the image is; base64 decodes to it."""
    image = bytes(range(256))
    form = contestants.by_form(image)
    assert image in form.body
    assert form.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    binary = contestants.in_binary(image)
    head = int(binary.headers["Inference-Header-Content-Length"])
    (given,) = json.loads(binary.body[:head])["inputs"]
    assert given["parameters"]["binary_data_size"] == len(binary.body) - head == 260
    assert binary.body[head:] == (256).to_bytes(4, "little") + image


def test_answers_are_read_alike() -> None:
    """Class and score, whichever document they stand in."""
    plain = {"class_id": 3, "score": 0.25}
    outputs = [{"name": "class_id", "data": [3]}, {"name": "score", "data": [0.25]}]
    ours = {"results": [{"predictions": [{"class_id": 3}], "adversarial": {"score": 0.25}}]}
    assert contestants.plain(plain) == contestants.first([plain]) == Answer(3, 0.25)
    assert contestants.tensors({"outputs": outputs}) == contestants.ours(ours) == Answer(3, 0.25)
    assert contestants.differs(Answer(3, 0.25), Answer(4, 0.25))
    assert contestants.differs(Answer(3, 0.25), Answer(3, 0.26))
    assert not contestants.differs(Answer(3, 0.25), Answer(3, 0.2505))


@pytest.mark.process
@requires("wrk")
def test_a_short_run_measures_ours_beside_plain_fastapi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both answer alike before they are timed, nothing fails, and both files are written."""
    from benchmarks.peers.__main__ import main

    options = ["--only", "awnet", "fastapi", "--processes", "1", "--clients", "8", "--rounds", "1", "--seconds", "1"]
    monkeypatch.setattr("sys.argv", ["peers", *options, "--out", str(tmp_path / "peers")])
    assert main() == 0
    report = json.loads((tmp_path / "peers.json").read_text("utf-8"))
    for name in ("awnet-1", "fastapi-1"):
        assert report["contestants"][name]["8"]["failed"] == 0
        assert report["contestants"][name]["8"]["rps"] > 0
        assert report["start"][name]["pss_mb"] > 10
    assert report["raw_images_per_second"]["16"] > 0
    assert "| awnet, 1 |" in (tmp_path / "peers.md").read_text("utf-8")

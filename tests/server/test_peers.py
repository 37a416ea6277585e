"""The comparison with peers: what is asked, how answers are read, which goals were met, and one short real run."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from awnet.planning.asking import Sample
from benchmarks.harness import report
from benchmarks.harness.closed_loop import model_file
from benchmarks.harness.load import noise_png
from benchmarks.peers import contestants, page, steady
from benchmarks.peers.__main__ import begun_before, main, partial
from benchmarks.peers.contestants import Answer
from benchmarks.peers.field import Field
from tests.requires import requires
from tests.waiting import eventually

ROW = {"p50_ms": 1.0, "p99_ms": 2.0, "cpu_ms": 1.0, "cores": 1.0, "failed": 0.0}


def found(clients: int = 8, **rates: float) -> dict[str, Any]:
    """A report with these requests a second."""
    run = {"command": "python -m benchmarks.peers", "versions": {}, "model": {"file": "a"}, "image": {"bytes": 3000}}
    return {
        "machine": {"cpu": "a CPU", "cores": 2, "load_before": [0.0], "load_after": [1.0]},
        "run": run | {"rounds": 1, "seconds": 1.0, "clients": [clients]},
        "contestants": {name.replace("_", "-"): {str(clients): ROW | {"rps": rate}} for name, rate in rates.items()},
        "raw_images_per_second": {"1": 900.0, "16": 1000.0},
        "start": {},
    }


@pytest.mark.parametrize("processes", [1, 2])
def test_a_ratio_is_to_the_best_peer_with_as_many_processes(processes: int) -> None:
    """Neither a slower peer nor one with another number of processes counts, and ours with other settings is none."""
    rates = {f"awnet_{processes}": 340.0, f"fastapi_{processes}": 200.0, f"litserve_{processes}": 100.0}
    rates |= {f"awnet:threads=1_{processes}": 900.0, f"litserve_{3 - processes}": 1000.0}
    (goal,) = page.goals(found(**rates))
    assert goal.met
    assert goal.found == f"1.70 of fastapi-{processes}"
    (goal,) = page.goals(found(**rates | {f"awnet_{processes}": 339.0}))
    assert not goal.met


@pytest.mark.parametrize(("rate", "cores", "met"), [(200.0, 1.1, True), (199.0, 1.0, False), (300.0, 1.9, False)])
def test_one_client_is_served_as_fast_as_by_plain_fastapi_without_a_second_core(
    rate: float, cores: float, met: bool
) -> None:
    """Spinning on the other core does not count as fast."""
    measured = found(1, awnet_1=rate, fastapi_1=200.0)
    measured["contestants"]["awnet-1"]["1"]["cores"] = cores
    assert [goal.met for goal in page.goals(measured)] == [met]


def test_the_share_of_the_loop_is_that_of_the_better_of_ours() -> None:
    """Beside the client, not alone."""
    measured = found(32, awnet_1=700.0, awnet_2=850.0) | {"beside": {"images_per_second": 1000.0}}
    (goal,) = page.goals(measured)
    assert (goal.found, goal.met) == ("0.85 (awnet-2)", True)


@pytest.mark.parametrize(
    ("scraped", "most", "met"), [(10.4, 10.0, True), (11.0, 11.0, True), (11.0, 10.0, False), (30.0, 11.0, False)]
)
def test_a_p99_has_not_moved_where_it_is_no_higher_than_calm_rounds_are(scraped: float, most: float, met: bool) -> None:
    """Or where it differs by less than a twentieth."""
    measured = found(awnet_1=100.0)
    calm = {"p50_ms": 4.0, "p99_ms": 10.0}
    measured["steady"] = {"1": {"calm": calm, "scraped": {"p50_ms": 4.0, "p99_ms": scraped}}}
    measured["steady_samples"] = {"1": {"calm": [calm, calm | {"p99_ms": most}]}}
    at_70_percent, moved = page.goals(measured)
    assert (at_70_percent.found, at_70_percent.met) == ("2.5 times", True)
    assert moved.met is met


def test_http_is_what_the_loop_takes_beyond_decoding() -> None:
    """And there is no figure where either was not measured."""
    measured = found(32, awnet_1=700.0)
    measured["contestants"]["awnet-1"]["32"]["loop_ms"] = 0.25
    assert page.http_ms(measured) is None
    assert page.http_ms(measured | {"decode_ms": 0.05}) == pytest.approx(0.2)


def test_the_page_says_of_each_goal_whether_it_was_met() -> None:
    """And has a row for each contestant."""
    text = page.markdown(found(awnet_1=100.0, fastapi_1=100.0))
    assert (
        "| requests a second, 8 clients, one process | >= 1.7 of the best peer | 1.00 of fastapi-1 | | **not met** |"
        in text
    )
    assert "| fastapi | 1 | 100 | 1.00 | 2.0 | 1.00 | 1.00 | 0 |" in text


def test_the_page_says_which_ratio_a_server_could_reach_at_all() -> None:
    """The loop without a server over the best peer, in the row of the ratio; other goals have none."""
    beside = {"images_per_second": 800.0, "rate": 100.0, "partner_cpu_ms": 0.02}
    measured = found(8, awnet_2=100.0, triton_2=500.0) | {"beside": beside}
    measured["contestants"]["awnet-2"]["32"] = ROW | {"rps": 100.0}
    of_peer, *others = page.goals(measured)
    assert of_peer.most == "1.60"
    assert [goal.most for goal in others] == [""]
    text = page.markdown(measured)
    assert "| 0.20 of triton-2 | 1.60 | **not met** |" in text
    assert "At most: the loop without a server" in text
    assert "At most" not in page.markdown(found(awnet_1=100.0, fastapi_1=100.0))


@pytest.mark.parametrize("text", ["fastapi", "awnet:lone_threads=0", "ray:BATCH=1,WAIT_MS=2"])
def test_a_contestant_is_named_with_its_settings(text: str) -> None:
    """As it is asked for and as it stands in the report; an unknown one is an error that names those that there are."""
    assert str(contestants.contestant(text, 2)) == f"{text}-2"
    with pytest.raises(ValueError, match="there is no nobody: awnet, fastapi, litserve"):
        contestants.contestant("nobody", 1)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "litserve"], "no environment for litserve: --set-up DIR makes them"),
        (["--only", "nobody"], "there is no nobody"),
        (["--only", "awnet", "--rounds", "0"], "--rounds and --seconds must be 1 or more"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything is started."""
    monkeypatch.setattr("sys.argv", ["peers", *options, "--out", str(tmp_path / "peers")])
    monkeypatch.setattr("benchmarks.harness.report.missing", lambda *programs: False)
    assert main() == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_wrk_it_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And writes nothing that could be taken for a result; the help does not need it."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("sys.argv", ["peers", "--only", "awnet", "--out", str(tmp_path / "peers")])
    assert main() == 0
    assert "wrk is not installed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("sys.argv", ["peers", "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "examples:" in capsys.readouterr().out


def test_a_run_that_was_broken_off_goes_on_where_its_command_is_the_same(tmp_path: Path) -> None:
    """Another command, or half a file, begins anew."""
    report.write(partial(tmp_path / "peers"), json.dumps({"run": {"rounds": 3}, "done": 2}))
    assert begun_before(tmp_path / "peers", {"rounds": 3}) == {"run": {"rounds": 3}, "done": 2}
    assert begun_before(tmp_path / "peers", {"rounds": 4}) is None
    report.write(partial(tmp_path / "peers"), "{")
    assert begun_before(tmp_path / "peers", {"rounds": 3}) is None


def test_a_refusal_is_no_answer() -> None:
    """Its latency is infinite, and it counts as failed."""
    samples = [Sample(due=1.0, ended=1.5, status=status) for status in (200, 503, 0)]
    found = steady.latencies(samples, client_cpu=0.003)
    assert (found["p50_ms"], found["failed"], found["client_cpu_ms"]) == (math.inf, 2, 1.0)
    assert steady.latencies(samples[:1], 0.0)["p99_ms"] == 500


@pytest.mark.process
@requires("wrk")
def test_a_short_run_measures_ours_beside_plain_fastapi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both answer alike before they are timed, nothing fails, and both files are written."""
    options = ["--only", "awnet", "fastapi", "--processes", "1", "--clients", "32", "--rounds", "1", "--seconds", "1"]
    monkeypatch.setattr("sys.argv", ["peers", *options, "--out", str(tmp_path / "peers")])
    assert main() == 0
    found = json.loads((tmp_path / "peers.json").read_text("utf-8"))
    for name in ("awnet-1", "fastapi-1"):
        assert found["contestants"][name]["32"]["failed"] == 0
        assert found["contestants"][name]["32"]["rps"] > 0
        assert found["start"][name]["pss_mb"] > 10
    assert found["raw_images_per_second"]["16"] > 0
    assert found["beside"]["images_per_second"] > 0
    assert found["steady"]["1"]["reload"]["failed"] == 0
    assert found["steady"]["1"]["reload"]["reload_ms"] > 0
    text = (tmp_path / "peers.md").read_text("utf-8")
    assert "| awnet | 1 |" in text
    assert "--only awnet fastapi --rounds 1 --seconds 1 --clients 32 --processes 1`" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peers.json", "peers.md"]


@pytest.mark.process
@requires("wrk")
def test_a_contestant_that_ends_by_itself_is_started_again_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody's crash ends a run of twelve minutes; who polls is stopped while others are asked, and none is left."""
    model = model_file(report.ROOT / "model_repository", "awnet", "latest")
    who = contestants.contestant("fastapi", 1)
    monkeypatch.setitem(contestants.PEERS, "fastapi", replace(contestants.PEERS["fastapi"], polls=True))
    with Field(model, None, noise_png(32, 0), tmp_path) as field:
        field.start(who)
        (pid,) = field.pids(str(who))
        eventually(lambda: _state(pid) == "T", what="stopped while nobody asks")  # a signal takes its time
        with field.awake(str(who)) as one:
            eventually(lambda: _state(one.pid) != "T", what="awake while asked")
            one.process.send(signal.SIGKILL)
            one.process.popen.wait()
        assert field.measure(str(who), 2, 1)["failed"] == 0
        assert field.facts(str(who))["ended"] == 1
        (pid,) = field.pids(str(who))
    assert not Path(f"/proc/{pid}").exists()


def _state(pid: int) -> str:
    """R, S, D or T, as in proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]

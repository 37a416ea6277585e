"""`awnet plan`: the least number of replicas that keeps a promise, and what it costs."""

from __future__ import annotations

import errno
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from awnet.__main__ import main
from awnet.command import plan as plan_command
from awnet.command.arrivals import arrivals
from awnet.planning import measuring, sizing
from awnet.planning.asking import Sample
from awnet.planning.balancers import BALANCERS
from awnet.planning.measuring import Spent
from awnet.planning.replica import Shape
from awnet.planning.sizing import Goal, Load, Price, level, million, month, smallest
from awnet.planning.times import BUNDLED, MAX_BYTES, Cold, ServiceTimes, after, parsed, read, written
from benchmarks.harness.processes import Server

TIMES = ServiceTimes({1: 4e-3, 8: 16e-3}, read=5e-4, answer=5e-4, memory_mb=1000)
ONE = Shape(1)
GOOD = {"format": 1, "executions_ms": {"1": 2.0, "8": 9.0}}


def load(rate: float) -> Load:
    return Load(rate, lambda rate, seconds: arrivals("poisson", rate, seconds), requests=4000)


def plan(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    out = tmp_path / "plan.json"
    assert main(["plan", *arguments, "--out", str(out)]) == 0
    document: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return document


def test_each_balancer_that_is_simulated_can_be_planned_for() -> None:
    """The command names them itself, since it is parsed without simpy."""
    for balance in BALANCERS:
        assert plan_command.parser().parse_args(["--rate", "1", "--balancer", balance]).balancer == balance
    with pytest.raises(SystemExit, match="2"):
        plan_command.parser().parse_args(["--rate", "1", "--balancer", "none"])


def test_one_fewer_would_not_do() -> None:
    goal = Goal(0.03)
    found, tried = smallest(load(1000), TIMES, ONE, goal)
    assert found is not None and found.keeps(goal) and found.replicas > 2
    assert not level(found.replicas - 1, load(1000), TIMES, ONE).keeps(goal)
    assert [each.replicas for each in tried] == sorted({each.replicas for each in tried})


def test_a_promise_below_the_service_time_cannot_be_kept(capsys: pytest.CaptureFixture[str]) -> None:
    found, tried = smallest(load(5), TIMES, ONE, Goal(0.001))
    assert found is None and tried
    assert main(["plan", "--rate", "2", "--p99-ms", "0.1"]) == 1
    assert "no number is enough" in capsys.readouterr().out


def test_room_is_left_in_the_cores() -> None:
    """However loose the promise: a fleet that is fully used has no steady state."""
    found, _ = smallest(load(1000), TIMES, ONE, Goal(10.0, busy=0.5))
    assert found is not None and 0.4 < found.busy <= 0.5


def test_a_large_fleet_behaves_as_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than `CELL` replicas are not simulated: each has the load that it would have among so many."""
    monkeypatch.setattr(sizing, "CELL", 8)
    whole, part = (level(count, load(150 * count), TIMES, ONE) for count in (1000, 8))
    assert whole.p99 == pytest.approx(part.p99) and whole.busy == pytest.approx(part.busy)


def test_costs_are_replicas_times_hours() -> None:
    shape, price = Shape(2, workers=2), Price(0.04, 0.005)
    assert month(3, TIMES, shape, price) == pytest.approx(3 * (2 * 0.04 + 2 * 0.005) * 730)
    assert million(3, 100, TIMES, shape, price) == pytest.approx(3 * 0.09 / 3600 / 100 * 1e6)


@pytest.mark.slow
def test_the_plan_says_what_to_run_and_what_it_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundled times; more load, more replicas; spare ones cost and do not serve."""
    small, large = (plan(tmp_path, "--rate", rate) for rate in ("100", "1500"))
    spare = plan(tmp_path, "--rate", "100", "--spare", "1")
    assert small["plan"]["replicas"] == 1 < large["plan"]["replicas"]
    assert spare["plan"]["replicas"] == 1 and spare["plan"]["vcpus"] == 2 * small["plan"]["vcpus"]
    assert spare["plan"]["month"] == pytest.approx(2 * small["plan"]["month"], abs=0.02)
    assert large["plan"]["million_images"] < small["plan"]["million_images"]
    assert large["plan"]["p99_ms"] <= 50 and large["plan"]["busy"] <= 0.8
    said = capsys.readouterr().out
    assert "100 requests a second (poisson), 99 % within 50 ms" in said and "1 and 1 spare, of 2 cores: 4 vCPU" in said
    assert plan(tmp_path, "--rate", "100") == small


@pytest.mark.slow
def test_a_balancer_that_does_not_look_needs_more(tmp_path: Path) -> None:
    needed = {
        balance: plan(
            tmp_path, "--rate", "2000", "--cores", "1", "--p99-ms", "10", "--busy", "0.9", "--balancer", balance
        )["plan"]
        for balance in ("least", "random")
    }
    assert needed["least"]["replicas"] < needed["random"]["replicas"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "0"], "--rate must be 0.001 to 10,000,000"),
        (["--rate", "nan"], "--rate must be"),
        (["--rate", "9", "--p99-ms", "-1"], "--p99-ms must be"),
        (["--rate", "9", "--cores", "0"], "--cores must be 1 to"),
        (["--rate", "9", "--cores", "2", "--workers", "3"], "--workers must be 1 to --cores"),
        (["--rate", "9", "--busy", "1"], "--busy must be"),
        (["--rate", "9", "--url", "http://127.0.0.1:1"], "--url and --image are for --measure"),
        (["--rate", "9", "--times", "nowhere.json"], "nowhere.json: No such file"),
        (["--rate", "9", "--out", "nowhere/plan.json"], "--out nowhere/plan.json: No such file"),
        (["--measure", "1"], "--measure needs --out FILE"),
        (["--measure", "1", "--out", "x", "--url", "https://a.example"], "asks over http://"),
        (["--measure", "1", "--out", "x", "--url", "http://127.0.0.1:1"], "http://127.0.0.1:1/metrics: "),
        (["--measure", "1", "--out", "nowhere/x"], "--out nowhere/x: no such folder"),
        (["--measure", "1", "--out", "x", "--image", "nowhere.png"], "--image nowhere.png: No such file"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_times_are_read_as_they_were_written() -> None:
    times = read(BUNDLED)
    assert written(parsed(written(times))) == written(times)
    cold = replace(times, python=1e-4, cold=(Cold(1e-3, 1e-4, 2e-4, 3e-4), Cold(9e-3, 2e-4, 3e-4, 4e-4)))
    assert parsed(written(cold)).python == 1e-4
    for each, given in zip(parsed(written(cold)).cold, cold.cold, strict=True):
        assert each == pytest.approx(given)
    assert {1, 2, 4, 8} <= times.executions.keys() and times.memory_mb > 50 and times.ready_seconds > 0.1
    assert times.about["told"]


def test_sizes_that_were_not_measured_lie_on_the_line() -> None:
    assert TIMES.execution(4) == pytest.approx(4e-3 + 12e-3 * 3 / 7)
    assert TIMES.execution(16) == pytest.approx(16e-3 + 12e-3 * 8 / 7)
    assert ServiceTimes({2: 6e-3}).execution(8) == pytest.approx(24e-3)


@pytest.mark.parametrize(
    "document",
    [
        [],
        {**GOOD, "format": 2},
        {**GOOD, "executions_ms": {}},
        {**GOOD, "executions_ms": {"0": 1.0}},
        {**GOOD, "executions_ms": {"one": 1.0}},
        {**GOOD, "executions_ms": {"1": 0}},
        {**GOOD, "executions_ms": {"1": float("nan")}},
        {**GOOD, "read_ms": -1},
        {**GOOD, "read_ms": True},
        {**GOOD, "spread": []},
        {**GOOD, "cold_ms": [[1.0, 0.1, 0.1]]},
        {**GOOD, "cold_ms": [[1.0, 0.1, 0.1, -1.0]]},
        {**GOOD, "cold_ms": [[2.0, 0.1, 0.1, 0.1], [1.0, 0.1, 0.1, 0.1]]},
        {**GOOD, "spread": [0.0]},
        {**GOOD, "memory_mb": "1"},
    ],
)
def test_a_file_that_holds_no_times_is_refused(document: object, tmp_path: Path) -> None:
    assert parsed(GOOD).executions[1] == 2e-3
    path = tmp_path / "times.json"
    path.write_text(json.dumps(document), "utf-8")
    with pytest.raises(ValueError, match="no service times"):
        read(path)


def test_a_file_that_has_no_end_is_refused_before_it_is_in_memory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no regular file"):
        read(Path("/dev/zero"))
    (tmp_path / "large").write_text(json.dumps({**GOOD, "about": {"told": "x" * MAX_BYTES}}), "utf-8")
    with pytest.raises(ValueError, match="no service times"):
        read(tmp_path / "large")


def test_what_a_pause_costs_is_what_lone_requests_cost_more() -> None:
    """An event loop pauses twice for each, before it and while its model runs: both together cost what was measured."""
    hot = Spent(images=1, batches=1, loop=4e-4, others=1e-3)

    def lone(pause: float, loop: float, engine: float, seconds: float) -> tuple[float, measuring.Load]:
        load = measuring.Load()
        load.samples, load.spent = [Sample(0.0, ended=seconds)] * 3, Spent(10, 10, 10 * loop, 10 * engine)
        return pause, load

    loads = [lone(9e-3, 7e-4, 1.4e-3, 2.6e-3), lone(1e-3, 6e-4, 1.2e-3, 2e-3), lone(-1e-3, 1.0, 1.0, 9.0)]
    cold = measuring.cold(hot, 1e-4, dict(loads))
    assert [each.pause for each in cold] == [1e-3, 9e-3]
    assert [each.engine for each in cold] == pytest.approx([2e-4, 4e-4])
    assert [each.wait for each in cold] == pytest.approx([1e-4, 4e-4])
    assert cold[0].loop + after(cold, hot.others).loop == pytest.approx(2e-4)
    assert cold[1].loop + after(cold, hot.others).loop == pytest.approx(3e-4)


@pytest.mark.process
@pytest.mark.slow
def test_a_running_server_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it spends is found in its threads; the file is one that a plan takes."""
    monkeypatch.setattr(plan_command, "MEASURED_SECONDS", 2.0)
    out = tmp_path / "times.json"
    with Server(tmp_path, drain_seconds=0) as server:
        server.wait_ready()
        assert main(["plan", "--measure", str(server.pid), "--url", server.url, "--out", str(out)]) == 0
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"none")
        arguments = ["--url", server.url, "--image", str(bad), "--out", str(bad)]
        assert main(["plan", "--measure", str(server.pid), *arguments]) == 2
    said = capsys.readouterr()
    assert "one core answers" in said.out and "status 415" in said.err and bad.read_bytes() == b"none"
    times = read(out)
    assert 0.0003 < times.execution(1) < 0.1 and 0.00005 < times.request(1) - times.execution(1) < 0.01
    assert 50 < times.memory_mb < 1000
    assert main(["plan", "--rate", "10", "--times", str(out), "--p99-ms", "1000"]) == 0


def test_a_plan_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves the plan before; a device is written to, and stays one."""
    out = tmp_path / "plan.json"
    out.write_text("before")
    with monkeypatch.context() as full:
        full.setattr("os.fsync", raising(OSError(errno.ENOSPC, "No space left on device")))
        assert main(["plan", "--rate", "9", "--out", str(out)]) == 2
    assert out.read_text() == "before"
    device = tmp_path / "device"
    device.symlink_to("/dev/null")
    assert main(["plan", "--rate", "9", "--out", str(device)]) == 0 and device.is_symlink()


def raising(error: Exception) -> Callable[..., None]:
    def fail(*given: object) -> None:
        raise error

    return fail


@pytest.mark.process
@pytest.mark.slow
def test_a_process_that_does_not_run_the_images_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped number, a supervisor or an answer cache would say that a request costs nothing."""
    monkeypatch.setattr(plan_command, "MEASURED_SECONDS", 2.0)
    out = tmp_path / "times.json"
    with Server(tmp_path, drain_seconds=0, answer_cache=8) as server, subprocess.Popen(["sleep", "60"]) as idle:
        server.wait_ready()
        for pid, said in (
            (999_999_999, "process 999999999 cannot be looked at: No such file or directory"),
            (idle.pid, f"process {idle.pid} does not answer at {server.url}"),
            (server.pid, "measure a server without an answer cache"),
        ):
            assert main(["plan", "--measure", str(pid), "--url", server.url, "--out", str(out)]) == 2
            error = capsys.readouterr().err
            assert said in error and error.count("\n") == 1 and not out.exists()
        idle.kill()

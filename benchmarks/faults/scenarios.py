"""The faults themselves: each function starts what it needs, does the damage under load and judges its goals."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..harness import bad_models
from ..harness.exchange import Link, exchange, get, post, seconds_until
from ..harness.load import IMAGES, Load, drawing, loaded, quantile
from ..harness.processes import BEHIND_HAPROXY, Haproxy, Server, Triton
from ..harness.report import ROOT

TAKEOVER_SECONDS = 0.02  # haproxy may use a kept connection until it has seen that it is closed
DRAIN_SECONDS, SHUTDOWN_SECONDS = 1.0, 20  # the defaults of server.settings
GRACE = 0.25  # s; what a busy machine may add to times that are read by polling


@dataclass(frozen=True)
class Bench:
    """What the scenarios run on and how long.

    Attributes:
        folder: for logs and copies; emptied afterwards.
        requests, soak_seconds: of the soak, whichever is over first.
        triton_venv: an environment with the real Triton.
    """

    folder: Path
    repository: Path = ROOT / "model_repository"
    restarts: int = 50
    kills: int = 20
    seconds: float = 60.0
    rounds: int = 5
    requests: int = 100_000
    soak_seconds: float = 600.0
    triton_venv: Path = ROOT / ".venv-triton"


@dataclass
class Result:
    """Figures of one scenario, and its goals as (goal, measured, met)."""

    what: str
    figures: dict[str, Any] = field(default_factory=dict)
    goals: list[tuple[str, str, bool]] = field(default_factory=list)

    def goal(self, text: str, measured: object, met: bool) -> None:
        self.goals.append((text, str(measured), bool(met)))


# Replicas behind haproxy.


class Replica(Server):
    """A server with one thread for inference, which knows whose a connection through haproxy is."""

    def __init__(self, folder: Path, **settings: object) -> None:
        super().__init__(folder, **{"threads": 1, **BEHIND_HAPROXY, **settings})


@contextlib.asynccontextmanager
async def pair(
    bench: Bench, retries: bool = True, balance: str = "leastconn", **settings: object
) -> AsyncIterator[tuple[list[Replica], Haproxy]]:
    """Two replicas behind haproxy, both with traffic."""
    with contextlib.ExitStack() as stack:
        replicas = [Replica(bench.folder, repository=bench.repository, **settings) for _ in range(2)]
        for replica in replicas:
            stack.enter_context(replica)
        for replica in replicas:
            await replica.until_ready()
        haproxy = Haproxy(bench.folder, replicas, retries, balance)
        stack.enter_context(haproxy)
        await haproxy.up(0, 1)
        yield replicas, haproxy


async def rolling(bench: Bench) -> Result:
    """SIGTERM to one replica after the other, each started again and in rotation before the next."""
    result, load, exits, clean = await _roll(bench, bench.restarts)
    result.goal("0 failed requests", f"{load.failed()} of {len(load.samples)}", load.failed() == 0)
    limit = DRAIN_SECONDS + SHUTDOWN_SECONDS
    result.goal(f"exit within the drain limit ({limit:g} s)", f"at most {max(exits):.2f} s", max(exits) <= limit)
    result.goal("exit status 0", f"{clean} of {bench.restarts}", clean == bench.restarts)
    return result


async def rolling_alone(bench: Bench) -> Result:
    """The same, a quarter as often, without haproxy's second tries: draining does it alone."""
    result, load, _, _ = await _roll(bench, -(-bench.restarts // 4), retries=False)
    result.goal("0 failed requests", f"{load.failed()} of {len(load.samples)}", load.failed() == 0)
    return result


async def rolling_control(bench: Bench) -> Result:
    """The control: no drain and no second tries, so that callers must notice, or this table could see nothing."""
    result, load, _, _ = await _roll(bench, min(4, bench.restarts), retries=False, drain_seconds=0)
    result.goal("failed requests are seen", f"{load.failed()} of {len(load.samples)}", load.failed() > 0)
    return result


async def _roll(
    bench: Bench, restarts: int, retries: bool = True, drain_seconds: float = DRAIN_SECONDS
) -> tuple[Result, Load, list[float], int]:
    """What `rolling` says; also the load, the seconds that each exit took, and how many had status 0."""
    exits, backs, statuses = [], [], Counter[int]()
    async with (
        pair(bench, retries, drain_seconds=drain_seconds, shutdown_seconds=SHUTDOWN_SECONDS) as (replicas, haproxy),
        loaded(haproxy.port, keeping=4, opening=4, pause=0.2) as load,
    ):
        await asyncio.sleep(1)
        for turn in range(restarts):
            replica = replicas[turn % 2]
            begun = time.monotonic()
            replica.send(signal.SIGTERM)
            statuses[await replica.gone(30)] += 1
            exits.append(time.monotonic() - begun)
            begun = time.monotonic()
            replica.start()
            await haproxy.up(turn % 2)
            backs.append(time.monotonic() - begun)
        await asyncio.sleep(1)
    seconds = [sample.ended - sample.begun for sample in load.samples]
    result = Result(
        f"{restarts} rolling restarts of two replicas behind haproxy; 4 callers that keep their connection and "
        f"4 that open one for each request; images of {_sizes()}; drain_seconds {drain_seconds:g}"
        + ("" if retries else ", haproxy without retries")
    )
    result.figures = {
        "restarts": restarts,
        "requests": len(load.samples),
        "requests_per_second": _rate(load),
        "outcomes": dict(load.counts()),
        "request_p50_ms": _ms(quantile(seconds, 0.5)),
        "request_p99_ms": _ms(quantile(seconds, 0.99)),
        "request_max_ms": _ms(max(seconds)),
        "exit_p50_seconds": round(quantile(exits, 0.5), 2),
        "exit_max_seconds": round(max(exits), 2),
        "exit_statuses": {str(status): count for status, count in statuses.items()},
        "in_rotation_again_p50_seconds": round(quantile(backs, 0.5), 2),
        "in_rotation_again_max_seconds": round(max(backs), 2),
    }
    return result, load, exits, statuses[0]


async def kill(bench: Bench) -> Result:
    """SIGKILL to one replica after the other; a supervisor starts it again at once."""
    backs, flying, failed = [], [], []
    async with pair(bench) as (replicas, haproxy), loaded(haproxy.port, keeping=4, opening=4, pause=0.2) as load:
        await asyncio.sleep(1)
        for turn in range(bench.kills):
            replica = replicas[turn % 2]
            begun, first = time.monotonic(), len(load.samples)
            replica.send(signal.SIGKILL)
            await replica.gone(10)
            gone = time.monotonic()
            replica.start()
            await replica.until_ready()
            backs.append(time.monotonic() - begun)
            await haproxy.up(turn % 2)
            await asyncio.sleep(0.5)
            round_ = load.samples[first:]
            # At either replica: an upper bound. The dying one still gets requests until haproxy has seen it.
            flying.append(sum(sample.begun <= gone + TAKEOVER_SECONDS for sample in round_))
            failed.append(sum(sample.outcome != "ok" for sample in round_))
    surplus = sum(max(0, errors - room) for errors, room in zip(failed, flying, strict=True))
    result = Result(
        f"kill -9 of a replica, {bench.kills} times, alternating; started again at once; 8 callers through haproxy; "
        f"images of {_sizes()}, the large one too large to be sent again; in flight is what had begun "
        f"{TAKEOVER_SECONDS:g} s after the process was gone"
    )
    result.figures = {
        "kills": bench.kills,
        "requests": len(load.samples),
        "requests_per_second": _rate(load),
        "outcomes": dict(load.counts()),
        "in_flight_at_each_kill": flying,
        "errors_of_each_kill": failed,
        "back_p50_seconds": round(quantile(backs, 0.5), 2),
        "back_max_seconds": round(max(backs), 2),
    }
    result.goal("errors <= in flight, every time", f"{sum(failed)} errors, {sum(flying)} in flight", surplus == 0)
    result.goal("back in <= 3 s (ready again, from the kill)", f"at most {max(backs):.2f} s", max(backs) <= 3)
    result.goal("no wrong answer", load.counts()["wrong"], load.counts()["wrong"] == 0)
    return result


async def gauges(bench: Bench) -> Result:
    """Whether a replica that was killed under load tells the truth about itself afterwards."""
    async with pair(bench) as (replicas, haproxy):
        async with loaded(haproxy.port) as load:
            await asyncio.sleep(1)
            replicas[0].send(signal.SIGKILL)
            await replicas[0].gone(10)
            replicas[0].start()
            await replicas[0].until_ready()
            await haproxy.up(0)
            await asyncio.sleep(1)
        samples = await replicas[0].metrics()
    answered = sum(v for k, v in samples.items() if k.startswith("awnet_requests_total{") and '"/predict"' in k)
    result = Result("metrics of a replica that was killed under load, once the load has ended")
    result.figures = {"requests": len(load.samples), "predictions_since_the_restart": answered}
    queue = samples.get("awnet_queue_images")
    result.goal("nothing waits", queue, queue == 0)
    result.goal("the engine is up", samples.get("awnet_engine_up"), samples.get("awnet_engine_up") == 1)
    result.goal("it counts the requests that came since", f"{answered:g}", 0 < answered < len(load.samples))
    return result


# Overload.


async def overload(bench: Bench) -> Result:
    """Requests at 2 and 5 times the rate that one replica can serve, at fixed times whatever the answers."""
    capacity = 16
    body = drawing()
    result = Result(
        f"open-loop overload of one replica for {bench.seconds:g} s each; an image of {len(body) // 1000} kB that "
        f"takes long to decode; queue_capacity {capacity}"
    )
    with Replica(bench.folder, repository=bench.repository, queue_capacity=capacity) as replica:
        await replica.until_ready()
        async with loaded(replica.port, keeping=1, opening=0, pause=0, images=[body]) as lone:
            await asyncio.sleep(min(10.0, bench.seconds))
        span = min(15.0, bench.seconds)
        async with loaded(replica.port, keeping=8, opening=0, pause=0, images=[body]) as full:
            await asyncio.sleep(span)
        peak = full.counts()["ok"] / (full.samples[-1].ended - full.samples[0].begun)
        alone = quantile([s.ended - s.begun for s in lone.samples], 0.99)
        alone_p50 = quantile([s.ended - s.begun for s in lone.samples], 0.5)
        budget = capacity / peak
        result.figures = {
            "peak_per_second": round(peak, 1),
            "uncontended_p50_ms": _ms(alone_p50),
            "uncontended_p99_ms": _ms(alone),
            "queue_budget_ms": _ms(budget),
        }
        for factor in (2, 5):
            begun, callers, server = time.monotonic(), time.process_time(), replica.cpu_seconds()
            burst = await _open_loop(replica.port, body, factor * peak, bench.seconds)
            span = time.monotonic() - begun
            shares = [(time.process_time() - callers) / span, (replica.cpu_seconds() - server) / span]
            good = [s for s in burst.samples if s.outcome == "ok"]
            refused = [s for s in burst.samples if s.outcome == "503"]
            goodput = len(good) / bench.seconds
            accepted = quantile([s.ended - s.begun for s in good], 0.99)
            median = quantile([s.ended - s.begun for s in good], 0.5)
            rejected = quantile([s.ended - s.begun for s in refused], 0.99)
            other = {k: v for k, v in burst.counts().items() if k not in ("ok", "503")}
            result.figures[f"{factor}x"] = {
                "offered_per_second": round(factor * peak, 1),
                "outcomes": dict(burst.counts()),
                "goodput_per_second": round(goodput, 1),
                "accepted_p50_ms": _ms(median),
                "accepted_p99_ms": _ms(accepted),
                "rejected_p50_ms": _ms(quantile([s.ended - s.begun for s in refused], 0.5)),
                "rejected_p99_ms": _ms(rejected),
                "cores_used_by_callers": round(shares[0], 2),
                "cores_used_by_server": round(shares[1], 2),
            }
            result.goal(f"{factor}x: goodput >= 90 % of peak", f"{100 * goodput / peak:.0f} %", goodput >= 0.9 * peak)
            limit = 2 * alone + budget
            result.goal(
                f"{factor}x: accepted p99 <= 2x uncontended + queue budget ({_ms(limit)} ms)",
                f"{_ms(accepted)} ms",
                accepted <= limit,
            )
            result.goal(
                f"{factor}x: rejects' p99 at most a tenth of the accepted p50",
                f"{_ms(rejected)} of {_ms(median)} ms",
                rejected <= median / 10,
            )
            result.goal(f"{factor}x: nothing but 200 and 503", other or "nothing else", not other)
        await asyncio.sleep(1)
        begun = time.monotonic()
        status, _ = await exchange(replica.port, post(body, keep=False), 20)
        result.goal(
            "afterwards a request is served as before", f"{status}, {_ms(time.monotonic() - begun)} ms", status == 200
        )
    return result


async def _open_loop(port: int, body: bytes, rate: float, seconds: float) -> Load:
    """`rate` requests a second, each from a caller of its own."""
    load = Load(port, images=[body])
    await load.learn()
    idle: list[Link] = []  # opening a connection costs both sides as much as refusing a request

    async def one() -> None:
        link = await load.once(0, keep=True, link=idle.pop() if idle else None)
        if link is not None:
            idle.append(link)

    tasks, begun = [], time.monotonic()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    for _, writer in idle:
        writer.close()
    return load


# Reloads.


async def reload(bench: Bench) -> Result:
    """Bad versions put beside the one that serves, one kind after the other."""
    result = Result(
        "bad versions appear beside the serving one under load, with SIGHUP after each; the last one is then completed"
    )
    repository = bench.folder / "reload-repository"
    shutil.rmtree(repository, ignore_errors=True)
    latest = max((bench.repository / "awnet").glob("[0-9]*"), key=lambda folder: int(folder.name))
    (repository / "awnet").mkdir(parents=True)
    bad_models.publish(repository / "awnet", 1, (latest / "model.onnx").read_bytes())
    with Replica(bench.folder, repository=repository, poll_seconds=0.5) as replica:
        await replica.until_ready()
        async with loaded(replica.port, keeping=2, opening=2) as load, watching(replica) as unready:
            for number, (kind, spoil) in enumerate(bad_models.KINDS.items(), start=2):
                before, begun, logged = await _refusals(replica), time.monotonic(), len(replica.text())
                spoil(repository / "awnet", number)
                replica.send(signal.SIGHUP)
                try:
                    counted = await seconds_until(lambda before=before: _more_refusals(replica, before), 15, replica)
                except TimeoutError:
                    counted = float("nan")
                await asyncio.sleep(1)
                failed = load.failed(since=begun)
                versions = {s.version for s in load.samples if s.begun >= begun and s.outcome == "ok"}
                line = next((line for line in replica.text()[logged:].splitlines() if "ERROR" in line), "")
                good = failed == 0 and versions == {"1"} and counted == counted and bool(line)
                result.figures[kind] = {
                    "failed": failed,
                    "versions": sorted(versions),
                    "metric_after_seconds": round(counted, 2),
                    "log": line.partition("ERROR ")[2][:160],
                }
                if kind != "half-copied":
                    shutil.rmtree(repository / "awnet" / str(number))
                result.goal(
                    f"{kind}: version 1 serves on, 0 errors, a metric, a log line",
                    f"{failed} errors, versions {sorted(versions)}, metric after {counted:.2f} s"
                    + ("" if line else ", no log line"),
                    good,
                )
            # The last one was only half there. Now the rest arrives.
            begun = time.monotonic()
            bad_models.complete(repository / "awnet", number)
            replica.send(signal.SIGHUP)
            try:
                took = await seconds_until(lambda: _served(load, str(number)), 20, replica)
            except TimeoutError:
                took = float("nan")
            await asyncio.sleep(1)
        failed = load.failed(since=begun)
        result.figures["then completed"] = {"serves_after_seconds": round(took, 2), "failed": failed}
        result.goal(
            "half-copied and then completed: it is taken, 0 errors",
            f"after {took:.2f} s, {failed} errors",
            took == took and failed == 0,
        )
        result.figures["requests"] = len(load.samples)
        result.goal("readiness stays", f"{unready[0]} of {unready[1]} looks said no", unready[0] == 0)
    return result


async def _refusals(replica: Replica) -> float:
    samples = await replica.metrics()
    return sum(
        value
        for name, value in samples.items()
        if name.startswith("awnet_reloads_total{") and ('"refused"' in name or '"absent"' in name)
    )


async def _more_refusals(replica: Replica, before: float) -> bool:
    return await _refusals(replica) > before


async def _served(load: Load, version: str) -> bool:
    return any(sample.version == version for sample in load.samples[-8:])


@contextlib.asynccontextmanager
async def watching(replica: Replica) -> AsyncIterator[list[int]]:
    """Asks for readiness every 100 ms; [how often it said no, how often it was asked]."""
    seen = [0, 0]

    async def watch() -> None:
        while True:
            try:
                seen[0] += not await get(replica.port, "/v2/health/ready")
            except (OSError, EOFError, TimeoutError):
                seen[0] += 1
            seen[1] += 1
            await asyncio.sleep(0.1)

    task = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# Triton.


class SpoiltTriton(Triton):
    """The real Triton from its wheel, with the bundled model for its Python backend.

    While `wrong` exists, every output is shifted: an engine that answers quickly, with status OK, and wrongly.
    """

    def __init__(self, bench: Bench) -> None:
        repository = bench.folder / "triton-repository"
        self.wrong = bench.folder / "triton-is-wrong"
        self.wrong.unlink(missing_ok=True)
        if not repository.exists():
            _convert(bench.repository, repository)
            for program in repository.glob("*/*/model.py"):
                program.write_text(program.read_text("utf-8") + _SPOILED.format(flag=str(self.wrong)), "utf-8")
        super().__init__(repository, bench.triton_venv, bench.folder / "triton.log", "--exit-seconds", "5")


_SPOILED = """

_execute = TritonPythonModel.execute


def _spoiled(self, requests):
    if not os.path.exists({flag!r}):
        return _execute(self, requests)
    session, outputs = self._session, self._outputs

    class Wrong:
        def run(self, names, given):
            return [np.roll(rows, 1, axis=1) for rows in session.run(names, given)]

    self._session = Wrong()
    try:
        return _execute(self, requests)
    finally:
        self._session = session


TritonPythonModel.execute = _spoiled
"""


def _convert(repository: Path, out: Path) -> None:
    from export.triton_python import convert

    convert(repository, out)


@contextlib.asynccontextmanager
async def behind_triton(bench: Bench) -> AsyncIterator[tuple[Triton, Replica]]:
    """A server before a real Triton."""
    with SpoiltTriton(bench) as triton:
        await triton.until_ready()
        with Replica(
            bench.folder, engine="triton", triton_urls=f"127.0.0.1:{triton.grpc}", timeout_seconds=2, poll_seconds=0
        ) as replica:
            await replica.until_ready()
            yield triton, replica


async def _engine_up(replica: Replica, wanted: int) -> bool:
    return (await replica.metrics()).get("awnet_engine_up") == wanted


async def _triton(
    bench: Bench, what: str, damage: Callable[[Triton], None], mend: Callable[[Triton], Awaitable[None]]
) -> Result:
    opens, recoveries, turned = [], [], []
    async with behind_triton(bench) as (triton, replica), loaded(replica.port, keeping=4, opening=4) as load:
        for _ in range(bench.rounds):
            await asyncio.sleep(2)
            damage(triton)
            opens.append(await seconds_until(lambda: _engine_up(replica, 0), 30, replica))
            turned.append(not await get(replica.port, "/v2/health/ready"))
            await asyncio.sleep(2)
            mending = time.monotonic()
            await mend(triton)
            returned = time.monotonic()
            await seconds_until(lambda: get(replica.port, "/v2/health/ready"), 60, replica)
            await seconds_until(lambda mending=mending: _answers_since(load, mending), 60, replica)
            recoveries.append(time.monotonic() - returned)
        await asyncio.sleep(2)
    outcomes = load.counts()
    allowed = {"ok", "503", "504"}
    slow = quantile([s.ended - s.begun for s in load.samples if s.outcome != "ok"], 1.0)
    result = Result(what)
    result.figures = {
        "rounds": bench.rounds,
        "requests": len(load.samples),
        "outcomes": dict(outcomes),
        "breaker_open_seconds": [round(value, 2) for value in opens],
        "recovered_seconds": [round(value, 2) for value in recoveries],
        "slowest_refusal_ms": _ms(slow),
    }
    other = {k: v for k, v in outcomes.items() if k not in allowed}
    result.goal("callers see 200, 503 and 504 only", other or "nothing else", not other)
    result.goal("breaker open in <= 1 s", f"at most {max(opens):.2f} s", max(opens) <= 1)
    result.goal("readiness goes off", f"{sum(turned)} of {len(turned)} times", all(turned))
    result.goal("recovered <= 5 s after its return", f"at most {max(recoveries):.2f} s", max(recoveries) <= 5)
    result.goal("never a wrong answer", outcomes["wrong"], outcomes["wrong"] == 0)
    return result


async def _answers_since(load: Load, moment: float) -> bool:
    return any(sample.outcome == "ok" and sample.begun >= moment for sample in load.samples[-16:])


async def triton_kill(bench: Bench) -> Result:
    """kill -9 of Triton under load; it is started again two seconds after the breaker opened."""

    def damage(triton: Triton) -> None:
        triton.signal_server(signal.SIGKILL)

    async def mend(triton: Triton) -> None:
        await triton.gone(20)
        triton.start()
        await triton.until_ready()

    return await _triton(bench, f"kill -9 of the real Triton under load, {bench.rounds} times", damage, mend)


async def triton_stop(bench: Bench) -> Result:
    """SIGSTOP of Triton under load: connections stay open and nothing answers. SIGCONT two seconds later."""

    def damage(triton: Triton) -> None:
        triton.signal_server(signal.SIGSTOP)

    async def mend(triton: Triton) -> None:
        triton.signal_server(signal.SIGCONT)

    return await _triton(bench, f"SIGSTOP of the real Triton under load, {bench.rounds} times", damage, mend)


async def wrong_engine(bench: Bench) -> Result:
    """A Triton that answers with status OK and wrong values: from the start, after a restart, and all of a sudden."""
    result = Result("a real Triton that answers quickly, with status OK, and with shifted outputs")
    with SpoiltTriton(bench) as triton:
        await triton.until_ready()
        triton.wrong.touch()
        with Replica(bench.folder, engine="triton", triton_urls=f"127.0.0.1:{triton.grpc}") as replica:
            asked = ready_looks = 0
            end = time.monotonic() + 8
            while time.monotonic() < end and replica.running:
                with contextlib.suppress(OSError, EOFError, TimeoutError):
                    ready_looks += await get(replica.port, "/v2/health/ready")
                    asked += 1
                await asyncio.sleep(0.05)
            ended = "ended with the reason in its log" if not replica.running else "stayed unready"
        result.goal(
            "wrong from the start: never ready", f"ready in {ready_looks} of {asked} looks; {ended}", ready_looks == 0
        )

    triton = SpoiltTriton(bench)
    with triton:
        await triton.until_ready()
        with Replica(
            bench.folder, engine="triton", triton_urls=f"127.0.0.1:{triton.grpc}", timeout_seconds=2, poll_seconds=0
        ) as replica:
            await replica.until_ready()
            async with loaded(replica.port, keeping=2, opening=2) as load:
                await asyncio.sleep(2)
                triton.wrong.touch()
                triton.signal_server(signal.SIGKILL)
                await triton.gone(20)
                triton.start()
                await triton.until_ready()
                back = time.monotonic()
                await asyncio.sleep(8)
                counts = load.counts()
                ready = await get(replica.port, "/v2/health/ready")
                result.figures["came back wrong"] = {"outcomes": dict(counts), "seconds_watched": 8}
                result.goal(
                    "comes back wrong: not taken in again, 0 wrong answers",
                    f"{counts['wrong']} wrong, ready: {ready}, {sum(load.counts(since=back).values())} requests since",
                    counts["wrong"] == 0 and not ready and load.counts(since=back)["ok"] == 0,
                )
                triton.wrong.unlink()
                took = await seconds_until(lambda: get(replica.port, "/v2/health/ready"), 60, replica)
                result.goal("right again: taken in within 5 s", f"{took:.2f} s", took <= 5)
                await asyncio.sleep(2)
                begun, before = time.monotonic(), load.counts()["wrong"]
                triton.wrong.touch()
                gone = await seconds_until(lambda: _engine_up(replica, 0), 60, replica)
                await asyncio.sleep(8)
                late = [s for s in load.samples if s.outcome == "wrong" and s.begun > begun + gone + GRACE]
                result.figures["turned wrong"] = {
                    "noticed_after_seconds": round(gone, 2),
                    "wrong_answers_until_then": load.counts()["wrong"] - before,
                    "wrong_answers_later": len(late),
                }
                result.goal(
                    "turns wrong while it serves: taken out by the next probe (5 s), nothing wrong after that",
                    f"out after {gone:.2f} s, {load.counts()['wrong'] - before} wrong until then, {len(late)} after",
                    gone <= 5 + 1 and not late,
                )
    return result


SCENARIOS: dict[str, tuple[Callable[[Bench], Awaitable[Result]], tuple[str, ...]]] = {
    "rolling": (rolling, ("haproxy",)),
    "rolling-alone": (rolling_alone, ("haproxy",)),
    "rolling-control": (rolling_control, ("haproxy",)),
    "kill": (kill, ("haproxy",)),
    "gauges": (gauges, ("haproxy",)),
    "overload": (overload, ()),
    "reload": (reload, ()),
    "triton-kill": (triton_kill, ("triton",)),
    "triton-stop": (triton_stop, ("triton",)),
    "wrong-engine": (wrong_engine, ("triton",)),
}


def _sizes() -> str:
    return " and ".join(f"{len(data) / 1000:.0f} kB" for data in IMAGES[1:])


def _rate(load: Load) -> float:
    return round(len(load.samples) / (load.samples[-1].ended - load.samples[0].begun), 1)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)

"""What all front ends share: leases, terms, verdicts and what is counted about them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import generate_latest

from server.core import clock
from server.core.images import PixelArray
from server.engines.onnxruntime import EmbeddedEngine
from server.engines.repository import Repository
from server.errors import EngineFault
from server.monitoring.exposition import Counted
from server.service.fleet import CarryOut
from server.service.outcome import Outcome
from server.service.service import Service
from tests.server.small import Small, service_over, started
from tests.server.tiny import SIZE, encoded, noise, publish
from tests.waiting import until


def flat(red: float) -> PixelArray:
    """An image whose score is `red`."""
    pixels = np.zeros((3, SIZE, SIZE), np.uint8)
    pixels[0] = round(255 * red)
    return PixelArray(pixels)


@asynccontextmanager
async def serving(repository: Path, **settings: Any) -> Any:
    service = service_over(EmbeddedEngine(Repository(repository), threads=1), **settings)
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


def run(scenario: Callable[[], Awaitable[Any]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


def value(service: Service, line: str) -> float | None:
    """A series' value; None where there is no such series."""
    for row in generate_latest(service.metrics.registry).decode().splitlines():
        if row.startswith(line + " "):
            return float(row.rpartition(" ")[2])
    return None


def verdicts(outcome: Outcome) -> list[str]:
    return [judged.verdict for judged in outcome.judgements]


def test_an_outcome_has_a_verdict_for_each_image_and_is_counted(tmp_path: Path) -> None:
    """By the thresholds of the version that answered, under its name."""

    def stricter(contract: dict[str, Any]) -> None:
        contract["thresholds"]["suspicious"]["score"] = 0.05
        contract["thresholds"]["adversarial"]["score"] = 0.1

    async def scenario() -> None:
        publish(tmp_path)
        publish(tmp_path, "2", stricter)
        async with serving(tmp_path, version="1", canary="2:0") as service:
            images = [flat(red) for red in (0.2, 0.5, 0.9)]
            with service.lease() as lease:
                outcome = await service.run(lease, images, service.terms())
            assert (outcome.model.version, verdicts(outcome)) == (1, ["clean", "suspicious", "adversarial"])
            with service.lease("awnet", 2) as lease:
                outcome = await service.run(lease, images, service.terms())
            assert (outcome.model.version, verdicts(outcome)) == (2, ["adversarial"] * 3)
            assert value(service, 'awnet_verdicts_total{model="awnet",verdict="clean",version="1"}') == 1
            assert value(service, 'awnet_verdicts_total{model="awnet",verdict="adversarial",version="2"}') == 3
            assert value(service, 'awnet_score_count{model="awnet",version="1"}') == 3
            assert value(service, 'awnet_stage_seconds_count{stage="inference"}') == 2
            threshold = 'awnet_threshold{domain="pristine",model="awnet",verdict="adversarial",version="2"}'
            assert value(service, threshold) == 0.1

    run(scenario)


def test_an_answer_that_is_not_finite_is_a_fault_and_counts_no_verdict(tmp_path: Path) -> None:
    """NaN is over no threshold, and must not read as clean."""

    async def scenario() -> None:
        async with serving(publish(tmp_path)) as service:
            with service.lease() as lease:
                inner = lease._open.runner

                class Spoilt:
                    async def infer(self, *arguments: Any) -> Any:
                        signals = await inner.infer(*arguments)
                        signals.p_type[0, 0] = np.nan
                        return signals

                lease._open.runner = Spoilt()
                with pytest.raises(EngineFault, match="finite"):
                    await service.run(lease, [flat(0.1)], service.terms())
                lease._open.runner = inner
            assert value(service, 'awnet_verdicts_total{model="awnet",verdict="clean",version="1"}') == 0

    run(scenario)


def test_nobody_waits_longer_than_the_setting_allows(tmp_path: Path) -> None:
    """A client can only ask for less."""

    async def scenario() -> None:
        async with serving(publish(tmp_path), timeout_seconds=2) as service:
            for seconds, allowed in ((None, 2), (0.5, 0.5), (99, 2)):
                before = clock.now()
                deadline = service.terms(seconds).deadline
                assert before + allowed <= deadline <= clock.now() + allowed
            assert service.terms(99, "low").priority == "low"

    run(scenario)


def test_readiness_holds_during_a_reload_and_ends_with_the_server(tmp_path: Path) -> None:
    """A balancer must not look away because a version is being tried."""

    async def scenario() -> None:
        async with serving(publish(tmp_path)) as service:
            assert service.ready
            publish(tmp_path, "2", seed=1)
            service.reload_soon()

            def replaced() -> bool:
                assert service.ready
                return service.models.latest().version == 2

            await until(replaced)
            service.drain()
            assert not service.ready
        assert not service.models.ready
        assert value(service, "awnet_engine_up") == 0

    run(scenario)


def test_reloads_asked_for_while_one_runs_are_not_lost(tmp_path: Path) -> None:
    """Two signals in a row: what came between them is taken too."""

    async def scenario() -> None:
        async with serving(publish(tmp_path)) as service:
            for version in ("2", "3", "4"):
                publish(tmp_path, version, seed=int(version))
                service.reload_soon()
                await asyncio.sleep(0)
            await until(lambda: service.models.latest().version == 4)

    run(scenario)


def test_polling_takes_a_new_version(tmp_path: Path) -> None:
    """Without anybody asking."""

    async def scenario() -> None:
        async with serving(publish(tmp_path), poll_seconds=0.02) as service:
            publish(tmp_path, "2", seed=1)
            await until(lambda: service.models.latest().version == 2)

    run(scenario)


def test_the_series_of_a_closed_version_are_dropped(tmp_path: Path) -> None:
    """Or a server that lives long would grow without end."""

    async def scenario() -> None:
        async with serving(publish(tmp_path), versions_kept=1) as service:
            for number in range(2, 8):
                publish(tmp_path, str(number), seed=number)
                await service.models.reload()
                with service.lease() as lease:
                    await service.run(lease, [flat(0.5)], service.terms())
            await until(lambda: not service.models.status()["closing"])
            text = generate_latest(service.metrics.registry).decode()
            assert {number for number in range(1, 8) if f'version="{number}"' in text} == {7}
            assert value(service, 'awnet_verdicts_total{model="awnet",verdict="suspicious",version="7"}') == 1

    run(scenario)


class Twice:
    """A fleet of two processes of which the other has counted the same and does the same."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def loaded(self) -> None:
        self.heard.append("loaded")

    async def counted(self, here: Counted) -> Counted:
        return Counted(here.families, [*here.clients, *here.clients], 2 * here.flagged_images)

    async def operate(self, here: CarryOut, do: str, given: Sequence[Any]) -> dict[str, Any]:
        self.heard.append(do)
        return {"workers": 2, **await here(do, given)}

    async def stop(self) -> None:
        self.heard.append("stop")


def test_what_concerns_all_processes_is_asked_of_the_fleet(tmp_path: Path) -> None:
    """Counts, reports and an operator's calls; it hears when the models are proven and, before they go, of the end."""

    async def scenario() -> None:
        fleet = Twice()
        engine = EmbeddedEngine(Repository(publish(tmp_path)), threads=1)
        service = service_over(engine, fleet)
        async with started(service):
            await until(lambda: service.ready)
            service.monitor.clients.flagged("203.0.113.9")
            report = await service.detection()
            assert report["flagged_images"] == 2
            assert len(report["clients"]) == 2  # type: ignore[arg-type]
            assert b"awnet_flagged_clients 1.0" in (await service.exposition(""))[0]
            status = await service.operate("status")
            assert (status["workers"], status["models"][0]["serving"]) == (2, "1")
            assert fleet.heard == ["loaded", "status"]
        assert fleet.heard == ["loaded", "status", "stop"]

    run(scenario)


def test_alone_a_process_is_all_there_is(tmp_path: Path) -> None:
    """What it has counted is the report, and a call is carried out once."""

    async def scenario() -> None:
        async with serving(publish(tmp_path)) as service:
            service.monitor.clients.flagged("203.0.113.9")
            assert (await service.detection())["flagged_images"] == 1
            assert "workers" not in await service.operate("status")

    run(scenario)


@pytest.mark.process
def test_an_image_that_has_waited_to_be_decoded_finds_its_place_in_the_queue(tmp_path: Path) -> None:
    """Whoever finds none is told so before the work, and not after it."""
    small = Small(tmp_path, max_pixels=1_000_000)
    for side, admitted in ((SIZE, False), (800, True)):
        assert small.http("POST", "/predict", body=encoded(noise(side, side), "WEBP"))[0] == 200
        assert small.engine.asked[-1].admitted is admitted
    small.run(small.service.decoding.pool.close())
    small.close()

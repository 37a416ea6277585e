"""The engine and the server before a real Triton, started from the wheel: values, batches, faults, new versions."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from server.core.engine import self_test
from server.engines.triton.engine import TritonEngine
from server.engines.triton.runner import RemoteRunner
from server.errors import AWNetError, EngineFault, EngineUnavailable, ModelNotFound, Unavailable
from tests.requires import ROOT, requires, triton_venv
from tests.server.engines.triton.fake_triton import SHA256
from tests.server.engines.triton.real_triton import RealTriton
from tests.server.engines.triton.test_triton import images, inputs, plays, right, soon
from tests.server.tiny import Running, encoded, noise
from tests.waiting import eventually, until

pytestmark = requires("triton")


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealTriton]:
    """One for all tests; whoever kills it starts it again."""
    running = RealTriton(tmp_path_factory.mktemp("triton"))
    yield running
    running.stop()


async def opened(triton: RealTriton, **options: Any) -> tuple[TritonEngine, RemoteRunner]:
    engine = TritonEngine([triton.url], **{"decode_threads": 2, "patience_seconds": 60, **options})
    await engine.start()
    runner = await engine.open("awnet", 1)
    await runner.warm()
    return engine, runner


async def closed(engine: TritonEngine, runner: RemoteRunner) -> None:
    await runner.close()
    await engine.close()


@plays
async def test_golden_values_contract_and_hash_come_through(triton: RealTriton) -> None:
    """What the exporter wrote is what the engine reads, and the numbers are the model's."""
    engine, runner = await opened(triton)
    await self_test(runner)
    assert await engine.catalogue() == {"awnet": (1,)}
    assert runner.model.contract.labels[8] == "ship" and len(runner.model.sha256) == 64
    with pytest.raises(ModelNotFound):
        await engine.open("awnet", 9)
    await closed(engine, runner)


@plays
async def test_concurrent_requests_are_batched_and_never_mixed_up(triton: RealTriton) -> None:
    """Requests of 1 to 7 images at once: each gets its own rows, and sooner or later two share an execution."""
    engine, runner = await opened(triton, capacity=1000)

    def executions() -> int:
        with InferenceServerClient(triton.url) as client:
            return int(client.get_inference_statistics("awnet", "1").model_stats[0].execution_count)

    for _ in range(20):  # how many meet in Triton's queue is a matter of its speed and of the client's
        before = executions()
        answers = await asyncio.gather(*(runner.infer(inputs(1 + seed % 7, seed), soon(60)) for seed in range(200)))
        assert all(right(signals, images(1 + seed % 7, seed)) for seed, signals in enumerate(answers))
        if executions() - before < 200:
            break
    else:
        pytest.fail("4,000 requests, 200 at a time, took as many executions: Triton batches nothing")
    assert right(await runner.infer(inputs(150), soon(60)), images(150))  # more than Triton's largest batch
    await closed(engine, runner)


class Load:
    """Clients that ask one after the other and keep every outcome."""

    def __init__(self, runner: RemoteRunner, clients: int = 8) -> None:
        self.outcomes: list[tuple[float, AWNetError | None]] = []  # (when, what went wrong)
        self.wrong = 0
        self._leaving = False
        self._tasks = [asyncio.create_task(self._client(runner, seed)) for seed in range(clients)]

    async def _client(self, runner: RemoteRunner, seed: int) -> None:
        given, expected = inputs(1, seed), images(1, seed)
        while not self._leaving:
            try:
                self.wrong += not right(await runner.infer(given, soon(30)), expected)
                self.outcomes.append((time.monotonic(), None))
            except AWNetError as error:
                self.outcomes.append((time.monotonic(), error))
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        self._leaving = True
        await asyncio.gather(*self._tasks)

    def answered_since(self, moment: float) -> bool:
        return any(when > moment and error is None for when, error in self.outcomes)


@pytest.mark.parametrize("fault", ["stopped", "killed"])
def test_a_fault_of_triton_costs_unavailable_answers_only(triton: RealTriton, fault: str) -> None:
    """SIGSTOP and kill -9 under load: 503 at most; the breaker opens long before a deadline, and closes by itself.

    In how many seconds, `python -m benchmarks.faults` measures.
    """

    async def play() -> None:
        engine, runner = await opened(triton, probe_seconds=0.5)
        load = Load(runner)
        await until(lambda: len(load.outcomes) > 100)
        struck = time.monotonic()
        triton.signal_server(signal.SIGSTOP if fault == "stopped" else signal.SIGKILL)
        await until(lambda: not engine.up())
        assert time.monotonic() - struck < 20, "a deadline is 30 s away"
        await until(lambda: len([error for _, error in load.outcomes if isinstance(error, EngineUnavailable)]) > 100)
        if fault == "stopped":
            triton.signal_server(signal.SIGCONT)
        else:
            await asyncio.to_thread(triton.popen.wait, 30)
            assert triton.shared_memory() == []
            await asyncio.to_thread(triton.start)
        back = time.monotonic()
        await until(lambda: load.answered_since(back))
        await load.end()
        assert load.wrong == 0
        errors = [error for when, error in load.outcomes if error is not None]
        assert errors and all(isinstance(error, Unavailable) for error in errors)
        assert all(when > struck for when, error in load.outcomes if error is not None)
        assert sum(isinstance(error, EngineFault) for error in errors) <= 8  # one a client: what was in flight
        await closed(engine, runner)

    asyncio.run(asyncio.wait_for(play(), 300))


def test_triton_ends_of_itself_after_the_engine_closed_and_leaves_no_memory(tmp_path: Path) -> None:
    """Its exit timeout of 20 s is for requests that stay open; it ends of itself, before that has passed."""
    triton = RealTriton(tmp_path)

    async def play() -> None:
        engine, runner = await opened(triton)
        assert right(await runner.infer(inputs(1), soon()), images(1))
        assert triton.shared_memory()
        await closed(engine, runner)

    asyncio.run(play())
    assert triton.stop() == 0
    log = (tmp_path / "triton.log").read_text("utf-8")
    assert "Found 0 live models and 0 in-flight" in log and "timeout expired" not in log
    assert triton.shared_memory() == []


def test_models_cannot_be_loaded_or_unloaded_over_the_network(triton: RealTriton) -> None:
    """The build predates fixes to that interface, so it stays shut."""
    for call in ("load", "unload"):
        assert not triton.answers(f"/v2/repository/models/awnet/{call}", "POST")
    assert triton.answers("/v2/models/awnet/ready")


def test_a_spoilt_model_is_not_loaded(tmp_path: Path) -> None:
    """`model.py` holds the file against the hash that config.pbtxt names, and Triton refuses to start with it."""
    triton = RealTriton(tmp_path)
    assert triton.stop() == 0
    file = triton.converted / "awnet/1/model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    try:
        with pytest.raises(RuntimeError, match="ended with status"):
            triton.start()
        assert "model.onnx of version 1 has SHA-256" in triton.text()
    finally:
        triton.stop()


def test_predict_answers_alike_through_triton_and_embedded(triton: RealTriton) -> None:
    """The same image, the same model: the same verdict, score and class."""
    image = encoded(noise(60, 40))
    answers = []
    for settings in ({}, {"engine": "triton", "triton_urls": triton.url}):
        server = Running(triton.exported, **settings)
        try:
            server.wait_ready()
            answer = server.http.post("/predict", files={"image": image}, timeout=60)
            assert answer.status_code == 200, answer.text
            answers.append(answer.json())
        finally:
            assert server.stop() == 0
    embedded, through = answers
    assert embedded["model"] == through["model"]
    ours, theirs = embedded["results"][0], through["results"][0]
    assert ours["adversarial"]["verdict"] == theirs["adversarial"]["verdict"]
    assert ours["adversarial"]["score"] == pytest.approx(theirs["adversarial"]["score"], rel=1e-4)
    assert [p["class_id"] for p in ours["predictions"]] == [p["class_id"] for p in theirs["predictions"]]


def test_a_new_version_takes_over_without_a_failed_request(tmp_path: Path) -> None:
    """Triton finds it in its repository, the server finds it at Triton, and traffic moves."""
    triton = RealTriton(tmp_path, "--mode", "poll", "--poll-seconds", "1")
    server = Running(triton.exported, engine="triton", triton_urls=triton.url, poll_seconds=0.5)
    image, statuses, versions = encoded(noise()), [], []
    leaving = threading.Event()

    def client() -> None:
        while not leaving.is_set():
            answer = server.http.post("/predict", files={"image": image}, timeout=60)
            statuses.append(answer.status_code)
            versions.append(answer.json().get("model", {}).get("version"))

    try:
        server.wait_ready()
        asking = threading.Thread(target=client)
        asking.start()
        try:
            triton.add(2)
            eventually(lambda: versions and versions[-1] == "2")
        finally:
            leaving.set()
            asking.join()
        assert set(statuses) == {200}
        assert versions == sorted(versions)
        # The contract of the second has domains and over a megabyte; both came through config.pbtxt.
        for version, domains in ("1", ["pristine"]), ("2", ["pristine", "pool"]):
            described = server.http.get(f"/model?version={version}").json()
            assert [domain["name"] for domain in described["domains"]] == domains
        judged = server.http.post("/predict", files={"image": image}).json()["results"][0]["adversarial"]
        assert (judged["domain"], judged["thresholds"]) == ("pristine", {"suspicious": 0.3, "adversarial": 0.5})
    finally:
        server.stop()
        triton.stop()


@requires("wrk")
def test_the_benchmark_measures_both_engines(tmp_path: Path) -> None:
    """A short run: no failed request, and Triton's own counters agree that it did the work."""
    quick = ["--rounds", "1", "--seconds", "1", "--clients", "2"]
    command = [sys.executable, "-m", "benchmarks.deployment.triton", *quick]
    command += ["--venv", str(triton_venv()), "--out", str(tmp_path / "triton")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300, capture_output=True)
    report = json.loads((tmp_path / "triton.json").read_text())
    for engine in ("embedded", "triton"):
        row = report["engines"][engine]["2"]
        assert row["rps"] > 0 and row["failed"] == 0
        assert row["total_ms"] >= row["inference_ms"] > 0
    assert 0 < report["engines"]["triton"]["2"]["triton_ms"] < report["engines"]["triton"]["2"]["total_ms"]
    assert "| 2 | triton |" in (tmp_path / "triton.md").read_text()


def test_the_tiny_models_differ() -> None:
    """Otherwise a mix-up of versions would go unnoticed here."""
    assert len(set(SHA256.values())) == len(SHA256)
    assert not np.array_equal(images(1, 0), images(1, 1))

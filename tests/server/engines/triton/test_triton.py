"""The Triton engine against a small Triton in this process: what is sent where, and what is never believed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
import pytest

from benchmarks.harness.processes import free_port
from server.core import clock
from server.core.domains import locate
from server.core.engine import Signals, Terms, self_test
from server.core.images import EncodedImage, Limits, PixelArray
from server.core.modes import LOGITS
from server.engines.triton import engine as engine_module
from server.engines.triton import health
from server.engines.triton.engine import TritonEngine, parse_metadata
from server.engines.triton.runner import RemoteRunner
from server.errors import (
    AWNetError,
    ContractError,
    DeadlineExceeded,
    EngineFault,
    EngineUnavailable,
    ImageError,
    ModelNotFound,
    QueueFull,
    SelfTestFailed,
    StartupError,
)
from tests.server.engines.triton.fake_triton import CONTRACTS, FILES, MODES, OUTPUTS, SHA256, FakeTriton, fakes
from tests.server.tiny import SIZE, encoded, noise
from tests.waiting import settle, until

PROBE = 0.1
SESSION = ort.InferenceSession(FILES[1], providers=["CPUExecutionProvider"])


def images(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, SIZE, SIZE), np.uint8)


def inputs(count: int, seed: int = 0) -> list[PixelArray]:
    return [PixelArray(image) for image in images(count, seed)]


def right(signals: Signals, given: np.ndarray[Any, Any]) -> bool:
    """Whether these are the model's answers, row by row."""
    expected = SESSION.run(list(OUTPUTS), {"image": given})
    return all(
        np.allclose(getattr(signals, name), want, atol=1e-4) for name, want in zip(OUTPUTS, expected, strict=True)
    )


def soon(seconds: float = 60.0) -> Terms:
    """A deadline that is far away, unless told otherwise."""
    return Terms(clock.now() + seconds)


def plays(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test; a hang fails it."""

    def played(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 120))

    played.__doc__ = test.__doc__
    played.__name__ = test.__name__
    played.__signature__ = __import__("inspect").signature(test)  # type: ignore[attr-defined]
    return played


@asynccontextmanager
async def engine_of(*given: FakeTriton, **options: Any) -> AsyncIterator[TritonEngine]:
    engine = TritonEngine(
        [fake.url for fake in given], **{"probe_seconds": PROBE, "decode_threads": 2, "patience_seconds": 30, **options}
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def opened(*given: FakeTriton, **options: Any) -> AsyncIterator[tuple[TritonEngine, RemoteRunner]]:
    """Every fake running and up, and version 1 open."""
    async with fakes(*given), engine_of(*given, **options) as engine:
        await until(lambda: all(peer.state == "up" for peer in engine.balancer.addresses))
        runner = await engine.open("awnet", 1)
        yield engine, runner
        for fake in given:
            fake.gate.set()
            fake.thawed.set()
        await runner.close()


def state(engine: TritonEngine, index: int = 0) -> str:
    return engine.balancer.addresses[index].state


@plays
async def test_answers_are_those_of_the_model() -> None:
    """One image or several, rows in the order of the request, times told."""
    async with opened(FakeTriton()) as (engine, runner):
        await runner.warm()
        await self_test(runner)
        for count in (1, 5):
            signals = await runner.infer(inputs(count), soon())
            assert right(signals, images(count))
            assert signals.inference_seconds > 0 and signals.decode_seconds >= 0 and signals.queue_seconds >= 0
        assert engine.waiting() == 0 and engine.up()


@plays
async def test_a_mode_asks_for_its_own_logits_and_no_others() -> None:
    """Each answer is the branch's that was asked for, the self-test proves all, and nothing else is sent for."""
    fake = FakeTriton(MODES)
    session = ort.InferenceSession(FILES[MODES], providers=["CPUExecutionProvider"])
    async with fakes(fake), engine_of(fake) as engine:
        runner = await engine.open("awnet", MODES)
        assert runner.model.contract.modes == ("auto", "robust", "natural")
        await runner.warm()
        await self_test(runner)
        given = images(6)
        asked = [(mode, row) for mode in LOGITS for row in range(6)]
        del fake.asked[:]
        answers = await asyncio.gather(*(runner.infer([PixelArray(given[row])], soon(), m) for m, row in asked))
        for (mode, row), signals in zip(asked, answers, strict=True):
            [want] = session.run([LOGITS[mode]], {"image": given[row : row + 1]})
            np.testing.assert_allclose(signals.logits, want, atol=1e-4)
        wanted = Counter((LOGITS[mode], "p_type", "omega") for mode, _ in asked)
        assert Counter(map(tuple, fake.asked)) & wanted == wanted
        await runner.close()


@plays
async def test_a_triton_that_leaves_a_modes_output_out_offers_no_such_mode() -> None:
    """One configuration is of all versions, so that it names no output which one of them lacks."""
    fake = FakeTriton(1, MODES)
    async with fakes(fake), engine_of(fake) as engine:
        runner = await engine.open("awnet", MODES)
        assert runner.model.contract.modes == ("auto",)
        await self_test(runner)
        await runner.close()


@plays
async def test_contract_and_hash_come_from_the_models_configuration() -> None:
    """No file of the model is needed beside the server."""
    async with opened(FakeTriton()) as (_, runner):
        assert (runner.model.name, runner.model.version, runner.model.sha256) == ("awnet", 1, SHA256[1])
        assert runner.model.contract.thresholds.adversarial.score == 0.77


@plays
async def test_domains_come_from_the_models_configuration_and_judge_its_images() -> None:
    """However many bytes they are; statistics are measured where images are decoded, for files and tensors alike."""
    async with opened(FakeTriton(1, 2)) as (engine, first):
        second = await engine.open("awnet", 2)
        assert len(json.dumps(CONTRACTS[2])) > 1_000_000
        assert [domain.name for domain in second.model.contract.domains] == ["pristine", "pool"]
        assert [domain.name for domain in first.model.contract.domains] == ["pristine"]
        flat = np.full((3, SIZE, SIZE), 90, np.uint8)
        given = [EncodedImage(encoded(noise()), Limits()), EncodedImage(encoded(noise(), "JPEG"), Limits())]
        given += [PixelArray(images(1)[0]), PixelArray(flat)]  # type: ignore[list-item]
        await second.infer(given, soon())
        found = [locate(second.model.contract.domains, image.traits) for image in given]
        assert [why for _, why in found] == [None, None, None, "few colours"]
        assert [locate(first.model.contract.domains, image.traits)[1] for image in given] == [None, "lossy", None, None]
        await second.close()


@plays
async def test_the_catalogue_is_what_is_ready_and_described() -> None:
    """A version without a contract is none of ours; a new one changes the fingerprint, an outage does not."""
    fake = FakeTriton(1, 2, 3)
    del fake.parameters["contract.2"]
    async with opened(fake) as (engine, _):
        assert await engine.catalogue() == {"awnet": (1, 3)}
        before = await engine.fingerprint()
        assert await engine.fingerprint() == before
        fake.versions.remove(3)
        after = await engine.fingerprint()
        assert after != before
        await fake.stop()
        await until(lambda: not engine.up())
        assert await engine.fingerprint() == after
        with pytest.raises(StartupError):
            await engine.catalogue()
        await fake.start()


@plays
async def test_versions_count_once_every_triton_has_them() -> None:
    """Traffic moves to a new version when all can serve it."""
    first, second = FakeTriton(1, 2), FakeTriton(1)
    async with opened(first, second) as (engine, _):
        assert await engine.catalogue() == {"awnet": (1,)}
        second.versions.append(2)
        assert await engine.catalogue() == {"awnet": (1, 2)}


@plays
async def test_every_call_carries_the_metadata_and_none_controls_models() -> None:
    """A key for a gateway goes with heartbeats and proofs too; load, unload and index are never called."""
    fake = FakeTriton()
    async with opened(fake, metadata={"authorization": "Bearer abc"}) as (engine, runner):
        await runner.warm()
        await runner.infer(inputs(1), soon())
        await engine.catalogue()
        await until(lambda: len([name for name, _ in fake.seen if name == "ServerLive"]) > 2)
    assert fake.calls() == {"ServerLive", "ModelStatistics", "ModelConfig", "ModelMetadata", "ModelInfer"}
    assert all(metadata.get("authorization") == "Bearer abc" for _, metadata in fake.seen)


def test_metadata_is_read_strictly() -> None:
    """A typing error in a setting is told, without the secret in it."""
    assert parse_metadata("") == {}
    assert parse_metadata("authorization=Bearer a=b, x-team=vision") == {
        "authorization": "Bearer a=b",
        "x-team": "vision",
    }
    for text in ("secret", "=secret", "Upper=secret", "x-bin=secret"):
        with pytest.raises(StartupError) as error:
            parse_metadata(text)
        assert "secret" not in error.value.detail


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-made key and certificate for localhost."""
    folder = tmp_path_factory.mktemp("tls")
    key, pem = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(pem)]
    subprocess.run(command, check=True, capture_output=True)
    return key, pem


@pytest.mark.slow
@plays
async def test_tls_is_spoken_with_the_authority_that_is_named(certificate: tuple[Path, Path]) -> None:
    """With its certificate the connection comes up; with nobody's authority or in the clear it does not."""
    key, pem = certificate
    fake = FakeTriton()
    await fake.start(grpc.ssl_server_credentials([(key.read_bytes(), pem.read_bytes())]))
    try:
        async with engine_of(fake, tls=True, ca=pem) as engine:
            runner = await engine.open("awnet", 1)
            assert right(await runner.infer(inputs(1), soon()), images(1))
            await runner.close()
        for wrong in ({"tls": True}, {"tls": False}):
            with pytest.raises(StartupError, match="no Triton answers"):
                async with engine_of(fake, patience_seconds=1.5, **wrong):
                    pass
    finally:
        await fake.stop()


@plays
async def test_without_a_triton_the_start_says_how_to_get_one() -> None:
    """It waits for a while, because the two may start together, and then names the address and the command."""
    with pytest.raises(StartupError, match="make triton") as error:
        async with engine_of(FakeTriton(), patience_seconds=1):
            pass
    assert "localhost:" in error.value.detail
    fake = FakeTriton()
    engine = TritonEngine([fake.url], probe_seconds=PROBE, patience_seconds=60)
    starting = asyncio.create_task(engine.start())
    await until(lambda: engine._peers and engine._peers[0].reasons)  # it has looked, and nobody was there
    await fake.start()
    await starting
    assert engine.up()
    await engine.close()
    await fake.stop()


@pytest.mark.parametrize("urls", [[], ["http://127.0.0.1:8101"], ["127.0.0.1"], ["a:1", "a:1"]])
def test_an_address_that_is_none_is_refused(urls: list[str]) -> None:
    """Scheme, missing port, the same one twice."""
    with pytest.raises(StartupError):
        TritonEngine(urls)


def test_an_authority_without_tls_is_refused() -> None:
    """Whoever names one believes that the connection is safe."""
    with pytest.raises(StartupError, match="TLS"):
        TritonEngine(["127.0.0.1:8101"], ca=Path("ca.pem"))


@plays
async def test_a_version_that_is_not_as_promised_is_not_opened() -> None:
    """Absent, undescribed, other tensors than its contract, wrong values, empty tensors; version 1 serves on."""
    fake = FakeTriton(1, 2)
    async with opened(fake) as (engine, runner):
        with pytest.raises(ModelNotFound):
            await engine.open("awnet", 9)
        with pytest.raises(ModelNotFound):
            await engine.open("other", 1)
        digest = fake.parameters.pop("sha256.2")
        with pytest.raises(ContractError):
            await engine.open("awnet", 2)
        fake.parameters["sha256.2"] = digest
        fake.shapes["omega"] = [11]
        with pytest.raises(ContractError, match="tensors"):
            await engine.open("awnet", 2)
        fake.shapes["omega"] = [10]
        fake.parameters["contract.2"] = fake.parameters["contract.1"]  # other golden values than this model's
        with pytest.raises(SelfTestFailed, match="off by"):
            await engine.open("awnet", 2)
        assert right(await runner.infer(inputs(1), soon()), images(1))
        assert state(engine) == "up"


@pytest.mark.parametrize("empty", [True, False])
def test_wrong_values_are_never_ready(empty: bool) -> None:
    """A Triton that answers 200 with empty or other tensors opens nothing."""

    async def play() -> None:
        fake = FakeTriton()
        fake.off, fake.empty = 0.01, empty
        async with fakes(fake), engine_of(fake) as engine:
            with pytest.raises(SelfTestFailed):
                await engine.open("awnet", 1)

    asyncio.run(play())


@plays
async def test_a_large_request_is_sent_in_parts_and_comes_back_whole() -> None:
    """More images than Triton's largest batch."""
    fake = FakeTriton(most=4)
    async with opened(fake) as (_, runner):
        fake.rows.clear()
        assert right(await runner.infer(inputs(10), soon()), images(10))
        assert sorted(fake.rows) == [2, 4, 4]


@plays
async def test_a_bad_image_is_named_and_nothing_is_sent() -> None:
    """The first bad one of several, by its place."""
    fake = FakeTriton()
    async with opened(fake) as (engine, runner):
        fake.rows.clear()
        good, bad = encoded(noise()), encoded(noise())[:500]
        with pytest.raises(ImageError) as error:
            await runner.infer([EncodedImage(data, Limits(), i) for i, data in enumerate((good, bad, bad))], soon())
        assert error.value.image == 1 and not fake.rows and engine.waiting() == 0
        assert (await runner.infer([EncodedImage(good, Limits())], soon())).decode_seconds > 0


class Exploding:
    """An image whose decoding fails in a way that nobody foresaw."""

    def pixels(self, size: int) -> np.ndarray[Any, Any]:
        raise RuntimeError("secret")


@plays
async def test_a_fault_in_decoding_fails_that_request_only() -> None:
    """Told as our fault, without its text; the threads live on."""
    async with opened(FakeTriton()) as (engine, runner):
        with pytest.raises(AWNetError, match="something went wrong") as error:
            await runner.infer([Exploding()], soon())
        assert type(error.value) is AWNetError and engine.waiting() == 0
        assert right(await runner.infer(inputs(1), soon()), images(1))


@plays
async def test_a_deadline_is_kept_and_says_nothing_about_triton() -> None:
    """An answer that would come too late is not waited for; a client's short deadlines do not open the breaker."""
    fake = FakeTriton()
    async with opened(fake) as (engine, runner):
        fake.gate.clear()
        for _ in range(5):
            started = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                await runner.infer(inputs(1), soon(0.1))
            assert time.monotonic() - started < 20, "the gate stays closed for longer"
        with pytest.raises(DeadlineExceeded):
            await runner.infer(inputs(1), Terms(clock.now() - 1))
        assert state(engine) == "up" and engine.waiting() == 0
        fake.gate.set()
        await until(lambda: fake.at_once == 0)
        assert right(await runner.infer(inputs(1), soon()), images(1))


@plays
async def test_a_stuck_execution_opens_the_breaker_though_the_process_lives(monkeypatch: Any) -> None:
    """Heartbeats are answered, executions never are: after some in a row the address is left alone."""
    monkeypatch.setattr(engine_module, "STUCK_SECONDS", 0.01)
    fake = FakeTriton()
    async with opened(fake, failures=2) as (engine, runner):
        fake.gate.clear()
        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                await runner.infer(inputs(1), soon(0.5))
        assert state(engine) == "down"


@plays
async def test_a_stopped_triton_is_noticed() -> None:
    """As under SIGSTOP: requests in flight end with 503 long before their deadline, later ones at once; then back.

    Within a second, which `python -m benchmarks.faults` measures.
    """
    changes: list[bool] = []
    fake = FakeTriton()
    async with opened(fake, on_state=lambda url, up: changes.append(up)) as (engine, runner):
        fake.thawed.clear()
        started = time.monotonic()
        with pytest.raises(EngineFault):
            await runner.infer(inputs(1), soon())
        assert time.monotonic() - started < 20, "the deadline is 60 s"
        assert not engine.up()
        with pytest.raises(EngineUnavailable):
            await runner.infer(inputs(1), soon())
        fake.thawed.set()
        await until(engine.up)
        assert right(await runner.infer(inputs(1), soon()), images(1))
        assert changes == [False, True, False, True]


@plays
async def test_a_refused_connection_opens_the_breaker_at_once() -> None:
    """No request after the first waits for anything."""
    fake = FakeTriton()
    async with opened(fake, failures=100) as (engine, runner):
        await fake.stop()
        await until(lambda: not engine.up())
        started = time.monotonic()
        for _ in range(20):
            with pytest.raises(EngineUnavailable):
                await runner.infer(inputs(1), soon())
        assert time.monotonic() - started < 20, "one that waited would wait for 60 s"
        await fake.start()
        await until(engine.up)
        assert right(await runner.infer(inputs(1), soon()), images(1))


@plays
async def test_failures_in_a_row_open_the_breaker_and_proven_values_close_it() -> None:
    """Two of three do not; a success in between starts the count again."""
    fake = FakeTriton()
    async with opened(fake, failures=3) as (engine, runner):

        async def fail(times: int) -> None:
            fake.error = (grpc.StatusCode.INTERNAL, "the backend fell over")
            for _ in range(times):
                with pytest.raises(EngineFault):
                    await runner.infer(inputs(1), soon())
            fake.error = None

        await fail(2)
        assert right(await runner.infer(inputs(1), soon()), images(1))
        await fail(2)
        assert state(engine) == "up"
        fake.error = (grpc.StatusCode.INTERNAL, "the backend fell over")
        with pytest.raises(EngineFault):
            await runner.infer(inputs(1), soon())
        assert state(engine) == "down"
        fake.seen.clear()
        await until(lambda: [name for name, _ in fake.seen].count("ModelInfer") > 2)
        assert state(engine) == "down"  # it lives, and its golden answers still fail
        fake.error = None
        await until(engine.up)
        assert right(await runner.infer(inputs(1), soon()), images(1))


@pytest.mark.parametrize("what", ["values", "hash", "model"])
def test_a_triton_that_comes_back_with_another_model_is_not_used(what: str) -> None:
    """Half-open probes compare hash and golden values, not just liveness."""

    async def play() -> None:
        fake = FakeTriton()
        async with opened(fake) as (engine, runner):
            await fake.stop()
            await until(lambda: not engine.up())
            parameters = dict(fake.parameters)
            if what == "values":
                fake.off = 0.01
            elif what == "hash":
                fake.parameters["sha256.1"] = SHA256[2]
            else:
                fake.versions = [2]
            fake.seen.clear()
            await fake.start()
            await until(lambda: len([name for name, _ in fake.seen if name == "ModelConfig"]) > 2)
            assert not engine.up()
            with pytest.raises(EngineUnavailable):
                await runner.infer(inputs(1), soon())
            fake.off, fake.parameters, fake.versions = 0.0, parameters, [1]
            await until(engine.up)
            assert right(await runner.infer(inputs(1), soon()), images(1))

    asyncio.run(play())


class Switch:
    """A port that leads to one Triton, and after `move` to another: as a balancer, or a restart, does it."""

    def __init__(self, target: FakeTriton) -> None:
        self.target, self.port = target, free_port()
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    def move(self, target: FakeTriton) -> None:
        """Break every connection; the next one, a moment later, ends at `target`."""
        self.target = target
        for writer in tuple(self._open):
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target.port)
        ends = {writer, far_writer}
        self._open |= ends

        async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await source.read(1 << 16):
                    sink.write(data)
                    await sink.drain()
            for end in ends:
                end.transport.abort()

        await asyncio.gather(pass_on(reader, far_writer), pass_on(far_reader, writer))
        self._open -= ends


@plays
async def test_a_new_process_behind_the_address_proves_itself_before_it_answers() -> None:
    """The connection moves at once to another Triton that computes wrongly: no answer of it gets out."""
    good, bad = FakeTriton(), FakeTriton()
    bad.off = 0.01
    switch = Switch(good)
    async with fakes(good, bad):
        listening = await switch.start()
        engine = TritonEngine([switch.url], probe_seconds=PROBE, decode_threads=2, patience_seconds=30)
        await engine.start()
        runner = await engine.open("awnet", 1)
        answers, wrong, faults = 0, 0, 0
        leaving = asyncio.Event()

        async def client(seed: int) -> None:
            nonlocal answers, wrong, faults
            while not leaving.is_set():
                try:
                    signals = await runner.infer(inputs(1, seed), soon())
                    answers += 1
                    wrong += not right(signals, images(1, seed))
                except (EngineUnavailable, EngineFault):
                    faults += 1
                    await asyncio.sleep(0.002)

        clients = [asyncio.create_task(client(seed)) for seed in range(8)]
        for _ in range(5):
            enough = answers + 20
            await until(lambda enough=enough: answers > enough)  # type: ignore[misc]
            bad.rows.clear()
            switch.move(bad)
            await until(lambda: bool(bad.rows) and not engine.up())  # its golden values were looked at
            switch.move(good)
        leaving.set()
        await asyncio.gather(*clients)
        assert answers > 100 and faults and wrong == 0
        await runner.close()
        await engine.close()
        listening.close()


@plays
async def test_a_connection_that_is_renewed_to_the_same_triton_costs_what_was_in_flight() -> None:
    """Requests that come meanwhile wait for the proof, and are answered."""
    good = FakeTriton()
    switch = Switch(good)
    changes: list[bool] = []
    async with fakes(good):
        listening = await switch.start()
        engine = TritonEngine([switch.url], decode_threads=2, on_state=lambda url, up: changes.append(up))
        await engine.start()
        runner = await engine.open("awnet", 1)
        (address,) = engine.balancer.addresses
        for seed in range(5):
            epoch = address.epoch
            switch.move(good)
            await until(lambda epoch=epoch: address.epoch > epoch)  # type: ignore[misc]
            assert right(await runner.infer(inputs(1, seed), soon()), images(1, seed))
        assert changes == [False, True]
        await runner.close()
        await engine.close()
        listening.close()


@plays
async def test_a_model_that_goes_bad_is_found_by_the_next_probe(monkeypatch: Any) -> None:
    """The process and its connection live on, its values change: by the next probe it is left alone."""
    monkeypatch.setattr(health, "PROBE_EVERY_SECONDS", 0.2)
    fake = FakeTriton()
    async with opened(fake) as (engine, _):
        fake.off = 0.01
        await until(lambda: not engine.up())
        fake.off = 0.0
        await until(engine.up)


@plays
async def test_a_request_goes_elsewhere_only_where_nothing_was_executed() -> None:
    """A version that one Triton lost: the other answers. An execution that failed: it does not run twice."""
    first, second = FakeTriton(), FakeTriton()
    async with opened(first, second) as (engine, runner):
        first.error = (grpc.StatusCode.UNAVAILABLE, "Request for unknown model: 'awnet' is not at ready state")
        second.rows.clear()
        for _ in range(6):
            assert right(await runner.infer(inputs(1), soon()), images(1))
        assert len(second.rows) == 6 and state(engine, 0) == "up"
    first, second = FakeTriton(), FakeTriton()
    async with opened(first, second, failures=100) as (_, runner):
        first.error = second.error = (grpc.StatusCode.INTERNAL, "failed halfway")
        first.rows.clear(), second.rows.clear()
        with pytest.raises(EngineFault):
            await runner.infer(inputs(1), soon())
        assert len(first.rows) + len(second.rows) == 1


@plays
async def test_the_death_of_one_of_two_costs_at_most_what_was_in_flight_there() -> None:
    """Everything after it is answered by the other."""
    first, second = FakeTriton(), FakeTriton()
    async with opened(first, second) as (engine, runner):
        first.gate.clear()
        second.gate.clear()
        asked = [asyncio.create_task(runner.infer(inputs(1, seed), soon())) for seed in range(8)]
        await until(lambda: first.at_once == 4 and second.at_once == 4)
        await first.stop()
        second.gate.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(a, EngineFault) for a in answers) == 4
        assert sum(isinstance(a, Signals) for a in answers) == 4
        for seed in range(8):
            assert right(await runner.infer(inputs(1, seed), soon()), images(1, seed))
        assert engine.up()
        first.gate.set()
        await first.start()
        await until(lambda: state(engine, 0) == "up")


@plays
async def test_the_least_loaded_triton_is_asked() -> None:
    """One that holds a request of 8 images gets the next when the other holds more."""
    first, second = FakeTriton(), FakeTriton()
    async with opened(first, second) as (_, runner):
        first.gate.clear()
        second.gate.clear()
        large = asyncio.create_task(runner.infer(inputs(8), soon()))
        await until(lambda: first.at_once + second.at_once == 8)
        loaded, other = (first, second) if first.at_once else (second, first)
        small = [asyncio.create_task(runner.infer(inputs(1), soon())) for _ in range(8)]
        await until(lambda: other.at_once == 8)
        assert loaded.at_once == 8
        first.gate.set()
        second.gate.set()
        await asyncio.gather(large, *small)
        first.rows.clear(), second.rows.clear()
        for _ in range(10):
            await runner.infer(inputs(1), soon())
        assert len(first.rows) == len(second.rows) == 5  # idle ones take turns


@plays
async def test_images_at_a_triton_are_bounded_and_the_rest_waits_in_order() -> None:
    """Never more than `in_flight` there; 'low' goes when nothing else waits."""
    fake = FakeTriton()
    async with opened(fake, in_flight=4) as (engine, runner):
        fake.gate.clear()
        fake.most = 0
        held = [asyncio.create_task(runner.infer(inputs(1), soon())) for _ in range(4)]
        await until(lambda: fake.at_once == 4)
        fake.order.clear()

        def flat(value: int) -> list[PixelArray]:
            return [PixelArray(np.full((3, SIZE, SIZE), value, np.uint8))]

        later = []
        for value, priority in ((1, "low"), (2, "normal"), (3, "low"), (4, "normal"), (5, "normal"), (6, "normal")):
            terms = Terms(clock.now() + 60, priority)  # type: ignore[arg-type]
            later.append(asyncio.create_task(runner.infer(flat(value), terms)))
        await until(lambda: sum(map(len, engine.balancer._waiting.values())) == 6)
        assert engine.waiting() == 10 and fake.at_once == 4
        fake.gate.set()
        await asyncio.gather(*held, *later)
        assert fake.most == 4
        assert set(fake.order[:4]) == {2, 4, 5, 6} and set(fake.order[4:]) == {1, 3}
        assert engine.waiting() == 0


@plays
async def test_a_full_queue_refuses_and_a_request_given_up_frees_its_place() -> None:
    """The bound holds over all requests; a cancelled one counts no more."""
    fake = FakeTriton()
    async with opened(fake, in_flight=2, capacity=4) as (engine, runner):
        fake.gate.clear()
        asked = [asyncio.create_task(runner.infer(inputs(1), soon())) for _ in range(4)]
        await until(lambda: engine.waiting() == 4)
        with pytest.raises(QueueFull):
            await runner.infer(inputs(1), soon())
        asked[3].cancel()
        await until(lambda: engine.waiting() == 3)
        with pytest.raises(DeadlineExceeded):
            await runner.infer(inputs(1), soon(0.1))
        assert engine.waiting() == 3
        fake.gate.set()
        assert all(right(signals, images(1)) for signals in await asyncio.gather(*asked[:3]))
        assert right(await runner.infer(inputs(6), soon()), images(6))  # more than the whole queue, when it is empty


@plays
async def test_a_version_answers_what_it_accepted_before_it_closes() -> None:
    """Closing waits; afterwards nothing more is accepted."""
    fake = FakeTriton()
    async with opened(fake) as (engine, runner):
        fake.gate.clear()
        asked = asyncio.create_task(runner.infer(inputs(1), soon()))
        await until(lambda: fake.at_once == 1)
        closing = asyncio.create_task(runner.close())
        await settle()
        assert not closing.done()
        with pytest.raises(EngineUnavailable):
            await runner.infer(inputs(1), soon())
        fake.gate.set()
        await closing
        assert right(asked.result(), images(1))
        assert engine.up()


@plays
async def test_a_version_opened_twice_serves_until_both_are_closed() -> None:
    """A reload may open what is open already, and close it again."""
    async with opened(FakeTriton()) as (engine, runner):
        again = await engine.open("awnet", 1)
        await again.close()
        assert right(await runner.infer(inputs(1), soon()), images(1))


@plays
async def test_a_version_replaced_in_place_is_another_model() -> None:
    """The fingerprint shows it, the new file is opened as what it is, and the old one is never mixed up with it."""
    fake = FakeTriton(1)
    async with opened(fake) as (engine, runner):
        before = await engine.fingerprint()
        fake.replace(1, 2)
        assert await engine.fingerprint() != before
        new = await engine.open("awnet", 1)
        assert new.model.sha256 == SHA256[2]
        assert not right(await new.infer(inputs(1), soon()), images(1))
        assert await engine.catalogue() == {"awnet": (1,)}
        await new.close()
        engine.balancer.addresses[0].nudge.set()  # type: ignore[attr-defined]
        fake.replace(1, 1)
        await until(engine.up)
        assert right(await runner.infer(inputs(1), soon()), images(1))


@plays
async def test_versions_are_served_side_by_side() -> None:
    """Opened, answering and closed on their own."""
    fake = FakeTriton(1, 2)
    async with opened(fake) as (engine, first):
        second = await engine.open("awnet", 2)
        a, b = await asyncio.gather(first.infer(inputs(2), soon()), second.infer(inputs(2), soon()))
        assert right(a, images(2)) and not np.allclose(a.logits, b.logits, atol=0.01)
        await second.close()
        assert right(await first.infer(inputs(1), soon()), images(1))

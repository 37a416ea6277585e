"""The Open Inference Protocol over gRPC: the same answers as over HTTP, and the status of every refusal."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc.aio as triton
from prometheus_client import generate_latest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.harness.processes import free_port, rss_mb
from server.core import clock
from server.core.modes import LOGITS
from server.errors import DeadlineExceeded, EngineFault, EngineUnavailable, QueueFull, StartupError
from server.oip.grpc_front import SERVED, GrpcFront
from tests.server.schema_3 import publish_modes
from tests.server.small import Small
from tests.server.tiny import SIZE, Running, encoded, noise
from tests.waiting import settle, until

IMAGES = np.random.default_rng(5).integers(0, 256, (3, 3, SIZE, SIZE), np.uint8)
PNG = encoded(noise(40, 40))
Status = grpc.StatusCode


class Served:
    """A small service behind gRPC, and how a test talks to it."""

    def __init__(self, small: Small) -> None:
        self.small = small
        self.front = GrpcFront(small.service, "127.0.0.1", 0)
        self.port = small.run(self.front.start())

    def call(self, use: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
        """Run `use` with a stub of the service."""

        async def go() -> Any:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", **options) as channel:
                return await use(service_pb2_grpc.GRPCInferenceServiceStub(channel))

        return self.small.run(go())

    def infer(self, message: Any, **options: Any) -> Any:
        return self.call(lambda stub: stub.ModelInfer(message, timeout=60), **options)

    def refused(self, message: Any, status: grpc.StatusCode = Status.INVALID_ARGUMENT, **options: Any) -> str:
        """The details of a refusal of `message`, which must have this status."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            self.infer(message, **options)
        assert caught.value.code() == status, caught.value.details()
        return str(caught.value.details())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    small = Small(tmp_path_factory.mktemp("repository"))
    running = Served(small)
    yield running
    small.run(running.front.stop(0))
    small.close()


def image(images: Any = IMAGES, **changes: Any) -> Any:
    """A request with the tensor `image` as raw bytes."""
    given = {"name": "image", "datatype": "UINT8", "shape": images.shape}
    whole = {"model_name": "awnet", "inputs": [given], "raw_input_contents": [images.tobytes()]}
    return service_pb2.ModelInferRequest(**(whole | changes))


def files(*contents: bytes) -> Any:
    """A request with encoded images in `contents`, not raw."""
    given = {"name": "image_bytes", "datatype": "BYTES", "shape": [len(contents)]}
    return service_pb2.ModelInferRequest(
        model_name="awnet", inputs=[given | {"contents": {"bytes_contents": list(contents)}}]
    )


def want(message: Any, *names: str) -> Any:
    """`message` with these outputs requested."""
    for name in names:
        message.outputs.add(name=name)
    return message


def over_http(served: Served, document: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps(document).encode()
    status, _, content = served.small.http("POST", "/v2/models/awnet/infer", body=body)
    assert status == 200
    return json.loads(content)


def test_health_and_metadata_are_those_of_http(served: Served) -> None:
    """Word for word."""

    def http(path: str) -> Any:
        return json.loads(served.small.http("GET", path)[2])

    async def use(client: Any) -> Any:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("awnet")
        assert await client.is_model_ready("awnet", "1")
        assert not await client.is_model_ready("awnet", "9")
        assert not await client.is_model_ready("other")
        return (
            await client.get_server_metadata(as_json=True),
            await client.get_model_metadata("awnet", as_json=True),
            await client.get_model_config("awnet", "1", as_json=True),
        )

    async def go() -> Any:
        async with triton.InferenceServerClient(f"127.0.0.1:{served.port}") as client:
            return await use(client)

    server, model, config = served.small.run(go())
    assert server == http("/v2")
    plain = http("/v2/models/awnet")
    for side in ("inputs", "outputs"):
        for tensor in plain[side]:
            tensor["shape"] = [str(n) for n in tensor["shape"]]  # how protobuf writes 64 bits in JSON
    assert model == plain
    assert [part["name"] for part in config["config"]["input"]] == ["image", "image_bytes"]
    assert config["config"]["output"][4]["data_type"] == "TYPE_STRING"


def test_readiness_goes_off_with_the_drain(tmp_path: Path) -> None:
    """Liveness does not, and requests are still answered."""
    served = Served(Small(tmp_path))

    async def ask(stub: Any) -> list[bool]:
        return [
            (await stub.ServerLive(service_pb2.ServerLiveRequest())).live,
            (await stub.ServerReady(service_pb2.ServerReadyRequest())).ready,
            (await stub.ModelReady(service_pb2.ModelReadyRequest(name="awnet"))).ready,
        ]

    assert served.call(ask) == [True, True, True]
    served.small.service.drain()
    assert served.call(ask) == [True, False, False]
    served.infer(image())
    served.small.run(served.front.stop(0))
    served.small.close()


def test_values_and_parameters_are_those_of_http(served: Served) -> None:
    """To the last bit, for every output."""
    names = ["omega", "score", "verdict", "label", "calibrated", "logits", "p_type"]
    answer = served.infer(want(image(id="mine"), *names))
    given = {"name": "image", "datatype": "UINT8", "shape": list(IMAGES.shape), "data": IMAGES.ravel().tolist()}
    plain = over_http(served, {"inputs": [given], "outputs": [{"name": name} for name in names]})
    assert (answer.id, answer.model_name, answer.model_version) == ("mine", "awnet", plain["model_version"])
    result = triton.InferResult(answer)
    for output in plain["outputs"]:
        got = result.as_numpy(output["name"])
        assert list(got.shape) == output["shape"]
        values = [v.decode() for v in got.ravel()] if output["datatype"] == "BYTES" else got.ravel().tolist()
        assert values == output["data"], output["name"]
    parameters = {name: getattr(p, p.WhichOneof("parameter_choice")) for name, p in answer.parameters.items()}
    doubles = json.loads(parameters.pop("doubles"))
    assert doubles == {name: value for name, value in parameters.items() if isinstance(value, float)}
    assert parameters == plain["parameters"]


def test_contents_and_raw_contents_are_the_same(served: Served) -> None:
    """The protocol has both."""
    given = {
        "name": "image",
        "datatype": "UINT8",
        "shape": IMAGES.shape,
        "contents": {"uint_contents": IMAGES.ravel().tolist()},
    }
    plain = service_pb2.ModelInferRequest(model_name="awnet", inputs=[given])
    assert served.infer(plain).raw_output_contents == served.infer(image()).raw_output_contents
    raw = service_pb2.ModelInferRequest(
        model_name="awnet",
        inputs=[{"name": "image_bytes", "datatype": "BYTES", "shape": [1]}],
        raw_input_contents=[len(PNG).to_bytes(4, "little") + PNG],
    )
    assert served.infer(raw).raw_output_contents == served.infer(files(PNG)).raw_output_contents


def test_wrong_messages_are_refused_and_told(served: Served) -> None:
    """INVALID_ARGUMENT with the sentence that HTTP gives."""
    refused = served.refused
    assert "2 raw_input_contents for 1 inputs" in refused(image(raw_input_contents=[b"", b""]))
    assert "needs" in refused(image(raw_input_contents=[b"abc"]))
    assert "exactly one" in refused(image(inputs=[], raw_input_contents=[]))
    both = image()
    both.inputs[0].contents.uint_contents.append(1)
    assert "both contents and raw" in refused(both)
    wrong = files(PNG)
    wrong.inputs[0].contents.int_contents.append(1)
    assert "belongs in bytes_contents" in refused(wrong)
    assert "at least 0" in refused(image(inputs=[{"name": "image", "datatype": "UINT8", "shape": [-3, 3, -32, 32]}]))
    huge = {"name": "image", "datatype": "UINT8", "shape": [2**62, 3, SIZE, SIZE]}
    assert "more than 4 images" in refused(image(inputs=[huge]))
    over = {"name": "image", "datatype": "UINT8", "shape": [1, 3, SIZE, SIZE]}
    over["contents"] = {"uint_contents": [256] * (3 * SIZE * SIZE)}
    assert "0 to 255" in refused(service_pb2.ModelInferRequest(model_name="awnet", inputs=[over]))
    assert "datatype" in refused(image(inputs=[{"name": "image", "datatype": "FP32", "shape": IMAGES.shape}]))
    assert "no output" in refused(want(image(), "p_typ"))
    assert "twice" in refused(want(image(), "score", "score"))
    assert "more than 16" in refused(want(image(), *["score"] * 17))
    classified = want(image(), "logits")
    classified.outputs[0].parameters["classification"].int64_param = 3
    assert "classification extension" in refused(classified)
    valueless = image()
    _ = valueless.parameters["timeout"]
    assert "has no value" in refused(valueless)
    assert "element 1" in refused(files(PNG, PNG[:-30]))
    sequence = image()
    sequence.parameters["sequence_id"].int64_param = 3
    assert "sequence extension" in refused(sequence)


def test_a_mode_is_a_text_that_the_model_knows(tmp_path: Path) -> None:
    """As over HTTP: right, of another type, unknown, and of a version that lacks it."""
    small = Small(publish_modes(tmp_path, "3"), versions_kept=3)
    running = Served(small)

    def asked(version: str = "", **value: Any) -> Any:
        message = image(model_version=version)
        for kind, given in value.items():
            setattr(message.parameters["mode"], kind, given)
        return message

    session = ort.InferenceSession(tmp_path / "awnet/3/model.onnx", providers=["CPUExecutionProvider"])
    for mode, output in LOGITS.items():
        answer = running.infer(asked(string_param=mode))
        assert answer.parameters["mode"].string_param == mode
        got = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(3, -1)
        np.testing.assert_allclose(got, session.run([output], {"image": IMAGES})[0], atol=1e-4)
    assert running.infer(asked()).parameters["mode"].string_param == "auto"
    for wrong in ({"int64_param": 1}, {"bool_param": True}, {"double_param": 0.5}, {"uint64_param": 2}):
        assert "'mode' must be a text" in running.refused(asked(**wrong))
    assert "there are auto, robust, natural" in running.refused(asked(string_param="Robust"))
    assert "version 2 of awnet has no mode 'robust'" in running.refused(asked("2", string_param="robust"))
    small.run(running.front.stop(0))
    small.close()


def test_an_unknown_model_or_version_is_not_found(served: Served) -> None:
    """For inference and for metadata."""
    served.refused(image(model_name="other"), Status.NOT_FOUND)
    for text in ("9", "x", "01", "+1", "²", "9" * 30):
        served.refused(image(model_version=text), Status.NOT_FOUND)
    for method, message in (
        ("ModelMetadata", service_pb2.ModelMetadataRequest(name="other")),
        ("ModelConfig", service_pb2.ModelConfigRequest(name="awnet", version="9")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            served.call(lambda stub, m=method, q=message: getattr(stub, m)(q))
        assert caught.value.code() == Status.NOT_FOUND


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (QueueFull("the queue is full"), Status.RESOURCE_EXHAUSTED),
        (DeadlineExceeded("too late"), Status.DEADLINE_EXCEEDED),
        (EngineUnavailable("away"), Status.UNAVAILABLE),
        (EngineFault("the model failed"), Status.UNAVAILABLE),
        (RuntimeError("secret"), Status.INTERNAL),
    ],
)
def test_faults_have_their_status_and_no_trace(served: Served, fault: Exception, status: grpc.StatusCode) -> None:
    """A fault that nobody foresaw tells nothing of the inside."""
    served.small.engine.fault = fault
    try:
        details = served.refused(image(), status)
    finally:
        served.small.engine.fault = None
    assert details == str(fault) if status != Status.INTERNAL else "secret" not in details


def test_a_call_that_is_too_large_is_refused_by_its_length(served: Served) -> None:
    """Also one that is only small because it is compressed: the limit is of what it unfolds to."""
    large = image(raw_input_contents=[bytes(2 << 20)])
    served.refused(large, Status.RESOURCE_EXHAUSTED)
    bomb = image(raw_input_contents=[bytes(64 << 20)])
    assert len(gzip.compress(bomb.SerializeToString())) < 1 << 20
    details = served.refused(bomb, Status.RESOURCE_EXHAUSTED, compression=grpc.Compression.Gzip)
    assert "larger than max" in details
    served.infer(image(), compression=grpc.Compression.Gzip)


def test_the_clients_deadline_reaches_the_engine(served: Served) -> None:
    """And a client that goes away takes its request along."""
    engine, longest = served.small.engine, served.small.settings.timeout_seconds

    def within(seconds: float, message: Any, timeout: float | None) -> bool:
        begun = clock.now()
        served.call(lambda stub: stub.ModelInfer(message, timeout=timeout))
        # gRPC sends a deadline in few digits, rounded up.
        return begun + seconds - 0.1 <= engine.asked[-1].deadline <= clock.now() + seconds + 0.1

    assert within(longest, image(), None)
    assert within(longest / 2, image(), longest / 2)
    shorter = image()
    shorter.parameters["timeout"].int64_param = round(longest / 4 * 1e6)
    shorter.parameters["priority"].uint64_param = 2
    assert within(longest / 4, shorter, longest / 2)
    assert engine.asked[-1].priority == "low"

    engine.gate.clear()
    try:

        async def leave(stub: Any) -> None:
            count, before = len(engine.asked), engine.cancelled
            call = stub.ModelInfer(image())
            waiting = asyncio.ensure_future(call)
            await until(lambda: len(engine.asked) > count)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await until(lambda: engine.cancelled == before + 1)

        served.call(leave)

        async def too_late(stub: Any) -> None:
            count, before, timeout = len(engine.asked), engine.cancelled, 0.1

            async def came_as_far_as_the_engine() -> bool:
                nonlocal timeout
                timeout *= 2
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.ModelInfer(image(), timeout=timeout)
                assert caught.value.code() == Status.DEADLINE_EXCEEDED
                return len(engine.asked) > count

            await until(came_as_far_as_the_engine)
            await until(lambda: engine.cancelled == before + 1)

        served.call(too_late)
    finally:
        engine.gate.set()


@pytest.mark.parametrize(
    "method",
    [
        method.name
        for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
        if method.name not in SERVED
    ],
)
def test_every_other_method_is_unimplemented(served: Served, method: str, caplog: pytest.LogCaptureFixture) -> None:
    """With a sentence, and without a trace in the server's log."""
    described = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name[method]
    message = getattr(service_pb2, described.input_type.name)()

    async def ask(stub: Any) -> None:
        if described.client_streaming:
            async for _ in getattr(stub, method)(iter([message])):
                pass
        else:
            await getattr(stub, method)(message)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        served.call(ask)
    assert caught.value.code() == Status.UNIMPLEMENTED
    assert "not served" in str(caught.value.details())
    assert not caplog.records


def test_calls_are_counted_under_their_method(served: Served) -> None:
    """With the status that HTTP would have given, so that one alert covers both."""
    served.infer(image())
    served.refused(image(model_name="other"), Status.NOT_FOUND)
    served.refused(image(raw_input_contents=[b"short"]))

    async def leave(stub: Any) -> None:
        count = len(served.small.engine.asked)
        call = stub.ModelInfer(image())
        await until(lambda: len(served.small.engine.asked) > count)
        call.cancel()
        await until(lambda: 'code="499"' in generate_latest(served.small.metrics.registry).decode())

    served.small.engine.gate.clear()
    try:
        served.call(leave)
    finally:
        served.small.engine.gate.set()
    text = generate_latest(served.small.metrics.registry).decode()
    route = "/inference.GRPCInferenceService/ModelInfer"
    for code in ("200", "400", "404", "499"):
        lines = [line for line in text.splitlines() if line.startswith("awnet_requests_total") and route in line]
        assert any(f'code="{code}"' in line for line in lines), code
    assert f'awnet_request_seconds_count{{route="{route}"}}' in text


def test_a_port_in_use_is_told(served: Served) -> None:
    """Two servers must not share a port unnoticed."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        for port in (other.getsockname()[1], served.port):
            front = GrpcFront(served.small.service, "127.0.0.1", port)
            with pytest.raises(StartupError, match="in use"):
                served.small.run(front.start())


def test_stopping_answers_what_is_in_flight(tmp_path_factory: pytest.TempPathFactory) -> None:
    """New calls are refused as UNAVAILABLE, those that were begun are answered."""
    small = Small(tmp_path_factory.mktemp("repository"))
    running = Served(small)
    small.engine.gate.clear()
    before = len(small.engine.asked)

    async def use(stub: Any) -> Any:
        call = asyncio.ensure_future(stub.ModelInfer(image()))
        await until(lambda: len(small.engine.asked) > before)
        stopping = asyncio.ensure_future(running.front.stop(60))
        await settle()
        small.engine.gate.set()
        answer = await call
        await stopping
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(image())
        assert caught.value.code() == Status.UNAVAILABLE
        return answer

    assert running.call(use).model_name == "awnet"
    small.close()


def test_malformed_messages_never_break_the_server(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """Seeded corruptions of good messages, as bytes: answered, or refused in form; nothing in the log."""
    rng = random.Random(23)
    seeds = [want(image(IMAGES[:1], id="a"), "score").SerializeToString(), files(PNG).SerializeToString()]

    async def go() -> dict[grpc.StatusCode | str, int]:
        counted: dict[grpc.StatusCode | str, int] = {}
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            for _ in range(1000):
                message = rng.choice(seeds)
                for _ in range(rng.randint(1, 3)):
                    # Mostly the first bytes: names, shapes and lengths live there.
                    at = rng.randrange(min(len(message), 60) if rng.random() < 0.8 else len(message))
                    message = message[:at] + rng.randbytes(rng.randint(0, 3)) + message[at + rng.randint(0, 3) :]
                    message = message or b"\0"
                try:
                    await call(message, timeout=60)
                    key: grpc.StatusCode | str = "answered"
                except grpc.aio.AioRpcError as error:
                    key = error.code()
                counted[key] = counted.get(key, 0) + 1
        return counted

    counted = served.small.run(go())
    assert set(counted) <= {"answered", Status.INVALID_ARGUMENT, Status.NOT_FOUND}, counted
    assert counted[Status.INVALID_ARGUMENT] > 100
    assert not caplog.records


def test_a_call_leaves_one_log_line_without_the_address(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """What is watched over HTTP is watched here too: verdicts and a salted client, or why it was refused."""

    def lines(status: int) -> list[dict[str, Any]]:
        every = [json.loads(record.getMessage()) for record in caplog.records if record.name == "awnet.requests"]
        return [line for line in every if line["status"] == status]

    async def written() -> None:  # after the answer has left, so a client may be quicker
        await until(lambda: lines(200) and lines(404))
        await settle()  # a second line of the same call would be written now

    with caplog.at_level(logging.INFO, logger="awnet.requests"):
        served.infer(image(IMAGES[:2]))
        served.refused(image(model_name="absent"), Status.NOT_FOUND)
        served.small.run(written())
    [answered], [refused] = lines(200), lines(404)  # a line of the test before, refused with 400, may come late
    assert (answered["method"], sum(answered["verdicts"].values())) == ("GRPC", 2)
    assert refused["reason"] == "unknown-model"
    assert answered["client"] == refused["client"]
    assert "127.0.0.1" not in caplog.text


def silent_call(channel: Any) -> Any:
    """A call whose message never comes."""

    async def nothing() -> Any:
        await asyncio.Event().wait()
        yield b""

    return channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")(nothing())


def test_calls_are_bounded_in_all_and_of_a_client_before_their_messages_are_read(tmp_path: Path) -> None:
    """A hundred calls of 8 MB once held 1.4 GB. What is over the bound is told so, and room comes back."""
    running = Served(Small(tmp_path, grpc_max_calls=4, body_seconds=60))

    async def go() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            open_calls = [silent_call(channel) for _ in range(3)]
            await asyncio.gather(*(call.wait_for_connection() for call in open_calls))

            async def refused() -> bool:
                try:
                    await stub.ModelInfer(image(), timeout=60)
                except grpc.aio.AioRpcError as error:
                    assert error.code() == Status.RESOURCE_EXHAUSTED
                    return True
                return False

            async def answered() -> bool:
                return not await refused()

            await until(refused, pause_seconds=0.01)
            for call in open_calls:
                call.cancel()
            await until(answered, pause_seconds=0.01)

    running.small.run(go())
    running.small.run(running.front.stop(0))
    running.small.close()


def test_a_call_whose_message_does_not_come_is_given_up(tmp_path: Path) -> None:
    """Without a deadline of the client's, too; or a few silent calls would hold every place for ever."""
    running = Served(Small(tmp_path, grpc_max_calls=4, body_seconds=0.2))

    async def go() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            calls = [silent_call(channel) for _ in range(3)]
            for call in calls:
                assert await call.code() == Status.DEADLINE_EXCEEDED
                assert "too slowly" in str(await call.details())
            await service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(image(), timeout=60)

    running.small.run(go())
    running.small.run(running.front.stop(0))
    running.small.close()


def test_a_call_without_a_message_is_refused(served: Served) -> None:
    """It closes its side at once."""

    async def go() -> None:
        async def nothing() -> Any:
            return
            yield b""

        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")(nothing())
            assert await call.code() == Status.INVALID_ARGUMENT

    served.small.run(go())


def test_a_connection_that_never_speaks_http_2_is_closed(tmp_path: Path) -> None:
    """It would be one of those that are allowed for ever."""
    running = Served(Small(tmp_path, header_seconds=0.3))

    async def go() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        async with asyncio.timeout(20):
            while await reader.read(1024):
                pass
        writer.close()

    running.small.run(go())
    running.small.run(running.front.stop(0))
    running.small.close()


@pytest.mark.process
def test_calls_with_the_longest_messages_hold_a_bounded_number_of_bytes(repository: Path) -> None:
    """Thirty of 8 MB at once, of a client that does not hang up: one is read at a time, and none is kept."""
    port = free_port()
    running = Running(repository, grpc_port=port, max_held_bytes=8 << 20)
    size = (8 << 20) - 100
    message = b"\x0a" + b"\xfb\xff\xff\x03" + bytes(size - 5)  # a name that long, so it is refused once it is read

    async def go() -> int:
        async def slowly() -> Any:
            yield message
            await asyncio.Event().wait()

        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            calls = [channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")(slowly()) for _ in range(30)]
            await asyncio.gather(*(call.code() for call in calls))
            return int(rss_mb(running.pid))

    try:
        running.wait_ready()
        before = rss_mb(running.pid)
        assert asyncio.run(go()) < before + 120
    finally:
        running.stop()


def test_the_client_behind_a_trusted_proxy_is_known_by_its_metadata(tmp_path: Path) -> None:
    """As over HTTP: only a trusted proxy's word counts."""
    for trusted, expected in (("127.0.0.1,10.0.0.0/8", "1.1.1.1"), ("10.0.0.0/8", "127.0.0.1")):
        small = Small(tmp_path / trusted.replace("/", "-"), trusted_proxies=trusted)
        running = Served(small)
        seen: list[str | None] = []
        small.service.requests.ended = lambda record, address, seen=seen: seen.append(address)  # type: ignore[misc]
        metadata = (("x-forwarded-for", "9.9.9.9, 1.1.1.1, 10.0.0.2"),)  # of several, gRPC keeps the last
        running.call(lambda stub, given=metadata: stub.ServerLive(service_pb2.ServerLiveRequest(), metadata=given))
        assert seen == [expected]
        small.run(running.front.stop(0))
        small.close()

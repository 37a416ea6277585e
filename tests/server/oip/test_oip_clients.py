"""Unmodified clients of the Open Inference Protocol against a server in a process of its own: tritonclient's four."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from PIL import Image
from tritonclient.utils import InferenceServerException

from benchmarks.harness.processes import free_port
from server.errors import AWNetError
from server.oip import rest
from server.oip.grpc_front import SERVED, code_of
from tests.server.engines.triton.fake_triton import FILES, FakeTriton
from tests.server.tiny import CHANNELS, LABELS, ROOT, SIZE, Running, encoded, noise, plain
from tests.waiting import eventually

IMAGES = np.random.default_rng(11).integers(0, 256, (3, 3, SIZE, SIZE), np.uint8)
ALL = [
    "logits",
    "p_type",
    "omega",
    "score",
    "verdict",
    "label",
    "calibrated",
    "domain",
    "why",
    "thresholds",
    "decision",
    "score_level",
]
TURNED = Image.Exif()
TURNED[0x0112] = 6
ENCODED = {
    "PNG": encoded(noise()),
    "JPEG": encoded(noise(), "JPEG"),
    "WebP": encoded(noise(), "WEBP"),
    "lossless WebP": encoded(noise(), "WEBP", lossless=True),
    "larger": encoded(noise(100, 60)),
    "turned": encoded(noise(48, 64), "JPEG", exif=TURNED),
    "transparent": encoded(noise().convert("RGBA").rotate(20)),
    "suspicious": encoded(plain(0.6)),
    "adversarial": encoded(plain(0.9)),
    "clean": encoded(plain(0.2)),
}


@dataclass
class Tool:
    """One of the clients; `asynchronous` ones are run to their end here."""

    module: ModuleType
    address: str
    asynchronous: bool

    @property
    def http(self) -> bool:
        return "http" in self.module.__name__

    def ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        """One call, with a client of its own."""
        if not self.asynchronous:
            with self.module.InferenceServerClient(self.address) as client:
                return getattr(client, method)(*arguments, **options)

        async def go() -> Any:
            async with self.module.InferenceServerClient(self.address) as client:
                return await getattr(client, method)(*arguments, **options)

        return asyncio.run(go())

    def image(self, images: Any = IMAGES, datatype: str = "UINT8", **options: Any) -> list[Any]:
        given = self.module.InferInput("image", list(images.shape), datatype)
        return [given.set_data_from_numpy(images, **options)]

    def files(self, *contents: bytes) -> list[Any]:
        given = self.module.InferInput("image_bytes", [len(contents)], "BYTES")
        return [given.set_data_from_numpy(np.array(contents, np.object_))]

    def wanted(self, *names: str, **options: Any) -> list[Any]:
        return [self.module.InferRequestedOutput(name, **options) for name in names]

    def parameters(self, result: Any) -> dict[str, Any]:
        if self.http:
            found: dict[str, Any] = result.get_response()["parameters"]
            return found
        given = result.get_response().parameters
        return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in given.items()}

    def refused(self, method: str, *arguments: Any, **options: Any) -> tuple[str, str]:
        """(status without its prefix, message) of a call that must be refused."""
        with pytest.raises(InferenceServerException) as caught:
            self.ask(method, *arguments, **options)
        return str(caught.value.status()).removeprefix("StatusCode."), str(caught.value.message())


class Site(NamedTuple):
    """A server with both ports, its gRPC port, and the file of the model that it serves."""

    server: Running
    grpc_port: int
    model: bytes


@pytest.fixture(scope="module", params=["embedded", "triton"])
def running(process: None, request: pytest.FixtureRequest, repository: Path) -> Iterator[Site]:
    """Once with each engine: no client may see a difference."""
    grpc_port = free_port()
    settings: dict[str, object] = {"grpc_port": grpc_port, "max_body_bytes": 1 << 20, "max_images": 8}
    model = (repository / "awnet" / "1" / "model.onnx").read_bytes()
    with contextlib.ExitStack() as stack:
        if request.param == "triton":
            fake = FakeTriton(1)
            model = FILES[1]
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever)
            thread.start()
            stack.callback(loop.close)
            stack.callback(thread.join)
            stack.callback(loop.call_soon_threadsafe, loop.stop)
            asyncio.run_coroutine_threadsafe(fake.start(), loop).result(60)
            stack.callback(lambda: asyncio.run_coroutine_threadsafe(fake.stop(), loop).result(60))
            # A machine that is busy with other tests is no silent Triton.
            settings |= {"engine": "triton", "triton_urls": fake.url, "triton_silence_seconds": 5}
        server = Running(repository, **settings)
        stack.callback(server.stop)
        server.wait_ready()
        yield Site(server, grpc_port, model)


@pytest.fixture(params=["http", "http.aio", "grpc", "grpc.aio"])
def tool(request: pytest.FixtureRequest, running: Site) -> Tool:
    modules = {
        "http": tritonclient.http,
        "http.aio": tritonclient.http.aio,
        "grpc": tritonclient.grpc,
        "grpc.aio": tritonclient.grpc.aio,
    }
    port = running.server.port if "http" in request.param else running.grpc_port
    return Tool(modules[request.param], f"127.0.0.1:{port}", "aio" in request.param)


@pytest.fixture(scope="module")
def expected(running: Site) -> dict[str, Any]:
    """What onnxruntime says about IMAGES, without any server."""
    session = ort.InferenceSession(running.model, providers=["CPUExecutionProvider"])
    names = ["logits", "p_type", "omega"]
    return dict(zip(names, session.run(names, {"image": IMAGES}), strict=True))


def test_health_is_seen(tool: Tool) -> None:
    """Of the server, of a model, of what is not there."""
    assert tool.ask("is_server_live")
    assert tool.ask("is_server_ready")
    assert tool.ask("is_model_ready", "awnet")
    assert tool.ask("is_model_ready", "awnet", "1")
    assert not tool.ask("is_model_ready", "awnet", "7")
    assert not tool.ask("is_model_ready", "other")


def test_metadata_is_read(tool: Tool) -> None:
    """With what a client needs to build a request from it alone."""
    options = {} if tool.http else {"as_json": True}
    assert "binary_tensor_data" in tool.ask("get_server_metadata", **options)["extensions"]
    model = tool.ask("get_model_metadata", "awnet", **options)
    assert model["versions"] == ["1"]
    inputs = {part["name"]: (part["datatype"], [int(n) for n in part["shape"]]) for part in model["inputs"]}
    assert inputs == {"image": ("UINT8", [-1, 3, SIZE, SIZE]), "image_bytes": ("BYTES", [-1])}
    assert [part["name"] for part in model["outputs"]] == ALL
    config = tool.ask("get_model_config", "awnet", **options)
    assert (config if tool.http else config["config"])["name"] == "awnet"


def test_values_are_those_of_the_model(tool: Tool, expected: dict[str, Any]) -> None:
    """The usual outputs, as onnxruntime gives them."""
    result = tool.ask("infer", "awnet", tool.image())
    for name, want in expected.items():
        got = result.as_numpy(name)
        assert (got.dtype, got.shape) == (np.float32, want.shape)
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert result.get_output("score") is None


def test_every_output_can_be_asked_for(tool: Tool, expected: dict[str, Any]) -> None:
    """In one answer that agrees with itself."""
    result = tool.ask("infer", "awnet", tool.image(), outputs=tool.wanted(*ALL), request_id="mine")
    score = result.as_numpy("score")
    np.testing.assert_array_equal(score, result.as_numpy("p_type")[:, 0])
    assert result.as_numpy("omega").shape == (3, CHANNELS)
    parameters = tool.parameters(result)
    assert (parameters["threshold_suspicious"], parameters["threshold_adversarial"]) == (0.41, 0.77)
    verdicts = ["adversarial" if s > 0.77 else "suspicious" if s > 0.41 else "clean" for s in score.tolist()]
    assert [v.decode() for v in result.as_numpy("verdict")] == verdicts
    assert [v.decode() for v in result.as_numpy("label")] == [LABELS[k] for k in expected["logits"].argmax(axis=1)]
    assert result.as_numpy("calibrated").tolist() == [True] * 3
    response = result.get_response()
    assert (response["id"] if tool.http else response.id) == "mine"


def test_a_mode_is_a_parameter_of_the_request(tool: Tool) -> None:
    """Named in the answer; one that the model lacks is a bad request."""
    result = tool.ask("infer", "awnet", tool.image(), parameters={"mode": "auto"})
    assert tool.parameters(result)["mode"] == "auto"
    status, message = tool.refused("infer", "awnet", tool.image(), parameters={"mode": "robust"})
    assert (status, "has no mode 'robust'; there are auto" in message) == (
        "400" if tool.http else "INVALID_ARGUMENT",
        True,
    )
    _, message = tool.refused("infer", "awnet", tool.image(), parameters={"mode": 1})
    assert "'mode' must be a text" in message


@pytest.mark.parametrize(("sent", "returned"), list(itertools.product([True, False], repeat=2)))
def test_json_and_binary_give_the_same(running: Site, sent: bool, returned: bool) -> None:
    """Each way in with each way out."""
    tool = Tool(tritonclient.http, f"127.0.0.1:{running.server.port}", False)
    plainly = tool.ask("infer", "awnet", tool.image(IMAGES[:1]), outputs=tool.wanted(*ALL))
    result = tool.ask(
        "infer", "awnet", tool.image(IMAGES[:1], binary_data=sent), outputs=tool.wanted(*ALL, binary_data=returned)
    )
    for name in ALL:
        got, want = result.as_numpy(name), plainly.as_numpy(name)
        if got.dtype == np.object_:  # the client makes text of JSON and bytes of binary data
            got = np.array([v if isinstance(v, bytes) else v.encode() for v in got], np.object_)
        np.testing.assert_array_equal(got, want)
    assert ("data" in result.get_output("score")) == (not returned)


def test_a_file_gets_the_verdict_of_predict(tool: Tool, running: Site) -> None:
    """Scaled, turned, transparent or lossy: the way in makes no difference."""
    seen = set()
    for name, content in ENCODED.items():
        answer = running.server.http.post("/predict?top_k=1", files={"image": ("x", content)})
        (predicted,) = answer.json()["results"]
        result = tool.ask("infer", "awnet", tool.files(content), outputs=tool.wanted(*ALL))
        assert result.as_numpy("verdict")[0].decode() == predicted["adversarial"]["verdict"], name
        assert result.as_numpy("score")[0] == pytest.approx(predicted["adversarial"]["score"], rel=1e-5), name
        assert result.as_numpy("label")[0].decode() == predicted["predictions"][0]["label"], name
        assert bool(result.as_numpy("calibrated")[0]) == predicted["adversarial"]["calibrated"], name
        assert tool.parameters(result)["calibrated"] == predicted["adversarial"]["calibrated"], name
        seen.add(predicted["adversarial"]["verdict"])
    assert seen == {"clean", "suspicious", "adversarial"}
    many = tool.ask("infer", "awnet", tool.files(*list(ENCODED.values())[:8]), outputs=tool.wanted("calibrated"))
    assert many.as_numpy("calibrated").tolist() == [True, False, False, True, False, False, True, True]
    assert tool.parameters(many)["calibrated"] is False


def test_errors_become_exceptions_with_the_servers_words(tool: Tool) -> None:
    """And with a status that a program can tell apart."""
    bad, missing = ("400", "404") if tool.http else ("INVALID_ARGUMENT", "NOT_FOUND")
    status, message = tool.refused("infer", "other", tool.image())
    assert status == missing
    assert "there is no model 'other'" in message
    status, message = tool.refused("infer", "awnet", tool.image(), model_version="9")
    assert status == missing
    assert "version '9'" in message
    assert tool.refused("get_model_metadata", "other")[0] == missing
    for inputs, word in (
        (tool.image(IMAGES.astype(np.float32), "FP32"), "datatype 'FP32', expected 'UINT8'"),
        (tool.image(IMAGES[:, :, :16]), "expected [N, 3, 32, 32]"),
        (tool.image() + tool.files(ENCODED["PNG"]), "exactly one"),
        (tool.files(ENCODED["PNG"], b"GIF89a"), "element 1: the image is none of PNG, JPEG, WebP"),
        (tool.files(ENCODED["PNG"][:-9]), "element 0: the PNG image is truncated"),
    ):
        status, message = tool.refused("infer", "awnet", inputs)
        assert (status, word in message) == (bad, True), message
        assert "Traceback" not in message
    status, message = tool.refused("infer", "awnet", tool.image(), outputs=tool.wanted("scores"))
    assert (status, "there is no output 'scores'" in message) == (bad, True)
    status, message = tool.refused("infer", "awnet", tool.image(), outputs=tool.wanted("logits", class_count=3))
    assert (status, "classification extension" in message) == (bad, True)
    status, message = tool.refused("infer", "awnet", tool.image(), sequence_id=5, sequence_start=True)
    assert (status, "sequence extension" in message) == (bad, True)
    shared = tool.module.InferInput("image", [3, 3, SIZE, SIZE], "UINT8")
    shared.set_shared_memory("region", IMAGES.nbytes)
    status, message = tool.refused("infer", "awnet", [shared])
    assert (status, "shared memory" in message) == (bad, True)
    status, message = tool.refused("infer", "awnet", tool.image(np.repeat(IMAGES, 3, axis=0)))
    assert (status, "more than 8 images" in message) == ("413" if tool.http else bad, True)
    status, message = tool.refused("infer", "awnet", tool.files(bytes(2 << 20)))
    assert status == ("413" if tool.http else "RESOURCE_EXHAUSTED")


def test_extensions_that_are_not_served_say_so(tool: Tool) -> None:
    """No client is left guessing."""
    status, message = tool.refused("get_inference_statistics", "awnet")
    assert status == ("404" if tool.http else "UNIMPLEMENTED")
    assert "not served here" in message
    status, message = tool.refused("get_model_repository_index")
    assert status == ("404" if tool.http else "UNIMPLEMENTED")
    assert "not served here" in message


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_compressed_request_is_understood(tool: Tool, algorithm: str) -> None:
    """And its answer is the same; unfolding stops at the limit of a body."""
    name = "request_compression_algorithm" if tool.http else "compression_algorithm"
    plainly = tool.ask("infer", "awnet", tool.image())
    result = tool.ask("infer", "awnet", tool.image(), **{name: algorithm})
    np.testing.assert_allclose(result.as_numpy("logits"), plainly.as_numpy("logits"), atol=1e-5)
    status, _ = tool.refused("infer", "awnet", tool.files(bytes(32 << 20)), **{name: algorithm})
    assert status == ("413" if tool.http else "RESOURCE_EXHAUSTED")


def test_timeout_priority_and_further_parameters_are_taken(tool: Tool) -> None:
    """As the clients send them."""
    result = tool.ask(
        "infer", "awnet", tool.image(), timeout=5_000_000, priority=2, parameters={"team": "a"}, model_version="1"
    )
    assert result.as_numpy("logits").shape == (3, len(LABELS))


def test_one_client_goes_on_after_refusals(running: Site) -> None:
    """A refusal leaves the connection usable, also in the middle of others."""

    async def go(tool: Tool) -> list[bool]:
        async with tool.module.InferenceServerClient(tool.address) as client:

            async def one(place: int) -> bool:
                if place % 3 == 0:
                    with pytest.raises(InferenceServerException):
                        await client.infer("awnet", tool.files(b"none"))
                    return True
                image = IMAGES[place % 2 : place % 2 + 1]
                result = await client.infer("awnet", tool.image(image), outputs=tool.wanted("score"))
                return bool(np.isclose(result.as_numpy("score")[0], image[0, 0].mean() / 255, atol=1e-5))

            return list(await asyncio.gather(*(one(place) for place in range(60))))

    for module, port in ((tritonclient.http.aio, running.server.port), (tritonclient.grpc.aio, running.grpc_port)):
        assert all(asyncio.run(go(Tool(module, f"127.0.0.1:{port}", True))))


def test_calls_are_counted_by_templates(running: Site) -> None:
    """HTTP by route, gRPC by method; nothing that a client chose becomes a label."""
    for module, port in ((tritonclient.http, running.server.port), (tritonclient.grpc, running.grpc_port)):
        tool = Tool(module, f"127.0.0.1:{port}", False)
        tool.ask("infer", "awnet", tool.image())
        tool.refused("infer", "chosen-by-a-client", tool.image())
    text = running.server.http.get("/metrics").text
    assert 'route="/v2/models/{model}/infer"' in text
    assert 'route="/inference.GRPCInferenceService/ModelInfer"' in text
    assert "chosen-by-a-client" not in text


@pytest.mark.process
def test_the_drain_is_seen_over_grpc(repository: Path) -> None:
    """SIGTERM turns readiness off first; requests that still come are answered; the process ends with 0."""
    port = free_port()
    server = Running(repository, grpc_port=port, drain_seconds=600)
    try:
        server.wait_ready()
        tool = Tool(tritonclient.grpc, f"127.0.0.1:{port}", False)
        with tritonclient.grpc.InferenceServerClient(tool.address) as client:
            assert client.is_server_ready()
            server.popen.send_signal(signal.SIGTERM)
            eventually(lambda: not client.is_server_ready())
            assert not client.is_model_ready("awnet")
            assert client.is_server_live()
            assert client.infer("awnet", tool.image()).as_numpy("logits").shape == (3, len(LABELS))
        assert server.stop() == 0
    finally:
        server.popen.kill()


@pytest.mark.process
def test_a_grpc_port_in_use_ends_the_process(repository: Path) -> None:
    """With a failing status and the address in the log, as for HTTP."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = Running(repository, grpc_port=other.getsockname()[1])
        try:
            assert server.popen.wait(60) == 2
            assert "in use" in server.text()
        finally:
            server.popen.kill()


PAGE = (ROOT / "docs" / "protocol.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading of the page."""
    part = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    table = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_the_program_of_the_page_runs(running: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands, but for the port and where it is run."""
    program = PAGE.split("```python\n", 1)[1].split("```", 1)[0]
    assert ":8001" in program
    exec(program.replace(":8001", f":{running.grpc_port}").replace('"examples/', f'"{ROOT}/examples/'), {})
    verdict, label, score = capsys.readouterr().out.split()
    assert verdict in ("clean", "suspicious", "adversarial")
    assert label in LABELS
    assert 0 <= float(score) <= 1


def test_the_tables_of_the_page_are_true(running: Site) -> None:
    """Calls, inputs, outputs, and the status of every error."""
    http = running.server.http
    for call, method, _ in rows("Calls"):
        verb, path = call.strip("`").split()
        assert method.strip("`") in SERVED
        assert rest.route(path) == path
        assert http.request(verb, path.format(model="awnet")).status_code in (200, 400)
    assert len(rows("Calls")) == len(SERVED)
    metadata = http.get("/v2/models/awnet").json()
    for side in ("Inputs", "Outputs"):
        documented = [
            (name.strip("`"), datatype.strip("`"), shape.count(","))
            for name, datatype, shape, about in rows(side)
            if "whose contract maps scores" not in about  # this one's does not
        ]
        found = [(part["name"], part["datatype"], len(part["shape"]) - 1) for part in metadata[side.lower()]]
        assert documented == found
    kinds = {kind.slug: kind for kind in descendants(AWNetError)}
    for what, status, code in rows("Errors"):
        error = kinds[what.split("`")[1]]("x")
        assert rest.refusal(error)[0] == int(status)
        assert code in ("", f"`{code_of(error).name}`")


def descendants(kind: type[AWNetError]) -> list[type[AWNetError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in descendants(child))]

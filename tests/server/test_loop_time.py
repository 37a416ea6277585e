"""What takes long runs on another thread than the event loop's, whatever a request holds: others go on meanwhile."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.hardening.hostile import form
from server.http import app, exchange, upload
from server.oip import protocol, rest, wire
from server.oip.grpc_front import INFER
from tests.server.small import Small
from tests.server.tiny import encoded, noise

INFER_PATH = "/v2/models/awnet/infer"
PNG = encoded(noise())
LARGE = PNG + bytes(80_000)
MANY = {b"content-type": b"multipart/form-data; boundary=B"}
JSON = {b"content-type": b"application/json"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    running = Small(tmp_path_factory.mktemp("repository"), max_images=32, queue_capacity=64, max_body_bytes=8 << 20)
    yield running
    running.close()


def encoded_tensor(count: int, file: bytes, outputs: tuple[str, ...] = ()) -> bytes:
    text = base64.b64encode(file).decode()
    given = {"name": "image_bytes", "datatype": "BYTES", "shape": [count], "data": [text] * count}
    given["parameters"] = {"content_type": "base64"}
    return json.dumps({"inputs": [given], "outputs": [{"name": name} for name in outputs]}).encode()


def numbers(count: int) -> bytes:
    given = {"name": "image", "datatype": "UINT8", "shape": [count, 3, 32, 32], "data": [7] * (3072 * count)}
    return json.dumps({"inputs": [given]}).encode()


# What it is, where its slow part lies, and the request: headers, path, body; a small one of the kind beside it.
KINDS: dict[str, tuple[Any, str, dict[bytes, bytes], str, bytes, bytes]] = {
    "a form of large files": (upload, "_files", MANY, "/predict", form([LARGE]), form([PNG])),
    "base64 over the protocol": (
        protocol,
        "_images",
        JSON,
        INFER_PATH,
        encoded_tensor(1, LARGE),
        encoded_tensor(1, PNG),
    ),
    "numbers over the protocol": (protocol, "_images", JSON, INFER_PATH, numbers(16), numbers(1)),
    "signals of many images": (app, "_written", MANY, "/predict?signals=all", form([PNG] * 32), form([PNG])),
    "results of many images": (app, "_written", MANY, "/predict", form([PNG] * 32), form([PNG])),
    "outputs of many images": (
        rest,
        "_written",
        JSON,
        INFER_PATH,
        encoded_tensor(12, PNG, ("omega", "logits")),
        encoded_tensor(1, PNG),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_takes_long_holds_nobody_up(small: Small, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """And what does not take long pays for no other thread."""
    module, name, headers, path, large, little = KINDS[kind]
    threads: list[threading.Thread] = []
    plain = getattr(module, name)

    def recorded(*given: Any) -> Any:
        threads.append(threading.current_thread())
        return plain(*given)

    monkeypatch.setattr(module, name, recorded)
    for body in (large, little):
        assert small.http("POST", path, headers, body)[0] in (200, 400, 415, 422)
    here = threading.current_thread()
    assert [thread is here for thread in threads] == [False, True]


def test_a_body_of_megabytes_is_put_together_elsewhere(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of 8 MB takes milliseconds, most of them for new pages of memory."""
    elsewhere: list[Any] = []
    real = asyncio.to_thread

    async def noted(work: Any, *given: Any) -> Any:
        elsewhere.append(given[0])
        return await real(work, *given)

    monkeypatch.setattr(exchange.asyncio, "to_thread", noted)
    chunks = [PNG, bytes(2 << 20)]
    messages = [{"type": "http.request", "body": part, "more_body": part is PNG} for part in chunks]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []}
    small.run(small.app(scope, receive, send))
    assert chunks in elsewhere


def test_a_message_of_many_fields_is_read_elsewhere() -> None:
    """However short it is: its fields take the time."""
    parameters = b"".join(b"\x22\x0c\x0a\x06%06x\x12\x02\x08\x01" % n for n in range(300))
    assert wire.few(INFER(model_name="awnet").SerializeToString(), wire.INFER)
    assert not wire.few(parameters, wire.INFER)


def test_a_long_accept_header_is_not_read_to_its_end() -> None:
    """Browsers send eight ranges; thousands of them took six milliseconds."""
    assert app._accepts_json(b"text/html, " * 20 + b"application/json")
    assert not app._accepts_json(b"a," * 15_000 + b"application/json")

"""What a server answers to a fixed list of requests, as a JSON document that two servers can be compared by.

The list is played in order against `python -m server` of any checkout: each request alone, with its own request id, one
worker with one thread. What no two runs share (times, salted hashes, process figures, made-up request ids) is replaced
by a placeholder in angle brackets; everything else is kept as it was sent.

No module of `server` is imported, so the list is the same before and after whatever moves there.
"""

from __future__ import annotations

import argparse
import base64
import difflib
import gzip
import io
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_name("answers.json")
EXAMPLES = "\n".join(
    (
        "examples:",
        "  python -m tests.server.recorded_answers --check          this checkout against answers.json",
        "  python -m tests.server.recorded_answers --write          record the answers that CHANGED names again",
        "  python -m tests.server.recorded_answers --write-all      begin a new record",
        "  python -m tests.server.recorded_answers --compare DIR    this checkout and DIR, byte for byte, here and now",
    )
)

# What is meant to differ from the first record, and why. A name of a metric or its text, then -> now:
RENAMED: dict[str, str] = {
    "awnet_golden_canaries": "awnet_golden_probes",
    "awnet_golden_canary": "awnet_golden_probe",
    "Senders of flagged images in the bounded top list.": "Clients with flagged images in the bounded top list.",
    "that a single sender sent": "that a single client sent",
    "0 while it is left alone.": "0 while its breaker is open.",
    "was the picture tampered with?": "was the image tampered with?",
    "a picture is not text.": "an image is not text.",
}
# Names of answers, as patterns of fnmatch. `--write` puts the new answers beside the first ones and refuses others.
_LIKE_ANY = "told like every other refusal: not stored, one order of headers, no close where there is no body"
_HEAD = f"HEAD is answered wherever GET is, `Allow` names it; {_LIKE_ANY}"
_NAMED = (
    "the admin port tells request ids, takes them over, and has `Allow` in one order; "
    f"`golden_probes` of GET /admin/detection is there under its old name `canaries`, too, beside it what is "
    f"told of uncalibrated images; `modes` of each version; {_LIKE_ANY}"
)
_OUTPUTS = (
    "domain, why, thresholds, decision and levels are outputs on request, and probability of models that map their "
    "scores"
)
_VERSION = "the version is the one of the package, in a checkout too"
_MODE = "the parameter `mode` of request and response"
_STORE = "no cache may keep what changes by itself"
CHANGED: dict[str, str] = {
    "predict: ?version=two": "a version that is no number is refused where the query is read, and the answer says why",
    "predict: no content type": "a raw image needs none: its bytes are recognised",
    "predict: half a jpeg": "what a file lacks is found before it is decoded",
    "predict: json": "JSON with base64 is taken",
    "predict: no field image": "the fields that the form has are named",
    "predict: an empty file": "a bad image leaves its problem in the place of its result, and others are answered",
    "predict: *": "an answer names its mode, the image's domain or why it has none, and P(attacked) at a prior; "
    "palettes are not calibrated; ?mode=; results have the names of their files; a bad image of several leaves its "
    "problem in the place of its result",
    "infer: many lists": "the bound is what the most images of the model's size need",
    "infer: an unknown output": _OUTPUTS,
    "infer: *": _MODE,
    "gRPC ModelInfer: an unknown output": _OUTPUTS,
    "gRPC ModelInfer: *": f"{_MODE}; doubles once more as text",
    "gRPC Model[MC]*": _OUTPUTS,
    "GET /v2/models/awnet*": _OUTPUTS,
    "GET /openapi.json": f"{_STORE}; the answer of /predict has further fields; GET /model; ?mode=; policies; "
    f"429; /v2, the admin port, every refusal; {_VERSION}",
    "GET /docs": "what /openapi.json has, and an upload to try",
    "GET /v2": _VERSION,
    "GET /v2/": _VERSION,
    "gRPC ServerMetadata": _VERSION,
    "GET /model*": "a model is described; an entity tag, and no cache keeps it unasked",
    "GET /nothing*": _LIKE_ANY,
    "GET /v2nothing": _LIKE_ANY,
    "GET /v2/health/other": _LIKE_ANY,
    "GET /v2/health/*": _STORE,
    "GET /metrics*": _STORE,
    "GET /admin/models on the public port": _LIKE_ANY,
    "GET /page/*": "a refusal on the page's paths has the page's headers; models tell their modes, the server its "
    "largest body, examples how they were made",
    "method: * /": _LIKE_ANY,
    "method: * /page/*": "a refusal on the page's paths has the page's headers",
    "method: * /predict": _LIKE_ANY,
    "method: * /nothing": _LIKE_ANY,
    "method: * /docs": _HEAD,
    "method: * /openapi.json": _HEAD,
    "method: * /metrics": _HEAD,
    "method: * /v2": _HEAD,
    "method: * /v2/health/*": f"{_HEAD}; {_STORE}",
    "method: * /v2/models/*": _HEAD,
    "method: * (admin)": f"{_NAMED}; {_STORE}",
    "admin: *": f"{_NAMED}; {_STORE}; a palette image is not calibrated",
    "metrics *": "every refusal is a rejection, under the route that it was for; gRPC's unserved methods and "
    "admin calls are counted; "
    "renamed metrics come once more at the end, under their old names; a palette image is not calibrated; watched "
    "images have a verdict, uncalibrated ones CUSUMs of their own; images are counted by mode; "
    "refused images never reach the engine; each route is counted from 0, and timed by its name where it predicts; "
    "readings of a file of keys, decisions of policies, what the query guard finds, findings and misdirected "
    "requests are counted; the processes that decode are told, and what is sent by OTLP; the answer cache is counted",
    "request log": "every refusal has its reason and the route that it was for; admin calls are logged; "
    "uncalibrated images are counted by reason; the mode of an answer; images that are refused "
    "among others are counted by reason",
}

# As small as the list allows, so that every limit is met by a small request. Nothing runs by the clock.
SETTINGS: dict[str, object] = {
    "drain_seconds": 0,
    "golden_probe_seconds": 0,
    "poll_seconds": 0,
    "threads": 1,
    "version": 2,  # whatever came after it: the record is of its answers
    "max_body_bytes": 200_000,
    "max_images": 6,
    "max_pixels": 100_000,
    "request_log": "true",
}
# Of checkouts before they were renamed: setting -> its old name.
OLD_SETTINGS = {"golden_probe_seconds": "golden_canary_seconds", "request_log": "access_log"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND")
PAGE_FILES = ("page.css", "page.js", "report.js", "charts.js", "words.js", "icon.svg")
SERVICE = "/inference.GRPCInferenceService/"

Headers = dict[str, str]
Answer = dict[str, Any]


@dataclass(frozen=True)
class Ask:
    """One request over HTTP, or over gRPC where `method` is GRPC: then `path` is the method and `body` the message."""

    name: str
    method: str
    path: str
    headers: Headers = field(default_factory=dict)
    body: bytes = b""
    admin: bool = False
    numbered: bool = True  # whether it carries a request id of its own
    seconds: float | None = None  # the deadline of a gRPC call


# Images.


@cache
def examples() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((ROOT / "examples").glob("*.png"))}


def drawn(width: int, height: int) -> Image.Image:
    """Smooth in one direction and rough in the other, so that scaling and turning both show."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    channels = [across * 255 // max(1, width - 1), down * 37 % 256, (across * 5 + down * 11) % 256]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def lossy() -> dict[str, bytes]:
    """Files whose pixels hang on the encoder that wrote them; the record keeps them."""
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "jpeg": encoded(drawn(32, 32), "JPEG", quality=90),
        "jpeg, larger and turned": encoded(drawn(64, 48), "JPEG", quality=90, exif=turned),
        "webp": encoded(drawn(40, 32), "WEBP", quality=80),
    }


def lossless() -> dict[str, bytes]:
    """Their pixels are the same whatever encoder wrote them."""
    grey = drawn(32, 32).convert("L")
    deep = np.asarray(grey, np.uint16) * 257
    return {
        "webp, lossless": encoded(drawn(32, 32), "WEBP", lossless=True),
        "png, larger": encoded(drawn(100, 60)),
        "png, smaller": encoded(drawn(12, 9)),
        "png, transparent": encoded(drawn(32, 32).convert("RGBA").rotate(20)),
        "png, grey": encoded(grey),
        "png, 16 bits": encoded(Image.fromarray(deep)),
        "png, palette": encoded(drawn(32, 32).quantize(16, method=Image.Quantize.FASTOCTREE)),
    }


def pixels(name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[3, 32, 32] of an example."""
    return np.asarray(Image.open(io.BytesIO(examples()[name])).convert("RGB")).transpose(2, 0, 1)


# Bodies.

BOUNDARY = "recorded-answers"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
PNG = {"content-type": "image/png"}
JSON = {"content-type": "application/json"}


def part(content: bytes, disposition: str = 'form-data; name="image"; filename="a.png"') -> bytes:
    return f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def files(*contents: bytes) -> bytes:
    return form(*map(part, contents))


def infer(*inputs: dict[str, Any], raw: bytes = b"", outputs: Sequence[Any] = (), **more: Any) -> tuple[Headers, bytes]:
    """The headers and body of an inference request; with `raw`, in the binary form."""
    document = {"inputs": list(inputs)} | ({"outputs": [*map(wanted, outputs)]} if outputs else {}) | more
    text = json.dumps(document).encode()
    return ({"inference-header-content-length": str(len(text))} if raw else JSON), text + raw


def wanted(output: Any) -> dict[str, Any]:
    return {"name": output} if isinstance(output, str) else output


def tensor(name: str, datatype: str, shape: Sequence[int], data: Any = None, **parameters: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(shape)}
    return found | ({} if data is None else {"data": data}) | ({"parameters": parameters} if parameters else {})


def image(values: np.ndarray[Any, Any], **parameters: Any) -> dict[str, Any]:
    return tensor("image", "UINT8", values.shape, values.tolist(), **parameters)


def lengthened(*contents: bytes) -> bytes:
    """BYTES elements as raw tensor data."""
    return b"".join(len(content).to_bytes(4, "little") + content for content in contents)


def text64(content: bytes) -> str:
    return base64.b64encode(content).decode()


# The list.


def asks(stored: dict[str, bytes]) -> list[Ask]:
    """Every request, in the order in which they are played. `stored`: what `lossy` gave when the record was made."""
    found = [
        *_predictions(stored),
        *_refused_predictions(),
        *_protocol(),
        *_inferences(stored),
        *_refused_inferences(),
        *_calls(),
        *_rest(),
        # Before any method that a later release may answer: nothing below changes what these two tell.
        Ask("metrics as text, after all answers", "GET", "/metrics"),
        Ask("metrics as OpenMetrics", "GET", "/metrics", {"accept": "application/openmetrics-text; version=1.0.0"}),
        *_admin(),
        *_methods(),
        Ask("metrics as text, last", "GET", "/metrics"),
        *(Ask(f"GET /model{query}", "GET", f"/model{query}") for query in ("", "?version=2", "?version=7", "?top_k=1")),
    ]
    names = [ask.name for ask in found]
    assert len(set(names)) == len(names), "two requests of one name"
    return found


def _predict(name: str, body: bytes, headers: Headers = PNG, query: str = "", **more: Any) -> Ask:
    return Ask(f"predict: {name}", "POST", "/predict" + query, headers, body, **more)


def _predictions(stored: dict[str, bytes]) -> Iterator[Ask]:
    for name, content in examples().items():
        yield _predict(name, content)
    ship, attacked, cat = (examples()[f"{name}.png"] for name in ("ship", "ship-adversarial", "cat"))
    kinds = {"jpeg": "image/jpeg", "webp": "image/webp", "png": "image/png"}
    for name, content in (stored | lossless()).items():
        yield _predict(name, content, {"content-type": kinds[name.partition(",")[0]]})
    yield _predict("a form", files(ship), FORM)
    yield _predict("a form of four", files(ship, attacked, cat, stored["jpeg"]), FORM)
    yield _predict("a form of six", files(*[ship, cat] * 3), FORM, "?top_k=1")
    yield _predict("a form with another field", form(part(b"hello", 'form-data; name="note"'), part(ship)), FORM)
    for query in (
        "top_k=1",
        "top_k=10",
        "signals=none",
        "signals=summary",
        "signals=all",
        "model=awnet",
        "mode=auto",
        "version=2",
        "version=latest",
        "timeout_ms=60000",
        "priority=low",
        "top_k=2&signals=summary&model=awnet&version=2&timeout_ms=60000&priority=normal",
    ):
        yield _predict(f"?{query}", ship, query=f"?{query}")
    yield _predict("signals of two", files(ship, attacked), FORM, "?signals=all&top_k=3")
    yield _predict("accepts any", ship, PNG | {"accept": "text/html, */*;q=0.1"})
    yield _predict("without a request id", ship, numbered=False)
    yield _predict("with a request id that is none", ship, PNG | {"x-request-id": "no id!"}, numbered=False)


def _refused_predictions() -> Iterator[Ask]:
    ship = examples()["ship.png"]
    jpeg = encoded(drawn(32, 32), "JPEG")
    yield _predict("an empty body", b"")
    yield _predict("no content type", ship, {})
    yield _predict("json", b"{}", JSON)
    yield _predict("a declared gif", ship, {"content-type": "image/gif"})
    yield _predict("a gif called png", encoded(drawn(32, 32), "GIF"))
    yield _predict("text called png", b"hello, this is no picture at all")
    yield _predict("an encoded body", gzip.compress(ship, mtime=0), PNG | {"content-encoding": "gzip"})
    yield _predict("accepts html only", ship, PNG | {"accept": "text/html"})
    yield _predict("half a png", ship[: len(ship) // 2])
    yield _predict("half a jpeg", jpeg[: len(jpeg) // 2], {"content-type": "image/jpeg"})
    yield _predict("a png with a wrong checksum", ship[:-20] + bytes([ship[-20] ^ 1]) + ship[-19:])
    yield _predict("too many pixels", encoded(Image.new("RGB", (400, 300))))
    yield _predict("too small", encoded(drawn(7, 32)))
    yield _predict("animated", encoded(drawn(32, 32), save_all=True, append_images=[drawn(32, 32).rotate(90)]))
    yield _predict("a body over the limit", bytes(200_001))
    yield _predict("no boundary", files(ship), {"content-type": "multipart/form-data"})
    yield _predict("another boundary", files(ship), {"content-type": "multipart/form-data; boundary=x"})
    yield _predict("an empty form", b"", FORM)
    yield _predict("a form without its end", part(ship), FORM)
    yield _predict("a part without headers", f"--{BOUNDARY}\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode(), FORM)
    yield _predict("no field image", form(part(ship, 'form-data; name="file"; filename="a"')), FORM)
    yield _predict("image as a plain field", form(part(ship, 'form-data; name="image"')), FORM)
    yield _predict("an empty file", files(ship, b""), FORM)
    yield _predict("the third of three is broken", files(ship, ship, ship[:-30]), FORM)
    yield _predict("too many images", files(*[ship] * 7), FORM)
    for query in (
        "top_k=0",
        "top_k=11",
        "top_k=1.5",
        "top_k=",
        "top_k=1&top_k=2",
        "signals=maybe",
        "timeout_ms=0",
        "priority=high",
        "mode=robust",
        "mode=",
        "model=other",
        "version=7",
        "version=two",
        "unknown=1",
        "x=" + "y" * 2000,
    ):
        yield _predict(f"?{query[:40]}", ship, query=f"?{query}")


def _protocol() -> Iterator[Ask]:
    for path in (
        "/v2",
        "/v2/",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/health/other",
        *(f"/v2/models/{model}{call}" for model in ("awnet", "other") for call in ("", "/ready", "/config")),
        *(f"/v2/models/awnet/versions/{n}{call}" for n in ("2", "7") for call in ("", "/ready", "/config")),
        "/v2/models",
        "/v2/models/awnet/stats",
        "/v2/models/awnet/trace/setting",
        "/v2/models/awnet/generate",
        "/v2/repository/index",
        "/v2/systemsharedmemory/status",
        "/v2/cudasharedmemory/status",
        "/v2/trace/setting",
        "/v2/logging",
        "/v2/nothing",
        "/v2nothing",
    ):
        yield Ask(f"GET {path}", "GET", path)


def _infer(name: str, given: tuple[Headers, bytes], path: str = "/v2/models/awnet/infer", **headers: str) -> Ask:
    more = {key.replace("_", "-"): value for key, value in headers.items()}
    return Ask(f"infer: {name}", "POST", path, given[0] | more, given[1])


def _inferences(stored: dict[str, bytes]) -> Iterator[Ask]:
    ship, attacked = examples()["ship.png"], examples()["ship-adversarial.png"]
    two = np.stack([pixels("ship.png"), pixels("ship-adversarial.png")])
    flat = tensor("image", "UINT8", two.shape, two.ravel().tolist())
    raw = tensor("image", "UINT8", two.shape, binary_data_size=two.size)
    judged = ["verdict", "label", "score", "calibrated"]
    named = [*judged, "p_type", "logits", "omega"]
    yield _infer("nested", infer(image(two[:1])))
    yield _infer("flat", infer(flat, outputs=["p_type", "logits"]))
    yield _infer("two, everything", infer(image(two), outputs=named, id="seven"))
    yield _infer("raw", infer(raw, raw=two.tobytes(), outputs=[*judged, "p_type"]))
    yield _infer("raw, raw answers", infer(raw, raw=two.tobytes(), parameters={"binary_data_output": True}))
    mixed = [{"name": "score", "parameters": {"binary_data": True}}, "label", {"name": "logits", "parameters": {}}]
    yield _infer("some raw answers", infer(image(two), outputs=mixed))
    loud = [{"name": name, "parameters": {"binary_data": True}} for name in named]
    yield _infer("everything raw", infer(image(two[:1]), outputs=loud))
    quiet = [{"name": "score", "parameters": {"binary_data": False}}, "verdict"]
    yield _infer("raw but one", infer(image(two), outputs=quiet, parameters={"binary_data_output": True}))

    def bytes64(*contents: bytes) -> dict[str, Any]:
        return tensor("image_bytes", "BYTES", [len(contents)], [*map(text64, contents)], content_type="base64")

    def raw_bytes(*contents: bytes, **more: Any) -> tuple[Headers, bytes]:
        content = lengthened(*contents)
        given = tensor("image_bytes", "BYTES", [len(contents)], binary_data_size=len(content))
        return infer(given, raw=content, **more)

    yield _infer("a file in base64", infer(bytes64(ship), outputs=judged))
    yield _infer("two files in base64", infer(bytes64(ship, attacked), outputs=judged))
    yield _infer("a raw file", raw_bytes(ship, outputs=judged))
    yield _infer("three raw files, one lossy", raw_bytes(ship, attacked, stored["jpeg"], outputs=judged))
    packed = lengthened(text64(ship).encode())
    given = tensor("image_bytes", "BYTES", [1], binary_data_size=len(packed), content_type="base64")
    yield _infer("a raw file in base64", infer(given, raw=packed, outputs=judged))
    yield _infer("a larger file", raw_bytes(lossless()["png, larger"], outputs=judged))
    yield _infer("with its version", infer(bytes64(ship), outputs=judged), "/v2/models/awnet/versions/2/infer")
    terms = {"timeout": 60_000_000, "priority": 2, "of_a_gateway": "x"}
    yield _infer("with parameters", infer(bytes64(ship), outputs=judged, parameters=terms))
    yield _infer("with a mode", infer(bytes64(ship), outputs=judged, parameters={"mode": "auto"}))
    headers, body = infer(bytes64(ship), outputs=judged)
    yield _infer("gzip", (headers, gzip.compress(body, mtime=0)), content_encoding="gzip")
    yield _infer("deflate", (headers, zlib.compress(body)), content_encoding="deflate")
    yield Ask("infer: without a request id", "POST", "/v2/models/awnet/infer", headers, body, numbered=False)


def _refused_inferences() -> Iterator[Ask]:
    one = pixels("ship.png")[None]
    good = image(one)
    ship = text64(examples()["ship.png"])

    def of(data: Any, shape: Sequence[int] = (1, 3, 32, 32), datatype: str = "UINT8", **parameters: Any) -> Any:
        return infer(tensor("image", datatype, shape, data, **parameters))

    def of_files(data: Any, shape: Sequence[int] = (1,), datatype: str = "BYTES", **parameters: Any) -> Any:
        return infer(tensor("image_bytes", datatype, shape, data, **parameters))

    flat = one.ravel().tolist()
    yield _infer("no json", (JSON, b"{nothing"))
    yield _infer("a list", (JSON, b"[]"))
    yield _infer("an empty body", (JSON, b""))
    yield _infer("no inputs", infer())
    yield _infer("inputs that are no list", (JSON, b'{"inputs": {}}'))
    yield _infer("two inputs", infer(good, good))
    yield _infer("seventeen inputs", infer(*[tensor("x", "BYTES", [0], [])] * 17))
    yield _infer("an unknown input", infer(tensor("picture", "UINT8", [1], [0])))
    yield _infer("an input without a name", (JSON, b'{"inputs": [{"datatype": "UINT8", "shape": [1], "data": [0]}]}'))
    yield _infer("another datatype", of(flat, datatype="FP32"))
    yield _infer("another shape", of(flat, [1, 32, 32, 3]))
    yield _infer("a shape of nothing", of([], [0, 3, 32, 32]))
    yield _infer("a shape of text", (JSON, b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": ["1"]}]}'))
    yield _infer("too few values", of(flat[:-1]))
    yield _infer("a value over 255", of([256, *flat[1:]]))
    yield _infer("a value that is no integer", of([0.5, *flat[1:]]))
    yield _infer("another nesting", of([one[0].tolist(), one[0].tolist()]))
    yield _infer("no data", infer(tensor("image", "UINT8", one.shape)))
    yield _infer("text for a picture", of_files(["hello"]))
    yield _infer("no base64", of_files(["no base64!"], content_type="base64"))
    yield _infer("a file that is no picture", of_files([text64(b"hello")], content_type="base64"))
    yield _infer("the second is no picture", of_files([ship, text64(b"hello")], [2], content_type="base64"))
    wide = text64(encoded(Image.new("RGB", (400, 300))))
    yield _infer("a file of too many pixels", of_files([wide], content_type="base64"))
    yield _infer("fewer files than the shape says", of_files([ship], [2], content_type="base64"))
    yield _infer("too many files", of_files([ship] * 7, [7], content_type="base64"))
    yield _infer("an unknown output", infer(good, outputs=["class"]))
    yield _infer("an output twice", infer(good, outputs=["score", "score"]))
    yield _infer("classification", infer(good, outputs=[{"name": "logits", "parameters": {"classification": 3}}]))
    shared = {"shared_memory_region": "a", "shared_memory_byte_size": 3072}
    yield _infer("an output in shared memory", infer(good, outputs=[{"name": "logits", "parameters": shared}]))
    yield _infer("an input in shared memory", infer(tensor("image", "UINT8", one.shape, **shared)))
    yield _infer("a sequence", infer(good, parameters={"sequence_id": 5}))
    yield _infer("a timeout of text", infer(good, parameters={"timeout": "soon"}))
    yield _infer("a negative priority", infer(good, parameters={"priority": -1}))
    yield _infer("a parameter that is a list", infer(good, parameters={"priority": [1]}))
    yield _infer("binary_data_output of text", infer(good, parameters={"binary_data_output": "yes"}))
    yield _infer("an id that is no text", infer(good, id=7))
    yield _infer("a deadline of a microsecond", infer(good, parameters={"timeout": 1}))
    raw = tensor("image", "UINT8", one.shape, binary_data_size=one.size)
    yield _infer("bytes that belong to no input", infer(raw, raw=one.tobytes() + b"x"))
    yield _infer("fewer bytes than announced", infer(raw, raw=one.tobytes()[:-1]))
    yield _infer("data and bytes", infer(image(one, binary_data_size=one.size), raw=one.tobytes()))
    yield _infer("a wrong header length", infer(good), inference_header_content_length="999999")
    yield _infer("a header length of text", infer(good), inference_header_content_length="all")
    cut = lengthened(examples()["ship.png"])[:-1]
    cut_file = tensor("image_bytes", "BYTES", [1], binary_data_size=len(cut))
    yield _infer("a file that is cut", infer(cut_file, raw=cut))
    yield _infer("another encoding", infer(good), content_encoding="br")
    yield _infer("no gzip", infer(good), content_encoding="gzip")
    headers, body = infer(good)
    yield _infer("half a gzip", (headers, gzip.compress(body, mtime=0)[:-9]), content_encoding="gzip")
    bomb = gzip.compress(bytes(300_000), mtime=0)
    yield _infer("gzip over the limit", (headers, bomb), content_encoding="gzip")
    yield _infer("a body over the limit", (JSON, bytes(200_001)))
    yield _infer("many lists", (JSON, b"[" * 140_000))
    yield _infer("a mode that it lacks", infer(good, parameters={"mode": "robust"}))
    yield _infer("a mode that is a number", infer(good, parameters={"mode": 1}))
    yield _infer("an unknown model", infer(good), "/v2/models/other/infer")
    yield _infer("an unknown version", infer(good), "/v2/models/awnet/versions/7/infer")


def _calls() -> Iterator[Ask]:
    from tritonclient.grpc import service_pb2 as pb

    def call(name: str, method: str, message: Any, seconds: float | None = None) -> Ask:
        body = message if isinstance(message, bytes) else message.SerializeToString(deterministic=True)
        return Ask(f"gRPC {method}{': ' * bool(name)}{name}", "GRPC", method, {}, body, seconds=seconds)

    yield call("", "ServerLive", pb.ServerLiveRequest())
    yield call("", "ServerReady", pb.ServerReadyRequest())
    yield call("", "ServerMetadata", pb.ServerMetadataRequest())
    for model, version in (("awnet", ""), ("awnet", "2"), ("awnet", "7"), ("other", "")):
        name = f"{model} {version}".strip()
        yield call(name, "ModelReady", pb.ModelReadyRequest(name=model, version=version))
        yield call(name, "ModelMetadata", pb.ModelMetadataRequest(name=model, version=version))
        yield call(name, "ModelConfig", pb.ModelConfigRequest(name=model, version=version))
    yield call("", "ModelStatistics", pb.ModelStatisticsRequest(name="awnet"))
    yield call("", "RepositoryIndex", pb.RepositoryIndexRequest())
    yield call("", "SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest())

    two = np.stack([pixels("ship.png"), pixels("ship-adversarial.png")])
    ship = examples()["ship.png"]

    def request(raw: Sequence[bytes] = (), outputs: Sequence[str] = (), model: str = "awnet", **given: Any) -> Any:
        tensor = {"name": "image", "datatype": "UINT8", "shape": two.shape} | given
        named = [{"name": name} for name in outputs]
        return pb.ModelInferRequest(
            model_name=model, id="seven", inputs=[tensor], outputs=named, raw_input_contents=raw
        )

    pixel_bytes = [two.tobytes()]
    judged = ["verdict", "label", "score", "calibrated"]
    as_files: dict[str, Any] = {"name": "image_bytes", "datatype": "BYTES", "shape": [1]}
    in_base64 = {"content_type": {"string_param": "base64"}}
    values = {"uint_contents": two.ravel().tolist()}
    yield call("raw", "ModelInfer", request([two[:1].tobytes()], shape=[1, 3, 32, 32]))
    yield call("contents", "ModelInfer", request(contents=values, outputs=[*judged, "p_type"]))
    yield call("a raw file", "ModelInfer", request([lengthened(ship)], judged, **as_files))
    yield call("a file", "ModelInfer", request(outputs=judged, contents={"bytes_contents": [ship]}, **as_files))
    encoded_file = {"bytes_contents": [text64(ship).encode()]}
    yield call(
        "a file in base64",
        "ModelInfer",
        request(outputs=judged, contents=encoded_file, parameters=in_base64, **as_files),
    )
    yield call("no message", "ModelInfer", b"\xff\xff\xff")
    yield call("an unknown model", "ModelInfer", request(pixel_bytes, model="other"))
    yield call("an unknown output", "ModelInfer", request(pixel_bytes, ["class"]))
    yield call("too few bytes", "ModelInfer", request([two.tobytes()[:-1]]))
    yield call("contents and bytes", "ModelInfer", request(pixel_bytes, contents=values))
    yield call("two raw contents", "ModelInfer", request(pixel_bytes * 2))
    yield call("another datatype", "ModelInfer", request(pixel_bytes, datatype="FP32"))
    yield call("another shape", "ModelInfer", request(pixel_bytes, shape=[2, 32, 32, 3]))
    yield call("a negative shape", "ModelInfer", request(pixel_bytes, shape=[-1, 3, 32, 32]))
    yield call("no picture", "ModelInfer", request([lengthened(b"hello")], **as_files))
    for name, given in {
        "with a mode": {"string_param": "auto"},
        "a mode that it lacks": {"string_param": "robust"},
        "a mode that is a number": {"int64_param": 1},
    }.items():
        message = request(pixel_bytes, judged)
        ((kind, value),) = given.items()
        setattr(message.parameters["mode"], kind, value)
        yield call(name, "ModelInfer", message)
    message = request(pixel_bytes)
    message.parameters["timeout"].int64_param = 1
    yield call("a deadline of a microsecond", "ModelInfer", message)


def _rest() -> Iterator[Ask]:
    yield Ask("GET /", "GET", "/")
    for name in (*PAGE_FILES, "model.json", "examples.json", "recent.json", "examples/ship.png", "nothing.js", ""):
        yield Ask(f"GET /page/{name}", "GET", f"/page/{name}")
    yield Ask("GET / unchanged", "GET", "/", {"if-none-match": "*"})
    yield Ask("GET /page/page.css unchanged", "GET", "/page/page.css", {"if-none-match": "*"})
    yield Ask("GET /page/../server/app.py", "GET", "/page/../server/app.py")
    yield Ask("GET /docs", "GET", "/docs")
    yield Ask("GET /openapi.json", "GET", "/openapi.json")
    yield Ask("GET /nothing", "GET", "/nothing")
    yield Ask("GET /nothing without a request id", "GET", "/nothing", numbered=False)
    yield Ask("GET /metrics/", "GET", "/metrics/")
    yield Ask("GET /admin/models on the public port", "GET", "/admin/models")


def _admin() -> Iterator[Ask]:
    def ask(method: str, path: str, body: Any = None, name: str = "", **headers: str) -> Ask:
        given = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        about = f" {given[:60].decode('latin-1')}" if given else ""
        more = {key.replace("_", "-"): value for key, value in headers.items()}
        label = f"admin: {method} {path}{about}{' ' * bool(name)}{name}"
        return Ask(label, method, path, (JSON if given else {}) | more, given, admin=True, numbered=False)

    yield ask("GET", "/admin/models")
    yield ask("GET", "/admin/detection")
    yield ask("GET", "/admin/detection?address=127.0.0.1")
    yield ask("POST", "/admin/reload")
    yield ask("POST", "/admin/models/awnet/rollback")
    yield ask("POST", "/admin/models/other/rollback")
    yield ask("POST", "/admin/models/awnet/promote", {"version": 2})
    yield ask("POST", "/admin/models/awnet/promote", {"version": "2"})
    yield ask("POST", "/admin/models/awnet/promote", {"version": 7})
    yield ask("POST", "/admin/models/awnet/promote", {"version": "two"})
    yield ask("POST", "/admin/models/awnet/promote", {"share": 1})
    yield ask("POST", "/admin/models/awnet/promote", b"{nothing")
    yield ask("POST", "/admin/models/awnet/promote", {"version": 2}, "as text", content_type="text/plain")
    yield ask("POST", "/admin/models/awnet/promote", b" " * 5000, "over the limit")
    yield ask("POST", "/admin/models/other/promote", {"version": 2})
    yield ask("PUT", "/admin/canary", {"version": None})
    yield ask("PUT", "/admin/canary", {"version": 7, "share": 0.5})
    yield ask("PUT", "/admin/canary", {"version": 2, "share": 0.5})
    yield ask("PUT", "/admin/canary", {"version": 2, "share": 1.5})
    yield ask("PUT", "/admin/canary", {"version": 2, "share": "half"})
    yield ask("PUT", "/admin/canary", {"version": None}, "again")
    yield ask("PUT", "/admin/shadow", {"version": None})
    yield ask("PUT", "/admin/shadow", {"version": 7})
    yield ask("GET", "/admin/models", name="for a web page", origin="http://example.test")
    yield ask("GET", "/admin/models", name="at the end")
    yield ask("GET", "/metrics")
    yield ask("GET", "/")


def _methods() -> Iterator[Ask]:
    """Every other method on every route, without a body."""
    public = (
        "/",
        "/page/page.css",
        "/page/model.json",
        "/page/nothing.js",
        "/docs",
        "/openapi.json",
        "/metrics",
        "/predict",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/awnet",
        "/v2/models/awnet/ready",
        "/v2/models/awnet/config",
        "/v2/models/awnet/infer",
        "/v2/models/other",
        "/v2/models/awnet/versions/2",
        "/v2/models/awnet/versions/2/ready",
        "/v2/models/awnet/versions/2/config",
        "/v2/models/awnet/versions/2/infer",
        "/v2/models/awnet/stats",
        "/v2/nothing",
        "/nothing",
    )
    admin = (
        "/admin/models",
        "/admin/detection",
        "/admin/reload",
        "/admin/models/awnet/rollback",
        "/admin/models/awnet/promote",
        "/admin/canary",
        "/admin/shadow",
        "/nothing",
    )
    for path in public:
        for method in METHODS:
            if method != "GET":
                yield Ask(f"method: {method} {path}", method, path)
    for path in admin:
        for method in METHODS:
            if (method, path) != ("GET", "/admin/detection"):  # the floats in it are told above
                yield Ask(f"method: {method} {path} (admin)", method, path, admin=True, numbered=False)


# A server and the answers of it.


@dataclass(frozen=True)
class Ports:
    """Where a server listens, and the file that its standard error goes to."""

    http: int
    grpc: int
    admin: int
    log: Path


@contextmanager
def server(root: Path = ROOT, **settings: object) -> Iterator[Ports]:
    """`python -m server` of the checkout `root` on free ports, ready; ended on the way out."""
    with tempfile.TemporaryDirectory() as folder:
        ports = Ports(*_free_ports(3), Path(folder) / "log")
        documented = (root / "docs/settings.md").read_text("utf-8")
        names = OLD_SETTINGS if "AWNET_GOLDEN_PROBE_SECONDS" not in documented else {}
        wished = {names.get(name, name): value for name, value in SETTINGS.items()}
        given = wished | settings | {"port": ports.http, "grpc_port": ports.grpc, "admin_port": ports.admin}
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AWNET_") and k != "PYTHONPATH"}
        environment |= {f"AWNET_{name.upper()}": str(value) for name, value in given.items()}
        with ports.log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "server"], cwd=root, env=environment, stdout=log, stderr=log
            )
        try:
            _wait_until_ready(process, ports)
            yield ports
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return found


def _wait_until_ready(process: subprocess.Popen[bytes], ports: Ports) -> None:
    def logged() -> str:
        return ports.log.read_text("utf-8", "replace")

    def ready() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended:\n{logged()}")
        # By the log: a question over HTTP would be among the answers that are counted.
        return bool(re.search(r" ready: .*\n", logged())) and all(map(_listens, (ports.http, ports.grpc, ports.admin)))

    eventually(ready)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def play(ports: Ports, stored: dict[str, bytes]) -> dict[str, Answer]:
    """Name -> answer for every request, in order; the request log comes last under its own name."""
    import grpc

    listed = asks(stored)
    answers: dict[str, Answer] = {}
    with grpc.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        for ask in listed:
            if ask.method == "GRPC":
                logged = len(_logged(ports))
                answers[ask.name] = _call(channel, ask)
                if ask.path.startswith("Model") and ask.path != "ModelStatistics":
                    eventually(
                        lambda before=logged: len(_logged(ports)) > before
                    )  # a refused call is counted after that
            else:
                answers[ask.name] = exchange(ports, ask)
    # A request is logged once its answer has been sent, so a client may read the answer before the line is there.
    eventually(lambda: _request_id(listed[-1]) in _logged(ports)[-1])
    answers["request log"] = {"body": [_plain_log(line) for line in _logged(ports)]}
    return answers


def _request_id(ask: Ask) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", ask.name)[:64]


def _logged(ports: Ports) -> list[str]:
    """The lines of the request log, one JSON object each."""
    return [line for line in ports.log.read_text("utf-8", "replace").splitlines() if line.startswith("{")]


def exchange(ports: Ports, ask: Ask) -> Answer:
    # The admin port answers under its own names only; "recorded" shows whether a host stands in an answer.
    host = "localhost" if ask.admin else "recorded"
    headers = {"host": host, "content-length": str(len(ask.body))} | ask.headers
    if not ask.body and ask.method in ("GET", "HEAD"):
        del headers["content-length"]
    if ask.numbered:
        headers["x-request-id"] = _request_id(ask)
    head = f"{ask.method} {ask.path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    with socket.create_connection(("127.0.0.1", ports.admin if ask.admin else ports.http), timeout=60) as link:
        link.sendall(head.encode() + b"\r\n" + ask.body)
        answer = HTTPResponse(link, method=ask.method)
        answer.begin()
        body = answer.read()
        if answer.getheader("connection") == "close":
            # A server that lets its client finish sending counts the request after that.
            while link.recv(65536):
                pass
        reply_headers = [(name.lower(), value) for name, value in answer.getheaders()]
        answer.close()
    plain = _plain_body(dict(reply_headers), body)
    if ask.method == "HEAD" and answer.status == 200:
        reply_headers = [(name, "<as of GET>" if name == "content-length" else value) for name, value in reply_headers]
    return {"status": answer.status, "headers": _plain_headers(reply_headers, body), "body": plain}


def _plain_headers(headers: list[tuple[str, str]], body: bytes) -> list[str]:
    """`name: value` without the date; a length that hangs on the digits of a float is left to the body."""
    plain = []
    for name, value in headers:
        if (name == "content-length" and value == str(len(body))) or name == "inference-header-content-length":
            value = "<as the body>"
        elif name == "server-timing":
            value = re.sub(r"dur=[0-9.]+(e-[0-9]+)?", "dur=<ms>", value)
        elif name == "x-request-id" and re.fullmatch(r"[0-9a-f]{32}", value):
            value = "<made>"
        elif name == "allow":
            value = ", ".join(sorted(value.split(", ")))  # Starlette's is a set, in no order
        if name != "date":
            plain.append(f"{name}: {value}")
    return plain


def _plain_body(headers: Headers, body: bytes) -> str | list[str]:
    kind = headers.get("content-type", "")
    if split := headers.get("inference-header-content-length"):
        document = json.loads(body[: int(split)])
        return [body[: int(split)].decode(), *_tensors(document["outputs"], body[int(split) :])]
    if kind.startswith(("text/plain; version", "application/openmetrics-text")):
        return _plain_metrics(body.decode())
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return text64(body)
    text = re.sub(r'("request_id": ?)"[0-9a-f]{32}"', r'\1"<made>"', text)
    text = re.sub(r'"timing_ms":\{[^}]*\}', _plain_timing, text)
    text = re.sub(r'"(https?://127\.0\.0\.1:)\d+"', r'"\1<port>"', text)
    if '"bin_seconds"' in text:
        text = _plain_recent(text)
    return re.sub(r'("client": ?)"[0-9a-f]+"', r'\1"<salted>"', text)


def _plain_timing(found: re.Match[str]) -> str:
    return re.sub(r":[0-9.]+(e-[0-9]+)?", ':"<ms>"', found[0])


def _plain_recent(text: str) -> str:
    """The page's counts by time, summed over time."""
    document = json.loads(text)
    rows = document["counts"]
    document["counts"] = f"<{len(rows)} rows>", [sum(column) for column in zip(*rows, strict=True)]
    return json.dumps(document)


def _plain_metrics(text: str) -> list[str]:
    """Line by line, the buckets of seconds on one line without their counts.

    An exemplar may sit at any bucket of its histogram, so it is only kept whether there are any.
    """
    exemplar = re.compile(r' # \{request_id="[A-Za-z0-9._-]{1,64}"\} [0-9.e-]+( [0-9.]+)?$', re.MULTILINE)
    lines: list[str] = []
    for line in exemplar.sub("", text).splitlines():
        name, labels, value = re.fullmatch(r"([^ {]*)(\{.*\})? (.*)", line).groups() if line[0] != "#" else ("", "", "")
        if name.endswith("_seconds_bucket") and 'le="+Inf"' not in labels:
            edge = re.search(r'le="([^"]*)",?', labels)
            series = f"{name}{labels.replace(edge[0], '')} up to"
            line = f"{lines.pop() if lines[-1].startswith(series) else series} {edge[1]}"
        elif name.startswith("process_") or name.endswith("_seconds_sum"):
            line = f"{name}{labels or ''} <value>"
        elif name == "awnet_build_info":
            line = f"{name}{{<versions>}} {value}"
        lines.append(line)
    return [*lines, "<exemplars>"] if exemplar.search(text) else lines


def _plain_log(line: str) -> str:
    line = re.sub(r'"(time|seconds|decode|queue|inference)":("[^"]*"|[0-9.e-]+)', r'"\1":"<value>"', line)
    return re.sub(r'"(request_id|client)":"[0-9a-f]{12,64}"', r'"\1":"<made>"', line)


def _tensors(outputs: Sequence[Any], raw: bytes) -> list[str]:
    """Raw outputs as JSON, in their order: a float32 becomes the double of the same value, so nothing is lost."""
    found, at = [], 0
    for output in outputs:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            continue
        data, at = raw[at : at + size], at + size
        found.append(json.dumps({"name": output["name"], "data": _listed(output["datatype"], data)}))
    return [*found, *([f"{len(raw) - at} bytes more"] if raw[at:] else [])]


def _listed(datatype: str, data: bytes) -> list[Any]:
    if datatype == "BYTES":
        values, at = [], 0
        while at < len(data):
            end = at + 4 + int.from_bytes(data[at : at + 4], "little")
            values.append(data[at + 4 : end].decode())
            at = end
        return values
    listed: list[Any] = np.frombuffer(data, {"FP32": "<f4", "BOOL": "?"}[datatype]).tolist()
    return listed


def _call(channel: Any, ask: Ask) -> Answer:
    import grpc
    from google.protobuf import json_format
    from tritonclient.grpc import service_pb2 as pb

    method = channel.unary_unary(SERVICE + ask.path)
    try:
        data = method(ask.body, timeout=ask.seconds or 60)
    except grpc.RpcError as error:
        return {"status": error.code().name, "body": error.details()}
    message = getattr(pb, f"{ask.path}Response").FromString(data)
    document = json_format.MessageToDict(message, preserving_proto_field_name=True)
    tensors = []
    if document.pop("raw_output_contents", None) is not None:
        for output, raw in zip(message.outputs, message.raw_output_contents, strict=True):
            tensors.append(json.dumps({"name": output.name, "data": _listed(output.datatype, raw)}))
    text = json.dumps(document, sort_keys=True)  # a map of protobuf has no order
    return {"status": "OK", "body": [text, *tensors] if tensors else text}


# The record.


def stored_images() -> dict[str, bytes]:
    """The lossy files of the record."""
    return {name: base64.b64decode(text) for name, text in json.loads(RECORD.read_text("utf-8"))["files"].items()}


def kept(answers: dict[str, Answer]) -> dict[str, Answer]:
    """`answers` as the record keeps them: of what is prose or an image, no body, no length and no tag."""
    found = {}
    for name, answer in answers.items():
        headers = "\n".join(answer.get("headers", []))
        if "\netag: " in headers or "content-type: text/html" in headers:
            headers = re.sub(r"(?m)^(etag|content-length): .*", r"\1: <any>", headers)
            answer = answer | {"headers": headers.split("\n")}
            if "content-type: application/json" not in headers:
                del answer["body"]
        found[name] = answer
    return found


# Bound on the difference of floats that the network computed, relative to the largest value of their tensor. Each
# float32 result of this network lies within 3e-6 of the float64 one, in whatever order it sums, so two lie within 6e-6
# of each other; rounding to six significant digits adds up to 1e-5. In which order it sums is up to the CPU: under
# QEMU's Haswell (AVX2) and IvyBridge (AVX) the largest difference to a record made with AVX-512 is 9.5e-6.
NEAR = 1e-4
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")
_OUTPUTS = frozenset({"logits", "p_type", "omega", "score"})
_RESULTS = frozenset({"probability", "score", "mean", "std", "values"})
_STATISTICS = frozenset({"value", "score_drift", "omega_drift"})
_SERIES = re.compile(r"awnet_(score_sum|(score|omega)_drift(_images)?|cusum(_limit)?)\b")


def differences(recorded: Answer, now: Answer) -> list[str]:
    """How two answers to one request differ, where the floats of the network may differ by rounding."""
    found = [
        f"{key}: {recorded.get(key)!r} is now {now.get(key)!r}"
        for key in ("status", "headers")
        if recorded.get(key) != now.get(key)
    ]
    before, after = (
        body if isinstance(body, list) else [body] for body in (recorded.get("body", ""), now.get("body", ""))
    )
    if len(before) != len(after):
        return [*found, *difflib.unified_diff(before, after, "recorded", "now", lineterm="", n=0)]
    for old, new in zip(before, after, strict=True):
        if old != new and not _near(old, new):
            found.append(f"{old[:2000]}\n  is now\n{new[:2000]}")
    return found


def _near(old: str, new: str) -> bool:
    """Whether two texts are the same but for rounded floats of the network."""
    if _NUMBER.sub("#", old) != _NUMBER.sub("#", new):
        return False
    if _SERIES.match(old):
        (name, _, was), (same, _, value) = old.rpartition(" "), new.rpartition(" ")
        return name == same and math.isclose(float(was), float(value), rel_tol=NEAR)
    try:
        return _alike(json.loads(old), json.loads(new), False)
    except ValueError:
        return False


def _alike(old: Any, new: Any, near: bool) -> bool:
    """The same JSON value; with `near`, floats within `NEAR` of the largest beside them."""
    if type(old) is not type(new):
        return False
    if isinstance(old, dict):
        tensor = old.get("name") in _OUTPUTS
        return list(old) == list(new) and all(
            _alike(old[key], new[key], near or key in _RESULTS or key in _STATISTICS or (tensor and key == "data"))
            and (key != "thresholds" or old[key] == new[key])
            for key in old
        )
    if isinstance(old, list):
        if near and all(isinstance(value, float) for value in (*old, *new)):
            scale = max(map(abs, old), default=0.0)
            return len(old) == len(new) and all(abs(a - b) <= NEAR * scale for a, b in zip(old, new, strict=True))
        return len(old) == len(new) and all(_alike(a, b, near) for a, b in zip(old, new, strict=True))
    if near and isinstance(old, float):
        return math.isclose(old, new, rel_tol=NEAR)
    return bool(old == new)


def played(root: Path, stored: dict[str, bytes]) -> dict[str, Answer]:
    """The answers of a server of the checkout `root`."""
    with server(root) as ports:
        return play(ports, stored)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.server.recorded_answers",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="compare this checkout with the record, as the test does")
    what.add_argument(
        "--write", action="store_true", help="record the answers that have changed since the first record"
    )
    what.add_argument("--write-all", action="store_true", help="begin a new record with this checkout")
    what.add_argument("--compare", type=Path, metavar="DIR", help="compare this checkout with another, byte for byte")
    given = parser.parse_args()
    if given.compare:
        return compare(given.compare.resolve(), ROOT)
    if given.write_all:
        images = lossy()
        document = {
            "commit": subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.strip(),
            "files": {name: text64(content) for name, content in images.items()},
            "answers": kept(played(ROOT, images)),
            "changed": {},
        }
        RECORD.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
        return 0
    document = json.loads(RECORD.read_text("utf-8"))
    now = kept(played(ROOT, stored_images()))
    recorded = renamed(document["answers"])
    if given.write:
        found = changed(recorded, now)
        if unforeseen := [name for name in found if not meant(name)]:
            print("CHANGED does not name", *unforeseen, sep="\n")
            return 1
        document["changed"] = found
        RECORD.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(f"{len(document['changed'])} answers of {len(now)} have changed since {document['commit']}:")
        print("\n".join(document["changed"]))
        return 0
    expected = recorded | document["changed"]
    unlike = changed(expected, now)
    for name in unlike:
        print(f"{name}:", *differences(expected.get(name, {}), now.get(name, {})), sep="\n")
    print(f"{len(now) - len(unlike)} answers of {len(now)} are as recorded")
    return int(bool(unlike))


def meant(name: str) -> bool:
    """Whether `CHANGED` names this answer."""
    return any(fnmatchcase(name, pattern) for pattern in CHANGED)


def renamed(answers: dict[str, Answer]) -> dict[str, Answer]:
    """`answers` of the first record under the names of today."""
    text = json.dumps(answers)
    for before, after in RENAMED.items():
        text = text.replace(json.dumps(before)[1:-1], json.dumps(after)[1:-1])
    found: dict[str, Answer] = json.loads(text)
    return found


def changed(recorded: dict[str, Answer], now: dict[str, Answer]) -> dict[str, Answer]:
    """The answers of `now` that are not as recorded; an empty one where nothing is asked any more."""
    names = [*now, *(name for name in recorded if name not in now)]
    return {
        name: now.get(name, {})
        for name in names
        if name not in now or name not in recorded or differences(recorded[name], now[name])
    }


def compare(before: Path, after: Path) -> int:
    """Play the list against both checkouts and say which answers are the same, byte for byte.

    Returns 0 where only those differ that `CHANGED` names.
    """
    images = stored_images()
    old, new = renamed(played(before, images)), played(after, images)
    asked: Counter[str] = Counter()
    equal: Counter[str] = Counter()
    foreseen: Counter[str] = Counter()
    compared = unforeseen = 0
    for name in new:
        group = re.split(r"[: ]", name)[0]
        asked[group] += 1
        texts = [json.dumps(answers.get(name), indent=1, ensure_ascii=False) for answers in (old, new)]
        if texts[0] == texts[1]:
            equal[group] += 1
            compared += len(texts[0].encode())
        elif meant(name):
            foreseen[next(why for pattern, why in CHANGED.items() if fnmatchcase(name, pattern))] += 1
        else:
            unforeseen += 1
            print(f"not foreseen: {name}")
            bodies = [text.splitlines() for text in texts]
            print(*difflib.unified_diff(*bodies, str(before), str(after), lineterm="", n=0), sep="\n")
    print("equal:", ", ".join(f"{group} {equal[group]} of {count}" for group, count in asked.items()))
    for why, count in foreseen.items():
        print(f"{count} differ as meant: {why}")
    print(
        f"{equal.total()} answers of {len(new)} are equal, byte for byte ({compared} bytes); "
        f"{foreseen.total()} differ as CHANGED says, {unforeseen} in another way"
    )
    return int(bool(unforeseen))


if __name__ == "__main__":
    sys.exit(main())

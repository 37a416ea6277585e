"""The Open Inference Protocol v2 over HTTP, without any web framework: JSON, and the binary tensor data extension.

A translation of `protocol`: paths to its functions, JSON and raw bytes to its tensors, the error tree to
`{"error": "..."}`. A body may be a JSON document alone, or one followed by raw tensors; then the header
`Inference-Header-Content-Length` says where the document ends.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from ..errors import (
    READ,
    AWNetError,
    BodyTooLarge,
    InvalidTensor,
    MethodNotAllowed,
    NotFound,
    RequestError,
    UnsupportedMedia,
    headers_of,
)
from ..service.service import Service
from . import protocol
from .tensors import Scalar, Tensor, quoted

Headers = list[tuple[bytes, bytes]]
Reply = tuple[int, Headers, bytes]  # status, headers without Content-Length, body

JSON, BINARY = b"application/json", b"application/octet-stream"
HEADER_LENGTH = b"inference-header-content-length"
MAX_DIMENSIONS = 8
INLINE_IMAGES = 8  # the response for more is written on another thread than the event loop's
# Values, lists, texts and so on of a JSON part beside those of its images.
MAX_OTHER_PARTS = 1 << 14

_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(ready|config|infer))?")
_FIXED = ("/v2", "/v2/health/live", "/v2/health/ready")  # health has the protocol's paths, and is not answered here
# Paths of Triton's that its clients know. A plain 404 would read as a wrong address.
_UNSERVED = re.compile(
    r"/v2/(?:(systemsharedmemory|cudasharedmemory|repository|trace|logging)(?:/.*)?"
    r"|models/(?:.+/)?(stats|trace|generate|generate_stream))"
)
_WINDOWS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}  # as zlib numbers them
_LENGTH = re.compile(rb"[0-9]{1,12}")


ROUTES = (
    ("/v2", "GET"),
    *(
        (f"/v2/models/{{model}}{version}{call}", "POST" if call == "/infer" else "GET")
        for version in ("", "/versions/{version}")
        for call in ("", "/ready", "/config", "/infer")
    ),
)


def route(path: str) -> str | None:
    """The template that `path` belongs to, for metrics; None where nothing is served."""
    path = path.removesuffix("/")
    if path in _FIXED:
        return path
    found = _MODEL.fullmatch(path)
    if found is None or _UNSERVED.fullmatch(path):
        return None
    version, call = "/versions/{version}" if found[2] else "", f"/{found[3]}" if found[3] else ""
    return f"/v2/models/{{model}}{version}{call}"


async def answer(service: Service, method: str, path: str, headers: Mapping[bytes, bytes], body: bytes) -> Reply:
    """Status, headers (without Content-Length) and body for one request to a path under /v2.

    Args:
        service: see `server.service`.
        method: upper case; GET also where HEAD was asked, for the same headers.
        path: percent-decoded, without the query.
        headers: names in lower case.
        body: all of it, within the server's limit.

    Raises:
        NotFound, MethodNotAllowed, or as `protocol.infer`; `refusal` answers them.
    """
    path = path.removesuffix("/")
    unserved = _UNSERVED.fullmatch(path)
    if unserved:
        raise NotFound(f"the {unserved[1] or unserved[2]!r} extension is not served here")
    found = _MODEL.fullmatch(path)
    if path != "/v2" and found is None:
        raise NotFound("there is nothing at this path")
    if found is not None and found[3] == "infer":
        if method != "POST":
            raise MethodNotAllowed("only POST is answered here", ["POST"])
    elif method != "GET":
        raise MethodNotAllowed("only GET and HEAD are answered here", READ)
    if found is None:
        return _json(protocol.server_metadata())
    name, call = found[1], found[3]
    version = protocol.version_of(found[2], name)
    if call == "infer":
        return await _infer(service, name, version, headers, body)
    if call == "ready":
        ready = protocol.model_ready(service, name, version)
        return _json({"name": name, "ready": ready}, 200 if ready else 503)
    if call == "config":
        return _json(protocol.model_config(service, name, version))
    return _json(protocol.model_metadata(service, name, version))


def refusal(error: AWNetError, retry_after_seconds: int = 1) -> Reply:
    """The response to `error`."""
    status = protocol.status_of(error)
    _, headers, body = _json({"error": error.detail})
    return status, headers + headers_of(error, status, retry_after_seconds), body


def _json(document: dict[str, Any], status: int = 200) -> Reply:
    return status, [(b"content-type", JSON)], orjson.dumps(document)


class _Read(NamedTuple):
    """A request's body. `binary`: output name -> whether raw bytes are asked for; `otherwise` where none is named."""

    id: str | None
    request: protocol.InferRequest
    binary: Mapping[str, bool]
    otherwise: bool


async def _infer(
    service: Service, name: str, version: int | None, headers: Mapping[bytes, bytes], body: bytes
) -> Reply:
    limits = _Limits.of(service, service.models.find(name, version).contract.preprocessing.size)
    encoding = headers.get(b"content-encoding", b"identity")
    large = len(body) > protocol.INLINE_BYTES or encoding != b"identity"
    given = (name, version, headers.get(HEADER_LENGTH), encoding, body, limits, large)
    if large:
        read = await asyncio.to_thread(_read, *given)
    else:
        read = _read(*given)
    answer = await protocol.infer(service, read.request)
    if answer.outputs[0].shape[0] > INLINE_IMAGES:
        return await asyncio.to_thread(_written, read, answer)
    return _written(read, answer)


def _written(read: _Read, answer: protocol.InferAnswer) -> Reply:
    """The response to an inference request, in the form that it asks for."""
    document: dict[str, Any] = {"model_name": answer.model.name, "model_version": str(answer.model.version)}
    if read.id is not None:
        document["id"] = read.id
    document["parameters"] = answer.parameters
    document["outputs"] = outputs = []
    parts: list[bytes] = [b""]
    for output in answer.outputs:
        described: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if read.binary.get(output.name, read.otherwise):
            parts.append(output.raw())
            described["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            described["data"] = output.listed()  # JSON has no NaN: orjson writes null
        outputs.append(described)
    parts[0] = orjson.dumps(document)
    if len(parts) == 1:
        return 200, [(b"content-type", JSON)], parts[0]
    return 200, [(b"content-type", BINARY), (HEADER_LENGTH, b"%d" % len(parts[0]))], b"".join(parts)


def _unpacked(encoding: bytes, body: bytes, max_bytes: int) -> bytes:
    """The body without its Content-Encoding; never more than `max_bytes` bytes are unpacked.

    Raises UnsupportedMedia, BodyTooLarge, RequestError.
    """
    encoding = encoding.lower()
    if encoding == b"identity":
        return body
    window = _WINDOWS.get(encoding)
    if window is None:
        raise UnsupportedMedia("the Content-Encoding is none of gzip, deflate")
    unpacking = zlib.decompressobj(window)
    try:
        unpacked = unpacking.decompress(body, max_bytes + 1)
    except zlib.error:
        raise RequestError("the body is not encoded as its Content-Encoding says") from None
    if len(unpacked) > max_bytes:
        raise BodyTooLarge(f"the body is larger than {max_bytes} bytes")
    if not unpacking.eof or unpacking.unused_data:
        raise RequestError("the encoded body is cut, or goes on after its end")
    return unpacked


class _Limits(NamedTuple):
    """What a body may hold: bytes unpacked, and in its JSON part numbers, lists and objects with members, and texts.

    As many as a tensor of the most images can need, in the shape that the model takes, and some for all else. The
    parser would take half a second for a body full of short texts, and nothing else runs in this process meanwhile.
    """

    unpacked: int
    values: int
    nested: int
    texts: int

    @classmethod
    def of(cls, service: Service, size: int) -> _Limits:
        images = service.settings.max_images
        return cls(
            service.settings.max_body_bytes,
            images * 3 * size * size + MAX_OTHER_PARTS,
            images * (1 + 3 * (1 + size)) + MAX_OTHER_PARTS,
            images + MAX_OTHER_PARTS,
        )

    def check(self, text: bytes) -> None:
        """Raises RequestError before the parser sees `text`."""
        if text.count(b",") > self.values:
            raise RequestError(f"the JSON part has more than {self.values} values: more than its images can need")
        if sum(map(text.count, (b"[", b"{", b":"))) > self.nested:
            raise RequestError(f"the JSON part has more than {self.nested} lists, objects and members")
        if text.count(b'"') > 2 * self.texts:
            raise RequestError(f"the JSON part has more than {self.texts} texts; data of UINT8 are integers")


def _read(
    name: str,
    version: int | None,
    header_length: bytes | None,
    encoding: bytes,
    body: bytes,
    limits: _Limits,
    large: bool,
) -> _Read:
    """The body of an inference request. Raises RequestError, InvalidTensor, UnsupportedMedia, BodyTooLarge."""
    body = _unpacked(encoding, body, limits.unpacked)
    end = len(body)
    if header_length is not None:
        if not _LENGTH.fullmatch(header_length) or int(header_length) > len(body):
            raise RequestError("Inference-Header-Content-Length must be the length of the JSON part of the body")
        end = int(header_length)
    text = body[:end]
    limits.check(text)
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise RequestError("the body is not JSON, or Inference-Header-Content-Length is missing or wrong") from None
    document = _object(document, "the request")
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise RequestError("'id' must be a string")
    parameters = _parameters(document, "the request")

    inputs, raw = [], memoryview(body)[end:]
    for given in _objects(document, "inputs"):
        tensor, used = _tensor(given, raw)
        inputs.append(tensor)
        raw = raw[used:]
    if len(raw):
        raise InvalidTensor(f"{len(raw)} bytes after the JSON part belong to no input: see 'binary_data_size'")

    wanted, binary = [], {}
    for given in _objects(document, "outputs"):
        output = protocol.Wanted(_text(given, "name", "an output"), _parameters(given, "an output"))
        wanted.append(output)
        if "binary_data" in output.parameters:
            binary[output.name] = _flag(output.parameters, "binary_data")
    otherwise = _flag(parameters, "binary_data_output")
    request = protocol.InferRequest(name, version, inputs, wanted, parameters, large)
    return _Read(request_id, request, binary, otherwise)


def _tensor(given: dict[str, Any], raw: memoryview) -> tuple[Tensor, int]:
    """One input, and how many bytes of `raw` are its data."""
    name, datatype = _text(given, "name", "an input"), _text(given, "datatype", "an input")
    where = f"input {quoted(name)}"
    shape = given.get("shape")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise InvalidTensor(f"{where}: 'shape' must be a list of at most {MAX_DIMENSIONS} integers")
    if any(type(n) is not int or n < 0 for n in shape):
        raise InvalidTensor(f"{where}: 'shape' must hold integers of at least 0")
    parameters = _parameters(given, where)
    data = given.get("data")
    if "binary_data_size" in parameters:
        size = parameters["binary_data_size"]
        if data is not None:
            raise InvalidTensor(f"{where}: both 'data' and 'binary_data_size'")
        if type(size) is not int or not 0 <= size <= len(raw):
            raise InvalidTensor(f"{where}: 'binary_data_size' must be a number of bytes that follow the JSON part")
        return Tensor(name, datatype, tuple(shape), raw[:size], parameters), size
    if "shared_memory_region" in parameters:
        data = []  # `protocol` refuses it by name
    if not isinstance(data, list):
        raise InvalidTensor(f"{where}: no list 'data', and no 'binary_data_size'")
    return Tensor(name, datatype, tuple(shape), data, parameters), 0


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{what} must be a JSON object")
    return value


def _objects(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    values = document.get(key)
    if values is None:
        return []
    if not isinstance(values, list) or len(values) > protocol.MAX_TENSORS:
        raise RequestError(f"{key!r} must be a list of at most {protocol.MAX_TENSORS} objects")
    return [_object(value, f"each of {key!r}") for value in values]


def _text(given: dict[str, Any], key: str, what: str) -> str:
    value = given.get(key)
    if not isinstance(value, str):
        raise RequestError(f"{what} has no text {key!r}")
    return value


def _parameters(given: dict[str, Any], what: str) -> dict[str, Scalar]:
    value = given.get("parameters")
    if value is None:
        return {}
    found = _object(value, f"'parameters' of {what}")
    for key, scalar in found.items():
        if not isinstance(scalar, bool | int | float | str):
            raise RequestError(f"parameter {quoted(key)} of {what} must be a string, a number or a boolean")
    return found


def _flag(parameters: Mapping[str, Scalar], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"parameter {name!r} must be true or false")
    return value

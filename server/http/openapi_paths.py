"""What the OpenAPI document says of routes that are not FastAPI's: the Open Inference Protocol and the admin port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .description import Description
from .schemas import Problem

Scalars = dict[str, str | float | bool]

ADMIN_URL = "http://127.0.0.1:8002"


class Open(BaseModel):
    """Members that are not named here may be there, too."""

    model_config = ConfigDict(extra="allow")


class ServerMetadata(Open):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(Open):
    """In `shape`, -1 is the number of images."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Open):
    """Of the inputs, a request has exactly one."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(Open):
    name: str
    ready: bool


class ModelConfiguration(Open):
    """The same facts as in Triton's model configuration."""

    name: str
    platform: str
    max_batch_size: int


class InferenceInput(Open):
    """`data` is flat or nested; without it, `parameters.binary_data_size` bytes stand behind the JSON."""

    name: Literal["image", "image_bytes"]
    shape: list[int]
    datatype: Literal["UINT8", "BYTES"]
    parameters: Scalars | None = None
    data: list[Any] | None = None


class RequestedOutput(Open):
    name: str
    parameters: Scalars | None = None


class InferenceRequest(Open):
    """docs/protocol.md says which inputs, outputs and parameters there are."""

    id: str | None = None
    parameters: Scalars | None = None
    inputs: list[InferenceInput]
    outputs: list[RequestedOutput] | None = None


class InferenceOutput(Open):
    name: str
    datatype: str
    shape: list[int]
    parameters: Scalars | None = None
    data: list[Any] | None = None


class InferenceResponse(Open):
    model_name: str
    model_version: str
    id: str | None = None
    parameters: Scalars
    outputs: list[InferenceOutput]


class ProtocolError(Open):
    """An error of the Open Inference Protocol."""

    error: str


class Version(BaseModel):
    """Which version."""

    model_config = ConfigDict(extra="forbid")

    version: int | str


class Shadowed(BaseModel):
    """The version that answers as well, only to be compared; null for none."""

    model_config = ConfigDict(extra="forbid")

    version: int | str | None


class Marked(BaseModel):
    """What a finding was."""

    model_config = ConfigDict(extra="forbid")

    mark: Literal["false_alarm", "confirmed"]
    comment: str = Field("", max_length=1000)


class Split(BaseModel):
    """The share of unversioned requests that a version gets; without a version, the split ends."""

    model_config = ConfigDict(extra="forbid")

    version: int | str | None
    share: float | None = Field(None, ge=0, le=1)


SHAPES: tuple[type[BaseModel], ...] = (
    Description,
    InferenceRequest,
    InferenceResponse,
    ModelConfiguration,
    ModelMetadata,
    ModelReady,
    Problem,
    ProtocolError,
    ServerMetadata,
    Marked,
    Shadowed,
    Split,
    Version,
)
JSON, PROBLEM, BINARY = "application/json", "application/problem+json", "application/octet-stream"

PROTOCOL_ERRORS = {
    400: "The request cannot be answered as it is.",
    404: "No such model, or that version of it is not served.",
    405: "Another method is answered here.",
    408: "The body came too slowly.",
    413: "The body, an image, or the number of images is too large.",
    415: "A Content-Encoding other than gzip and deflate.",
    422: "A policy rejects an image.",
    503: "The queue is full or the model is not ready; try again after `Retry-After` seconds.",
    504: "The answer would have come after the deadline.",
}
OF_METADATA = (404, 405, 503)
ADMIN_ERRORS = {
    400: "The body is not what its headers say.",
    403: "No web page is answered here.",
    404: "No such model, version or finding, or nothing to go back to.",
    405: "Another method is answered here.",
    409: "The version cannot be served; nothing has changed.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    421: "The admin port is asked under another name than it has.",
    422: "The body is no JSON object of the members that are taken.",
    503: "The models are still being loaded.",
}


def ref(shape: type[BaseModel]) -> dict[str, Any]:
    """The schema of `shape`."""
    return {"$ref": f"#/components/schemas/{shape.__name__}"}


def response(about: str, shape: type[BaseModel] | None = None, media: str = JSON) -> dict[str, Any]:
    """One answer; any JSON object where there is no shape."""
    return {"description": about, "content": {media: {"schema": ref(shape) if shape else {"type": "object"}}}}


def problems(found: Mapping[int, str], shape: type[BaseModel] = Problem, media: str = PROBLEM) -> dict[str, Any]:
    """Refusals among the `responses` of a route."""
    return {str(status): response(about, shape, media) for status, about in found.items()}


def _in_path(name: str, about: str, example: str) -> dict[str, Any]:
    schema = {"type": "string"}
    return {"name": name, "in": "path", "required": True, "description": about, "schema": schema, "example": example}


def protocol(model: str) -> dict[str, Any]:
    """The paths of the Open Inference Protocol, health aside; `model` is the name of one that is served."""
    of_model = _in_path("model", "The model's name.", model)
    of_version = _in_path("version", "One of its versions, a number.", "1")
    few = {status: PROTOCOL_ERRORS[status] for status in OF_METADATA}
    refused = problems(few, ProtocolError, JSON)

    def get(about: str, shape: type[BaseModel], name: str, parameters: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        return {
            "get": {
                "tags": ["Open Inference Protocol"],
                "summary": about,
                "operationId": name,
                "parameters": list(parameters),
                "responses": {"200": response(about, shape), **refused},
            }
        }

    def infer(name: str, parameters: Sequence[dict[str, Any]]) -> dict[str, Any]:
        binary: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
        answered = response("The outputs, in the order of the request.", InferenceResponse)
        answered["content"][BINARY] = binary
        return {
            "post": {
                "tags": ["Open Inference Protocol"],
                "summary": "Images in, tensors out.",
                "operationId": name,
                "parameters": [
                    *parameters,
                    {
                        "name": "Inference-Header-Content-Length",
                        "in": "header",
                        "description": "Where the JSON ends, in a body of JSON and raw tensors.",
                        "schema": {"type": "integer", "minimum": 0},
                    },
                ],
                "requestBody": {
                    "required": True,
                    "content": {JSON: {"schema": ref(InferenceRequest)}, BINARY: binary},
                },
                "responses": {"200": answered, **problems(PROTOCOL_ERRORS, ProtocolError, JSON)},
            }
        }

    paths = {"/v2": get("The server's name, version and extensions.", ServerMetadata, "server_metadata")}
    for suffix, path, given in (("", "", [of_model]), ("_version", "/versions/{version}", [of_model, of_version])):
        base = f"/v2/models/{{model}}{path}"
        ready = get("Whether the model would answer.", ModelReady, f"model{suffix}_ready", given)
        ready["get"]["responses"]["503"] = response("It would not.", ModelReady)
        paths |= {
            base: get("What the model takes and gives.", ModelMetadata, f"model{suffix}_metadata", given),
            f"{base}/ready": ready,
            f"{base}/config": get(
                "The same as a model configuration.", ModelConfiguration, f"model{suffix}_config", given
            ),
            f"{base}/infer": infer(f"model{suffix}_infer", given),
        }
    return paths


def admin(model: str) -> dict[str, Any]:
    """The paths of the admin port; `model` is the name of one that is served.

    Whether there is that port and where is told to nobody here: its address is the one of a server without settings.
    """
    named = [_in_path("name", "The model's name.", model)]

    def call(
        method: str,
        name: str,
        about: str,
        body: type[BaseModel] | None = None,
        parameters: Sequence[dict[str, Any]] = (),
    ) -> dict[str, Any]:
        operation: dict[str, Any] = {
            "tags": ["admin"],
            "summary": about,
            "operationId": name,
            "parameters": list(parameters),
            "responses": {"200": response("How things stand now."), **problems(ADMIN_ERRORS)},
        }
        if body is not None:
            operation["requestBody"] = {"required": True, "content": {JSON: {"schema": ref(body)}}}
        return {
            method: operation,
            "servers": [{"url": ADMIN_URL, "description": "The admin port, where the default has it."}],
        }

    identity = _in_path("id", "The finding's id.", "0" * 32)
    evidence = call("get", "admin_evidence", "What there is of a finding, as a ZIP.", None, [identity])
    evidence["get"]["responses"]["200"] = {
        "description": "Events, thresholds, how to get the verdict again, and a manifest of hashes.",
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
    most = {
        "name": "most",
        "in": "query",
        "description": "So many.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 9999},
    }
    address = {
        "name": "address",
        "in": "query",
        "description": "Also say under which hash this client is found.",
        "schema": {"type": "string"},
    }
    return {
        "/admin/models": call("get", "admin_models", "Open versions and their roles."),
        "/admin/detection": call("get", "admin_detection", "What the monitoring has seen.", parameters=[address]),
        "/admin/reload": call("post", "admin_reload", "Look for new versions now."),
        "/admin/models/{name}/rollback": call("post", "admin_rollback", "Back to the previous version.", None, named),
        "/admin/models/{name}/promote": call("post", "admin_promote", "Serve this version.", Version, named),
        "/admin/canary": call("put", "admin_canary", "Begin, change or end a canary.", Split),
        "/admin/findings": call("get", "admin_findings", "The newest findings.", None, [most]),
        "/admin/findings/{id}": call("post", "admin_mark", "Mark a finding.", Marked, [identity]),
        "/admin/findings/{id}/evidence": evidence,
        "/admin/shadow": call("put", "admin_shadow", "Begin or end a shadow.", Shadowed),
    }

"""What each call over gRPC answers: the functions of `protocol`, and health, as messages."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2, service_pb2

from ..errors import UnknownModel, UnknownService
from ..service.service import Service
from . import grpc_standard, protocol
from .grpc_messages import infer_response
from .tensors import quoted

SERVICE = grpc_standard.INFERENCE
HEALTH_CHECK, HEALTH_WATCH = f"/{grpc_standard.HEALTH}/Check", f"/{grpc_standard.HEALTH}/Watch"
INFER = service_pb2.ModelInferRequest


async def _server_live(service: Service, message: Any, context: Any) -> Any:
    return service_pb2.ServerLiveResponse(live=True)


async def _server_ready(service: Service, message: Any, context: Any) -> Any:
    return service_pb2.ServerReadyResponse(ready=service.ready)


async def _server_metadata(service: Service, message: Any, context: Any) -> Any:
    return service_pb2.ServerMetadataResponse(**protocol.server_metadata())


async def _model_ready(service: Service, message: Any, context: Any) -> Any:
    try:
        ready = protocol.model_ready(service, message.name, protocol.version_of(message.version, message.name))
    except UnknownModel:
        ready = False  # a probe wants yes or no; over HTTP the client makes the same of a 404
    return service_pb2.ModelReadyResponse(ready=ready)


async def _model_metadata(service: Service, message: Any, context: Any) -> Any:
    found = protocol.model_metadata(service, message.name, protocol.version_of(message.version, message.name))
    return service_pb2.ModelMetadataResponse(**found)


async def _model_config(service: Service, message: Any, context: Any) -> Any:
    found = protocol.model_config(service, message.name, protocol.version_of(message.version, message.name))
    return service_pb2.ModelConfigResponse(config=json_format.ParseDict(found, model_config_pb2.ModelConfig()))


class InferCall(NamedTuple):
    """A ModelInferRequest, translated."""

    id: str
    request: protocol.InferRequest


async def _model_infer(service: Service, message: InferCall, context: Any) -> Any:
    left = context.time_remaining()
    answer = await protocol.infer(service, message.request, math.inf if left is None else left)
    return infer_response(message.id, answer)


SERVED: dict[str, Callable[[Service, Any, Any], Awaitable[Any]]] = {
    "ServerLive": _server_live,
    "ServerReady": _server_ready,
    "ServerMetadata": _server_metadata,
    "ModelReady": _model_ready,
    "ModelMetadata": _model_metadata,
    "ModelConfig": _model_config,
    "ModelInfer": _model_infer,
}


async def _health_check(service: Service, message: Any, context: Any) -> Any:
    if message.service not in ("", SERVICE):
        raise UnknownService(f"there is no service {quoted(message.service)} here")
    return grpc_standard.HealthCheckResponse(status=health(service))


def health(service: Service) -> int:
    """Readiness as a ServingStatus."""
    return grpc_standard.SERVING if service.ready else grpc_standard.NOT_SERVING


ANSWERS = SERVED | {HEALTH_CHECK: _health_check}

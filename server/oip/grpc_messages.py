"""Protobuf messages of the Open Inference Protocol to requests of `protocol`, and its answers to messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tritonclient.grpc import service_pb2

from ..errors import InvalidTensor, RequestError
from . import protocol
from .tensors import Scalar, Tensor, quoted

DOUBLES = "doubles"  # the response parameter that repeats the others which are doubles, as JSON

# Where InferTensorContents keeps the values of the two datatypes that a model takes.
_CONTENTS = {"UINT8": "uint_contents", "BYTES": "bytes_contents"}


def infer_request(message: Any, large: bool = False) -> protocol.InferRequest:
    """`message` (ModelInferRequest) as the core takes it. Raises RequestError, InvalidTensor.

    Args:
        large: see `protocol.InferRequest`.
    """
    limit = protocol.MAX_TENSORS
    if len(message.inputs) > limit or len(message.outputs) > limit:
        raise RequestError(f"more than {limit} inputs or outputs")
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidTensor(f"{len(raw)} raw_input_contents for {len(message.inputs)} inputs")
    inputs = []
    for place, given in enumerate(message.inputs):
        parameters = _parameters(given.parameters)
        data = raw[place] if raw else _contents(given)
        if raw and given.HasField("contents"):
            raise InvalidTensor(f"input {quoted(given.name)}: both contents and raw_input_contents")
        if any(dimension < 0 for dimension in given.shape):
            raise InvalidTensor(f"input {quoted(given.name)}: its shape must hold integers of at least 0")
        inputs.append(Tensor(given.name, given.datatype, tuple(given.shape), data, parameters))
    wanted = [protocol.Wanted(output.name, _parameters(output.parameters)) for output in message.outputs]
    return protocol.InferRequest(
        message.model_name,
        protocol.version_of(message.model_version, message.model_name),
        inputs,
        wanted,
        _parameters(message.parameters),
        large,
    )


def _contents(given: Any) -> Any:
    """The values of an input (InferInputTensor) that came in its `contents`."""
    name = _CONTENTS.get(given.datatype)
    if name is None:
        return ()  # `protocol` refuses the datatype
    others = [field.name for field, _ in given.contents.ListFields() if field.name != name]
    if others:
        raise InvalidTensor(f"input {quoted(given.name)}: {given.datatype} data belongs in {name}, not in {others[0]}")
    return getattr(given.contents, name)


def _parameters(given: Any) -> dict[str, Scalar]:
    """A map of InferParameter. Raises RequestError for one without a value."""
    found: dict[str, Scalar] = {}
    for name, parameter in given.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise RequestError(f"parameter {quoted(name)} has no value")
        found[name] = getattr(parameter, kind)
    return found


def infer_response(request_id: str, answer: protocol.InferAnswer) -> Any:
    """`answer` as ModelInferResponse; always raw, as the clients expect."""
    response = service_pb2.ModelInferResponse(
        model_name=answer.model.name,
        model_version=str(answer.model.version),
        id=request_id,
        outputs=[
            {"name": output.name, "datatype": output.datatype, "shape": output.shape} for output in answer.outputs
        ],
        raw_output_contents=[output.raw() for output in answer.outputs],
    )
    _set(response.parameters, answer.parameters)
    # KServe's messages know no doubles: its clients see such a parameter without a value.
    doubles = {name: value for name, value in answer.parameters.items() if isinstance(value, float)}
    if doubles:
        response.parameters[DOUBLES].string_param = json.dumps(doubles)
    return response


def _set(field: Any, parameters: Mapping[str, Scalar]) -> None:
    for name, value in parameters.items():
        if isinstance(value, bool):
            field[name].bool_param = value
        elif isinstance(value, int):
            field[name].int64_param = value
        elif isinstance(value, float):
            field[name].double_param = value
        else:
            field[name].string_param = value

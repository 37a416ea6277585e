"""A protobuf message is counted before it is parsed: nobody keeps the event loop busy with one that no image needs."""

from __future__ import annotations

import time

import pytest
from tritonclient.grpc import service_pb2

from server.errors import RequestError
from server.oip import wire

VALUES = 32 * 3 * 32 * 32
LARGEST = 8 << 20
IMAGE = service_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1, 3, 32, 32])


def field(number: int, data: bytes) -> bytes:
    """A field with a length, as protobuf writes it."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def filled(head: bytes, unit: bytes, tail: bytes = b"") -> bytes:
    return head + unit * ((LARGEST - len(head) - len(tail)) // len(unit)) + tail


def in_contents(data: bytes) -> bytes:
    return field(5, IMAGE.SerializeToString() + field(5, data))


PARAMETER = field(4, field(1, b"name") + field(2, b"\x08\x01"))
# Each kept the event loop busy for 0.04 to 3.6 seconds.
SLOW = {
    "numbers, packed": in_contents(field(4, bytes(LARGEST))),
    "numbers, one by one": in_contents(filled(b"", b"\x20\x01")),
    "numbers of another kind": in_contents(field(5, bytes(LARGEST))),
    "files without bytes": in_contents(filled(b"", b"\x42\x00")),
    "dimensions": field(5, field(3, bytes(LARGEST))),
    "parameters": filled(b"", PARAMETER),
    "parameters of an input": field(5, filled(b"", PARAMETER)),
    "parameters of an output": field(6, filled(b"", field(2, field(1, b"name") + field(2, b"\x08\x01")))),
    "inputs": filled(b"", field(5, b"")),
    "raw contents": filled(b"", field(7, b"")),
    "contents over and over": field(5, filled(b"", field(5, b""))),
    "fields that nobody knows": filled(b"", b"\x78\x01"),
    "groups": filled(b"", b"\x7b\x7c"),
    "a number that does not end": b"\xff" * LARGEST,
}


@pytest.mark.parametrize("what", SLOW)
def test_what_is_slow_to_read_is_refused_or_cut_short_before_it_is_parsed(what: str) -> None:
    """In little time; a tag that does not end is left to the parser, which stops there as well."""
    begun = time.thread_time()
    if what == "a number that does not end":
        wire.check(SLOW[what], VALUES, wire.INFER)
    else:
        with pytest.raises(RequestError):
            wire.check(SLOW[what], VALUES, wire.INFER)
    assert time.thread_time() - begun < 0.5


def test_what_images_need_passes() -> None:
    """The most images, as numbers of two bytes each, one by one, as raw bytes and as files."""
    numbers = service_pb2.ModelInferRequest(model_name="awnet", inputs=[IMAGE])
    numbers.inputs[0].contents.uint_contents.extend([255] * VALUES)
    wire.check(numbers.SerializeToString(), VALUES, wire.INFER)
    wire.check(in_contents(b"\x20\xff\x01" * VALUES), VALUES, wire.INFER)
    raw = service_pb2.ModelInferRequest(inputs=[IMAGE], raw_input_contents=[bytes(VALUES)])
    raw.parameters["mode"].string_param = "auto"
    raw.outputs.add(name="omega").parameters["classification"].int64_param = 1
    wire.check(raw.SerializeToString(), VALUES, wire.INFER)
    files = service_pb2.ModelInferRequest(inputs=[{"name": "image_bytes", "datatype": "BYTES", "shape": [32]}])
    files.inputs[0].contents.bytes_contents.extend([bytes(200_000)] * 32)
    wire.check(files.SerializeToString(), VALUES, wire.INFER)


def test_a_broken_message_is_left_to_the_parser() -> None:
    """Cut anywhere, it is walked to its end and no further."""
    numbers = service_pb2.ModelInferRequest(model_name="awnet", inputs=[IMAGE])
    numbers.inputs[0].contents.uint_contents.extend([200] * 50)
    whole = numbers.SerializeToString()
    for end in range(len(whole)):
        wire.check(whole[:end], VALUES, wire.INFER)


def test_the_numbers_of_fields_are_those_of_the_protocol() -> None:
    """Else the wrong ones would be counted."""
    request, tensor = service_pb2.ModelInferRequest, service_pb2.ModelInferRequest.InferInputTensor
    named = {field.number: field.name for field in request.DESCRIPTOR.fields}
    assert [named[number] for number in wire.INFER.nested] == ["parameters", "inputs", "outputs"]
    named = {field.number: field.name for field in tensor.DESCRIPTOR.fields}
    assert [named[number] for number in (wire.SHAPE, *wire.INPUT.nested)] == ["shape", "parameters", "contents"]
    contents = service_pb2.InferTensorContents.DESCRIPTOR.fields_by_name
    assert contents["bytes_contents"].number == wire.BYTES_CONTENTS

"""What a protobuf message holds, counted before it is parsed: fields, and the numbers in its tensors.

The parser takes up to half a microsecond for each byte of a message that is full of small fields, and a parameter or a
dimension of a shape takes more when it is read: 8 MB of them would stop everything else for seconds. A message is
walked field by field here, which ends at the first that is too many.
"""

from __future__ import annotations

from ..errors import RequestError

MAX_FIELDS = 4096  # fields, and bytes of shapes; a request of 32 images has some hundred of both
FEW_FIELDS = 256
MAX_VARINT_BYTES = 10


class _Message:
    """A kind of message: `nested` has its fields that are messages themselves, by number."""

    def __init__(self, nested: dict[int, _Message] | None = None) -> None:
        self.nested = nested or {}


SHAPE, BYTES_CONTENTS = 3, 8  # fields of InferInputTensor and InferTensorContents
CONTENTS = _Message()  # InferTensorContents: numbers, packed or one by one, and files
PARAMETERS = _Message({2: _Message()})  # an entry of a map, and its value
INPUT = _Message({4: PARAMETERS, 5: CONTENTS})
INFER = _Message({4: PARAMETERS, 5: INPUT, 6: _Message({2: PARAMETERS})})  # ModelInferRequest
PLAIN = _Message()


def few(message: bytes, kind: _Message = PLAIN) -> bool:
    """Whether a message has so few fields that reading it takes no time to speak of."""
    try:
        check(message, FEW_FIELDS, kind, FEW_FIELDS)
    except RequestError:
        return False
    return True


def check(message: bytes, values: int = 0, kind: _Message = PLAIN, fields: int = MAX_FIELDS) -> None:
    """Refuse a message with more than `fields` fields, or with more than `values` numbers and files in its tensors.

    One that is cut or broken passes: the parser refuses it.

    Args:
        values: what the images of a request can need; a number takes up to two bytes.

    Raises:
        RequestError: too many.
    """
    left = values
    spans = [(0, len(message), kind)]
    while spans:
        at, end, kind = spans.pop()
        while at < end:
            tag, at = _varint(message, at, end)
            number, coding = tag >> 3, tag & 7
            if kind is CONTENTS:
                left -= 1
            else:
                fields -= 1
            if coding == 0:
                _, at = _varint(message, at, end)
            elif coding == 1:
                at += 8
            elif coding == 5:
                at += 4
            elif coding == 2:
                length, at = _varint(message, at, end)
                stop = min(end, at + length)
                if kind is CONTENTS and number != BYTES_CONTENTS:
                    left -= max(1, (stop - at) // 2) - 1  # the field has counted as one
                elif kind is INPUT and number == SHAPE:
                    fields -= stop - at
                if number in kind.nested:
                    spans += ((stop, end, kind), (at, stop, kind.nested[number]))
                    at = end
                else:
                    at = stop
            if fields < 0 or left < 0:
                raise RequestError("the message has more fields or values than its images can need")


def _varint(message: bytes, at: int, end: int) -> tuple[int, int]:
    """The number at `at` and where it ends; `end` where it does not."""
    value = 0
    for place, byte in enumerate(message[at : min(end, at + MAX_VARINT_BYTES)]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    return 0, end

"""What a caller may give as an image, to the bytes of a file. Nothing is fetched, and nothing but files is decoded."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    ImageLike = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image | NDArray[np.uint8]
else:
    ImageLike = Any

_ADDRESS = re.compile(r"(?:https?|ftp|data):", re.IGNORECASE)
_UNFIT = re.compile(r'[\x00-\x1f\x7f"\\/]')
MAX_BYTES = 64 << 20  # of a file that is read: a device has no end
MAX_NAME = 120  # characters of a file's name that are sent


class Encoded:
    """One image as a file.

    Attributes:
        data: PNG, JPEG or WebP, as far as the caller is right.
        name: of the file as the caller gave it; its results have it.
    """

    __slots__ = ("data", "name")

    def __init__(self, data: bytes, name: str | None = None) -> None:
        self.data = data
        self.name = name

    @property
    def sent_name(self) -> str:
        """What the server is told of the name: its last part, fit for a header."""
        return _UNFIT.sub("_", Path(self.name).name[-MAX_NAME:] if self.name else "") or "image"


def encode(image: ImageLike) -> Encoded:
    """The file that `image` is, or a PNG of its pixels.

    Args:
        image: a path, the bytes of a file, a binary file object, a Pillow image, or an array uint8 [height, width, 3],
            RGB. Files are sent as they are, which says most to the server: pixels do not tell that a lossy codec or a
            colour palette changed them before.

    Raises:
        InputError: anything else, an address, or a file that cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        if _ADDRESS.match(path):
            raise InputError("an address is not fetched: fetch it yourself, and give the bytes")
        try:
            with open(path, "rb", opener=_never_waiting) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ValueError("it is neither a file nor a link to one")
                data = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise InputError(f"{path[:200]!r} cannot be read: {reason}") from error
        if len(data) > MAX_BYTES:
            raise InputError(f"{path[:200]!r} cannot be read: it is larger than {MAX_BYTES >> 20} MiB")
        return Encoded(data, path)
    if isinstance(image, bytes | bytearray | memoryview):
        return Encoded(bytes(image))
    pillow, numpy = sys.modules.get("PIL.Image"), sys.modules.get("numpy")  # who has such an object has imported it
    if pillow is not None and isinstance(image, pillow.Image):
        return Encoded(_of_pillow(image), getattr(image, "filename", None) or None)
    if numpy is not None and isinstance(image, numpy.ndarray):
        return Encoded(_of_array(image))
    read = getattr(image, "read", None)
    if read is None:
        kind = type(image)
        raise InputError(f"{kind.__module__}.{kind.__qualname__} is no image: give a path, bytes, a file, or pixels")
    try:
        data = read()
    except (OSError, ValueError) as error:
        raise InputError(f"the file cannot be read: {error}") from error
    if not isinstance(data, bytes):
        raise InputError("the file is open as text: open it with 'rb'")
    name = getattr(image, "name", None)
    return Encoded(data, name if isinstance(name, str) else None)


def _never_waiting(path: str, flags: int) -> int:
    """Opens as `open` does, but for a pipe without a writer, which that waits for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _of_pillow(image: Image) -> bytes:
    buffer = io.BytesIO()
    try:
        (image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else image.convert("RGB")).save(
            buffer, "PNG", compress_level=1
        )
    except (OSError, ValueError, SyntaxError) as error:  # of a lazy image, what Pillow raises for broken files
        raise InputError(f"the image cannot be stored: {error}") from error
    return buffer.getvalue()


def _of_array(pixels: NDArray[Any]) -> bytes:
    """A PNG of [height, width, 3] uint8: no codec is needed to write one."""
    if pixels.dtype != "uint8" or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InputError(f"an array must be uint8 [height, width, 3], RGB, not {pixels.dtype} {list(pixels.shape)}")
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # 0: no filter
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        b"".join(_chunk(kind, data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    )


def _chunk(kind: bytes, data: bytes) -> Iterator[bytes]:
    yield struct.pack(">I", len(data))
    yield kind
    yield data
    yield struct.pack(">I", zlib.crc32(kind + data))

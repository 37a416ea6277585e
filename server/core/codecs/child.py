"""A process that decodes images for a `decode_pool.DecodePool`: `python -m server.core.codecs.child FD SECONDS BYTES`.

Over the socket FD come files, and back go pixels or the sentence of a refusal. A file that takes more than SECONDS of
CPU time ends the process by SIGPROF, which needs nobody to be awake; BYTES is the memory that it may have.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys

from ...errors import ImageError, UnsupportedMedia
from .decode import decode, read
from .file import UNUSUAL, refuse

REQUEST = struct.Struct("<IH")  # bytes of the file, size
REPLY = struct.Struct("<BBI")  # whether it is refused, what is unusual (from 1), bytes of pixels or of the sentence
NICENESS = 5  # small images are decoded in the server itself, and come first


def received(connection: socket.socket, count: int) -> bytes:
    """Exactly so many bytes. Raises EOFError."""
    data, at = bytearray(count), 0
    view = memoryview(data)
    while at < count:
        got = connection.recv_into(view[at:])
        if not got:
            raise EOFError
        at += got
    return bytes(data)


def serve(connection: socket.socket, seconds: float) -> None:
    """Decode what comes, until the other end is closed."""
    while True:
        try:
            length, size = REQUEST.unpack(received(connection, REQUEST.size))
            data = received(connection, length)
        except (EOFError, ConnectionError):
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)
        refused, unusual = False, 0
        try:
            try:
                decoded = decode(read(data), size)
            except MemoryError:
                raise refuse(read(data).format, "needs more memory than one may have") from None
            payload, unusual = decoded.rgb, UNUSUAL.index(decoded.unusual) + 1 if decoded.unusual else 0
        except (ImageError, UnsupportedMedia) as error:
            refused, payload = True, error.detail.encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        try:
            connection.sendall(REPLY.pack(refused, unusual, len(payload)) + payload)
        except ConnectionError:
            return


def confine(max_bytes: int) -> None:
    """No signals of a terminal or of an orderly end (the server says when), no files, no core dumps, little memory."""
    import resource  # not on every system, as the rest of the server is

    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    for limit, value in ((resource.RLIMIT_AS, max_bytes), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    os.nice(NICENESS)


if __name__ == "__main__":
    descriptor, seconds, max_bytes = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    confine(max_bytes)
    serve(socket.socket(fileno=descriptor), seconds)

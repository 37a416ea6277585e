"""A web server whose answers a test chooses, path by path, and that keeps what it was asked."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from typing import Any, NamedTuple


class Asked(NamedTuple):
    path: str
    headers: dict[str, str]  # names in lower case


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Static

    def do_GET(self) -> None:
        self.server.asked.append(Asked(self.path, {name.lower(): value for name, value in self.headers.items()}))
        answer = self.server.routes.get(self.path, self.server.routes.get(self.path.partition("?")[0], missing))
        try:
            answer(self)
        except OSError:
            self.close_connection = True  # the client has had enough

    def begin(self, status: int, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length is not None:
            self.send_header("content-length", str(length))
        else:
            self.close_connection = True
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


Answer = Callable[[Handler], None]


class Static(ThreadingHTTPServer):
    """Attributes: routes (path, with or without its query -> answer), asked."""

    daemon_threads = True

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), Handler)
        self.routes: dict[str, Answer] = {}
        self.asked: list[Asked] = []
        self.url = f"http://{host}:{self.server_port}"

    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]


@contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[Static]:
    server = Static(host)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def missing(handler: Handler) -> None:
    handler.begin(404, 0)


def body(data: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: Handler) -> None:
        handler.begin(status, len(data), **headers)
        handler.wfile.write(data)

    return answer


def ranged(data: bytes, breaks_after: list[int], etag: str | None = None) -> Answer:
    """A file that can be resumed; the connection breaks after so many bytes, each number once."""
    tag = etag or f'"{hashlib.sha256(data).hexdigest()[:8]}"'

    def answer(handler: Handler) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("range", ""))
        begin = int(wanted[1]) if wanted and handler.headers.get("if-range") == tag else 0
        rest = data[begin:]
        content_range = {"content_range": f"bytes {begin}-{len(data) - 1}/{len(data)}"} if begin else {}
        handler.begin(206 if begin else 200, len(rest), etag=tag, **content_range)
        if breaks_after:
            handler.wfile.write(rest[: breaks_after.pop(0)])
            handler.close_connection = True
        else:
            handler.wfile.write(rest)

    return answer


def redirect(where: str, status: int = 302, **headers: str) -> Answer:
    return lambda handler: handler.begin(status, 0, location=where, **headers)


def endless(chunk: bytes = b"\0" * 65536) -> Answer:
    """A body that names no length and has no end."""

    def answer(handler: Handler) -> None:
        handler.begin(200)
        while True:
            handler.wfile.write(chunk)

    return answer


def trickle(head: bool) -> Answer:
    """A byte now and then, of the header or of the body, for ever."""

    def answer(handler: Handler) -> None:
        if head:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
        else:
            handler.begin(200, 1 << 20)
        handler.close_connection = True
        for byte in repeat(b"a"):
            handler.wfile.write(byte)
            handler.wfile.flush()
            time.sleep(0.05)

    return answer

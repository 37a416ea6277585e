"""A server that answers what a test tells it to: refusals, silence, connections that are cut."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CUT = "cut"  # the connection is closed in place of an answer


@dataclass
class Reply:
    """One answer; `seconds` pass before it."""

    status: int = 200
    document: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Asked:
    """One request as it came in, and when."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float


@dataclass
class Fake:
    """What was asked, and over how many connections."""

    url: str
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0


def result(label: str = "ship", verdict: str = "clean", **more: Any) -> dict[str, Any]:
    """One result of an answer, without what only some servers send."""
    return {
        "predictions": [{"class_id": 8, "label": label, "probability": 0.9}],
        "adversarial": {"score": 0.1, "verdict": verdict},
        **more,
    }


def answer(*results: dict[str, Any]) -> Reply:
    """An answer of /predict."""
    model = {"name": "awnet", "version": "1", "sha256": "0" * 64}
    return Reply(document={"request_id": "r", "model": model, "mode": "auto", "results": list(results)})


def problem(status: int, slug: str, retry_after: str | None = None, **more: Any) -> Reply:
    """A refusal as the server sends it."""
    document = {
        "type": f"urn:awnet:problem:{slug}",
        "title": slug,
        "status": status,
        "detail": "a sentence",
        "request_id": "r",
        **more,
    }
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return Reply(status, document, headers)


@contextmanager
def fake(*script: Reply | str | Callable[[Asked], Reply], tls: ssl.SSLContext | None = None) -> Iterator[Fake]:
    """A server that gives these answers, one a request; the last one again and again."""
    left, lock = list(script), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            with lock:
                found.connections += 1

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:
                self.close_connection = True  # the client has gone

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            with lock:
                found.asked.append(Asked(self.command, self.path, headers, body, time.monotonic()))
                reply = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(reply, str):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if callable(reply):
                reply = reply(found.asked[-1])
            time.sleep(reply.seconds)
            data = reply.document if isinstance(reply.document, bytes) else json.dumps(reply.document).encode()
            self.send_response(reply.status)
            for name, value in {**reply.headers, "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:  # the handshake is the handler's
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    found = Fake(f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()

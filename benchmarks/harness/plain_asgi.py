"""An ASGI application that only reads the body and answers: what an HTTP server costs by itself. Imports nothing."""

from __future__ import annotations

from typing import Any

ANSWER = b'{"answer": "' + b"x" * 600 + b'"}'


async def app(scope: Any, receive: Any, send: Any) -> None:
    """200 with the body's length and what the header X-Probe holds once the body is there."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    probe = b",".join(value for name, value in scope["headers"] if name == b"x-probe")
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(ANSWER)).encode()),
        (b"x-size", str(len(b"".join(parts))).encode()),
        (b"x-seen", probe or b"none"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})

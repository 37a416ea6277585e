"""The server's application without its sockets: the same answers as `/predict`, in the process that asks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from server.errors import AWNetError
from server.http.app import PublicFront, create_app
from server.process import make_service
from server.settings import Settings

# What protects a server from its clients has nothing to do where the only client is this process.
ALONE = {
    "admin_port": None,
    "grpc_port": None,
    "api_keys": None,
    "page": False,
    "poll_seconds": 0.0,
    "golden_probe_seconds": 0.0,
}

Reply = tuple[int, bytes]


class StartError(RuntimeError):
    """No model can be served with these settings; says why."""


class Local:
    """An asynchronous context: opens the model of the settings, proves it by its golden values, and answers.

    Args:
        settings: of the server; a network, a page and probes are left out.

    `async with Local(settings) as local:` raises StartError.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.model_copy(update=ALONE)

    async def __aenter__(self) -> Local:
        try:
            service = make_service(self.settings)
        except AWNetError as error:
            raise StartError(f"{error.title}: {error.detail}") from None
        self._service = service
        self._app: PublicFront = create_app(service)
        logging.getLogger("awnet").setLevel(logging.CRITICAL + 1)  # what goes wrong is raised, or is an answer
        await service.start()
        if service.failure is not None:
            await service.stop()
            raise StartError(f"{service.failure.title}: {service.failure.detail}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._service.stop()

    async def predict(self, body: bytes, query: str = "", headers: Mapping[str, str] | None = None) -> Reply:
        """(status, body) of `POST /predict?QUERY` with an encoded image, or a form, as its body."""
        return await self.ask("POST", "/predict", body, query, headers)

    async def ask(
        self, method: str, path: str, body: bytes = b"", query: str = "", headers: Mapping[str, str] | None = None
    ) -> Reply:
        """(status, body) of any request to the public port."""
        given = {"content-length": str(len(body)), **(headers or {})}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
            "client": None,
            "server": None,
        }
        sent: list[Any] = []
        taken = False

        async def receive() -> dict[str, Any]:
            nonlocal taken
            if taken:  # the exchange waits for a client that hangs up; this one does not
                await asyncio.Event().wait()
            taken = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])

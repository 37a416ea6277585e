"""The server's application without its sockets: the same answers as `/predict`, in the process that asks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from server.errors import AWNetError
from server.http.app import PublicFront, create_app
from server.process.parts import make_service
from server.settings.settings import Settings

# What goes wrong is raised, or is an answer; whoever sets logging up hears of it, too.
logging.getLogger("awnet").addHandler(logging.NullHandler())

# What protects a server from its clients has nothing to do where the only client is this process; and its images are
# nobody's attack: a folder that is scored does not alarm those who read a server's findings or traces.
ALONE = {
    "admin_port": None,
    "grpc_port": None,
    "metrics_port": None,
    "tls_certificate": None,
    "tls_key": None,
    "tls_client_ca": None,
    "api_keys": None,
    "requests_per_second": 0.0,
    "queue_share": 1.0,
    "answers": "exact",
    "query_guard": "off",
    "findings_dir": None,
    "findings_webhook": "",
    "findings_webhook_secret_file": None,
    "findings_syslog": "",
    "otlp_endpoint": "",
    "page": False,
    "poll_seconds": 0.0,
    "golden_probe_seconds": 0.0,
}


class Reply(NamedTuple):
    """An HTTP answer; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class StartError(RuntimeError):
    """No model can be served with these settings; says why."""


class Local:
    """An asynchronous context: opens the model of the settings, proves it by its golden values, and answers.

    Args:
        settings: of the server; a network, a page and probes are left out.

    Attributes:
        service: once it is open.

    `async with Local(settings) as local:` raises StartError.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.model_copy(update=ALONE)

    async def __aenter__(self) -> Local:
        try:
            if self.settings.model_source:
                from server.model_sources.startup import fetch  # httpx: a tenth of a second of everybody else's start

                self.settings = await fetch(self.settings)
            service = make_service(self.settings)
        except AWNetError as error:
            raise StartError(f"{error.title}: {error.detail}") from None
        self.service = service
        self._app: PublicFront = create_app(service)
        await service.start()
        if service.failure is not None:
            await self.__aexit__()
            raise StartError(f"{service.failure.title}: {service.failure.detail}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.service.stop()

    async def predict(self, body: bytes, query: str = "", headers: Mapping[str, str] | None = None) -> Reply:
        """The answer to `POST /predict?QUERY` with an encoded image, or a form, as its body."""
        return await self.ask("POST", "/predict", body, query, headers)

    async def ask(
        self, method: str, path: str, body: bytes = b"", query: str = "", headers: Mapping[str, str] | None = None
    ) -> Reply:
        """The answer to any request to the public port."""
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
        told = {name.decode("latin-1"): value.decode("latin-1") for name, value in sent[0]["headers"]}
        return Reply(sent[0]["status"], told, b"".join(message.get("body", b"") for message in sent[1:]))

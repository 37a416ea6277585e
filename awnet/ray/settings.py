"""The settings of a replica: what it takes from those of the server, and what it refuses. Without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from server.settings.options import SettingsError
from server.settings.settings import Settings

PATIENCE_SECONDS = 3600.0  # for an image that is scored offline, unless AWNET_TIMEOUT_SECONDS says otherwise

# What belongs to a socket or a process that a replica does not have. Who asks for one of these and does not get it
# must know: another thing than they believe would be served.
NOT_HERE = {
    "tls_certificate": "Ray's proxy speaks TLS: ssl_certfile of its http_options, or what stands before it",
    "tls_client_ca": "Ray's proxy checks certificates of clients: ssl_ca_certs of its http_options",
    "grpc_port": "Ray's proxy hands over HTTP alone",
    "proxy_protocol": "Ray's proxy takes the connections, and knows no PROXY header",
}


def replica_settings(settings: Settings, cores: int) -> Settings:
    """Those of a replica that Ray gave so many cores.

    Raises:
        SettingsError: one is for what a replica does not have.
    """
    for name, why in NOT_HERE.items():
        if getattr(settings, name):
            raise SettingsError(f"setting {name} has no effect on Ray: {why}")
    if settings.workers != 1:
        raise SettingsError("setting workers has no effect on Ray: replicas are the workers, as many as Ray starts")
    update = {
        "threads": settings.threads or max(1, cores),
        "admin_port": None,
        "host": "0.0.0.0",  # noqa: S104 # who reaches Ray's proxy is not known here: the careful answers
    }
    return settings.model_copy(update=update)


def scorer_settings(settings: Settings) -> dict[str, Any]:
    """Those of a process that scores offline, on one core: nobody waits, so a busy machine fails no image."""
    return {"timeout_seconds": PATIENCE_SECONDS, **given_settings(settings), "threads": settings.threads or 1}


def given_settings(settings: Settings) -> dict[str, Any]:
    """The settings that were given here, for replicas that run in another folder, maybe on another machine."""
    given = settings.model_dump(mode="json", exclude_unset=True, exclude={"config"})  # the file is in them
    for name in given:
        value = getattr(settings, name)
        if isinstance(value, Path):
            given[name] = str(value.absolute())
    return given | {"repository": str(settings.repository.absolute())}

"""AW-Net as an installed program and a library: the command `awnet`, clients of a server, a model in this process.

In a wheel the other packages lie below this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from domain import __version__ as __version__

if TYPE_CHECKING:
    from .client import (
        AccessError,
        AnswerError,
        AsyncClient,
        Client,
        DeadlineError,
        Error,
        ImageError,
        InputError,
        LoadError,
        LocalModel,
        NotServedError,
        ProblemError,
        RateLimitedError,
        RejectedError,
        RequestError,
        Result,
        Retries,
        ServerError,
        TransportError,
        UnavailableError,
        load,
    )

__all__ = [
    "AccessError",
    "AnswerError",
    "AsyncClient",
    "Client",
    "DeadlineError",
    "Error",
    "ImageError",
    "InputError",
    "LoadError",
    "LocalModel",
    "NotServedError",
    "ProblemError",
    "RateLimitedError",
    "RejectedError",
    "RequestError",
    "Result",
    "Retries",
    "ServerError",
    "TransportError",
    "UnavailableError",
    "load",
]


def __getattr__(name: str) -> Any:
    """Imported when first asked for: `awnet --help` needs none of it."""
    if name in __all__:
        from . import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

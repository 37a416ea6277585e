"""Asks a model about images: over HTTP (`Client`, `AsyncClient`), or in this process without torch (`load`)."""

from .errors import (
    AccessError,
    AnswerError,
    DeadlineError,
    Error,
    ImageError,
    InputError,
    LoadError,
    NotServedError,
    ProblemError,
    RateLimitedError,
    RejectedError,
    RequestError,
    ServerError,
    TransportError,
    UnavailableError,
)
from .local import LocalModel, load
from .over_http import AsyncClient, Client
from .results import Result
from .retries import Retries

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

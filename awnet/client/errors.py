"""What a client raises: one tree, whose classes say who can do something about it.

Error
    InputError          the argument is no image: nothing was sent
    LoadError           a model cannot be loaded into this process
    TransportError      no connection, or one that was cut
    DeadlineError       the call took longer than its timeout; `__cause__` is what went wrong last
    AnswerError         what answered is no AW-Net server
    ProblemError        the server's problem document (RFC 9457)
        RequestError        4xx
            AccessError         401, 403: the key, or its scopes
            NotServedError      no such model, version or mode
            RateLimitedError    429
            ImageError          one image
                RejectedError       a policy withholds its answer
        UnavailableError    503, 504: later, or elsewhere
        ServerError         any other 5xx
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TYPE_PREFIX = "urn:awnet:problem:"


class Error(Exception):
    """Base of the tree."""


class InputError(Error, ValueError):
    """The argument is no image that could be sent."""


class LoadError(Error):
    """The model cannot be loaded into this process."""


class TransportError(Error, ConnectionError):
    """There is no connection to the server, or it was cut before the answer was there."""


class DeadlineError(Error, TimeoutError):
    """The call took longer than its `timeout`, all attempts and the waits between them counted."""


class AnswerError(Error):
    """The answer is not one of an AW-Net server."""


class ProblemError(Error):
    """The server's answer is a problem document.

    Attributes:
        slug: what is wrong, such as `undecodable-image`: the end of the document's `type`. docs/api.md lists them.
        title, detail: for people: the kind of problem, and one sentence about this one.
        status: of HTTP.
        image: the place of the offending image among those that were sent together, where one is to blame.
        request_id: under which the server's log has it.
        retry_after_seconds: how long to wait before trying again, where the server says so.
    """

    def __init__(
        self,
        slug: str,
        title: str,
        detail: str,
        status: int,
        image: int | None = None,
        request_id: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{title}: {detail}" + (f" (request {request_id})" if request_id else ""))
        self.slug = slug
        self.title = title
        self.detail = detail
        self.status = status
        self.image = image
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds


class RequestError(ProblemError):
    """The request is at fault; sent again it is refused again."""


class AccessError(RequestError):
    """No key, a key that is not known, or one that may not ask this."""


class NotServedError(RequestError):
    """No such model, version or operating mode."""


class RateLimitedError(RequestError):
    """More requests, or connections, than this client may have."""


class ImageError(RequestError):
    """One image is at fault."""


class RejectedError(ImageError):
    """A policy of the server withholds the answer: the detector flags the image, or does not speak for it."""


class UnavailableError(ProblemError):
    """The server is full, not ready, or too slow for the deadline."""


class ServerError(ProblemError):
    """A fault of the server; its log has it under the request id."""


_BY_SLUG: dict[str, type[ProblemError]] = {
    "unknown-model": NotServedError,
    "unknown-mode": NotServedError,
    "image-rejected": RejectedError,
    **dict.fromkeys(
        ("undecodable-image", "image-too-large", "image-too-small", "animated-image", "missing-image"), ImageError
    ),
}
_BY_STATUS: dict[int, type[ProblemError]] = {
    401: AccessError,
    403: AccessError,
    429: RateLimitedError,
    503: UnavailableError,
    504: UnavailableError,
}


def problem_error(document: Mapping[str, Any], retry_after_seconds: float | None = None) -> ProblemError:
    """The error that a problem document stands for."""
    slug = str(document.get("type", "")).removeprefix(TYPE_PREFIX)
    status, image = document.get("status"), document.get("image")
    status = status if isinstance(status, int) else 500
    kind = _BY_SLUG.get(slug) or _BY_STATUS.get(status)
    if kind is None and slug == "unsupported-media" and image is not None:
        kind = ImageError
    if kind is None:
        kind = RequestError if status < 500 else ServerError
    request_id = document.get("request_id")
    return kind(
        slug,
        str(document.get("title", f"HTTP {status}")),
        str(document.get("detail", "")),
        status,
        image if isinstance(image, int) else None,
        request_id if isinstance(request_id, str) else None,
        retry_after_seconds,
    )


def refusal(status: int, body: bytes, request_id: str | None, retry_after_seconds: float | None) -> ProblemError:
    """The error that an HTTP answer stands for; of a balancer's own answers the status is all that is known."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or not str(document.get("type", "")).startswith(TYPE_PREFIX):
        detail = "the answer holds no problem document: it may be that of a proxy"
        document = {"type": f"{TYPE_PREFIX}http-{status}", "detail": detail, "request_id": request_id}
    return problem_error({**document, "status": status}, retry_after_seconds)

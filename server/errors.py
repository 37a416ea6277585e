"""All errors of the server as one tree, and one table that maps it to HTTP.

The classes know no front end: `images` or `batching` raise them wherever they run. Only `MethodNotAllowed` belongs to
HTTP, whose `Allow` needs the methods. `STATUS` maps the tree to status codes, and `problem` writes the RFC 9457
document. A class without a line of its own takes its parent's.
"""

# ruff: noqa: N818 - the classes are named after what went wrong; "Error" in each would say nothing more

from __future__ import annotations

from collections.abc import Iterable


class AWNetError(Exception):
    """Base of the tree.

    Args:
        detail: one sentence for the client; holds no path, no trace and nothing that the client did not send or
            cannot look up.
        image: the place of the offending image in the request, from 0, where there is one.
    """

    slug = "internal"
    title = "Internal error"

    def __init__(self, detail: str, *, image: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.image = image

    def at(self, image: int) -> None:
        """It was raised by the image at this place of the request."""
        self.image = image


class RequestError(AWNetError):
    """The client can mend it."""

    slug, title = "bad-request", "Bad request"


class MalformedRequest(RequestError):
    slug, title = "malformed-request", "Malformed HTTP request"


class TargetTooLong(RequestError):
    slug, title = "target-too-long", "Request target too long"


class HeadersTooLarge(RequestError):
    slug, title = "headers-too-large", "Request headers too large"


class RequestTimeout(RequestError):
    slug, title = "request-timeout", "Request came too slowly"


class NotImplementedHere(RequestError):
    slug, title = "not-implemented", "Not implemented"


class VersionNotSupported(RequestError):
    slug, title = "version-not-supported", "HTTP version not supported"


class MalformedUpload(RequestError):
    slug, title = "malformed-upload", "Malformed upload"


class InvalidQuery(RequestError):
    slug, title = "invalid-query", "Invalid query"


class MissingImage(RequestError):
    slug, title = "missing-image", "No image in the request"


class BodyTooLarge(RequestError):
    slug, title = "body-too-large", "Request body too large"


class TooManyImages(RequestError):
    slug, title = "too-many-images", "Too many images"


class UnsupportedMedia(RequestError):
    slug, title = "unsupported-media", "Unsupported media type"


class NotAcceptable(RequestError):
    slug, title = "not-acceptable", "Not acceptable"


class InvalidTensor(RequestError):
    slug, title = "invalid-tensor", "Invalid tensor"


class Unauthorized(RequestError):
    """Nobody knows who asks, and not everybody may."""

    slug, title = "unauthorized", "Unauthorized"


class Forbidden(RequestError):
    slug, title = "forbidden", "Forbidden"


class Misdirected(RequestError):
    """It asks for a host that this port is not."""

    slug, title = "misdirected-request", "Misdirected request"


class NotFound(RequestError):
    slug, title = "not-found", "Not found"


class MethodNotAllowed(RequestError):
    """Another method is answered at this path.

    Args:
        allow: the methods that are.
    """

    slug, title = "method-not-allowed", "Method not allowed"

    def __init__(self, detail: str, allow: Iterable[str] = ()) -> None:
        super().__init__(detail)
        self.allow = tuple(allow)


class UnknownModel(RequestError):
    slug, title = "unknown-model", "Unknown model or version"


class UnknownFinding(RequestError):
    slug, title = "unknown-finding", "Unknown finding"


class UnknownService(UnknownModel):
    """Of gRPC, that a health check asks about."""

    slug, title = "unknown-service", "Unknown service"


class UnknownMode(RequestError):
    """The version that would answer has no such operating mode."""

    slug, title = "unknown-mode", "Unknown mode"


class ImageError(RequestError):
    slug, title = "undecodable-image", "Image cannot be decoded"


class ImageTooLarge(ImageError):
    slug, title = "image-too-large", "Image too large"


class ImageTooSmall(ImageError):
    slug, title = "image-too-small", "Image too small"


class AnimatedImage(ImageError):
    slug, title = "animated-image", "Animated image"


class ImageRejected(RequestError):
    """By a policy: the detector flags the image, or does not speak for it. The image could be decoded."""

    slug, title = "image-rejected", "Image rejected"


class NoMessage(RequestError):
    """A call of gRPC whose client has nothing more to say."""

    slug, title = "no-message", "No message"


class TooSoon(RequestError):
    """The same request is answered later.

    Args:
        retry_after_seconds: until then.
    """

    slug, title = "too-soon", "Too soon"

    def __init__(self, detail: str, retry_after_seconds: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class RateLimited(TooSoon):
    slug, title = "rate-limited", "Too many requests"


class RepeatedQueries(TooSoon):
    """The client asks about nearly the same image too often."""

    slug, title = "repeated-queries", "Repeated queries"


class QueueShareTaken(RequestError):
    slug, title = "queue-share-taken", "Share of the queue taken"


class Unavailable(AWNetError):
    """Nothing is wrong with the request; trying again later may help."""

    slug, title = "unavailable", "Service unavailable"


class TooManyConnections(Unavailable):
    slug, title = "too-many-connections", "Too many connections"


class TooManyConnectionsOfClient(RequestError):
    slug, title = "too-many-connections-of-client", "Too many connections of one client"


class TooManyCalls(Unavailable):
    """gRPC calls; over HTTP the connections are counted."""

    slug, title = "too-many-calls", "Too many calls"


class UploadsFull(Unavailable):
    """Requests hold as many bytes as they may together."""

    slug, title = "uploads-full", "Too many bytes in unanswered requests"


class NotReady(Unavailable):
    slug, title = "not-ready", "Not ready"


class QueueFull(Unavailable):
    slug, title = "queue-full", "Queue full"


class DeadlineExceeded(Unavailable):
    slug, title = "deadline-exceeded", "Deadline exceeded"


class EngineUnavailable(Unavailable):
    """Nothing was executed: the same request may be sent elsewhere or again."""

    slug, title = "engine-unavailable", "Engine unavailable"


class EngineFault(Unavailable):
    slug, title = "engine-fault", "Inference failed"


class LinkLost(Unavailable):
    """Another process of this service is gone or does not answer."""

    slug, title = "workers-unreachable", "Workers out of reach"


class StartupError(AWNetError):
    """The server cannot start or the model cannot be served; reported to the operator, never to a client."""

    slug, title = "startup", "Startup failed"


class ModelNotFound(StartupError):
    slug, title = "model-not-found", "Model not found"


class ManifestError(StartupError):
    slug, title = "manifest", "Manifest refused"


class SourceError(StartupError):
    """The model source gave no version that may be served; nothing was changed."""

    slug, title = "model-source", "Model not fetched"


class ContractError(StartupError):
    slug, title = "contract", "Contract refused"


class SelfTestFailed(StartupError):
    slug, title = "self-test", "Golden self-test failed"


READ = ("GET", "HEAD")  # the methods of whatever can be read

STATUS: dict[type[AWNetError], int] = {
    AWNetError: 500,
    RequestError: 400,
    MalformedUpload: 400,
    NotAcceptable: 406,
    RequestTimeout: 408,
    BodyTooLarge: 413,
    TooManyImages: 413,
    TargetTooLong: 414,
    ImageTooLarge: 413,
    UnsupportedMedia: 415,
    ImageError: 422,
    ImageRejected: 422,
    InvalidQuery: 422,
    MissingImage: 422,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    MethodNotAllowed: 405,
    UnknownModel: 404,
    UnknownFinding: 404,
    Misdirected: 421,
    UnknownMode: 422,
    TooManyConnectionsOfClient: 429,
    TooSoon: 429,
    QueueShareTaken: 429,
    HeadersTooLarge: 431,
    NotImplementedHere: 501,
    VersionNotSupported: 505,
    Unavailable: 503,
    DeadlineExceeded: 504,
}


def status_of(error: AWNetError) -> int:
    """The HTTP status of `error`: the line of its nearest ancestor in `STATUS`."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def headers_of(error: AWNetError, status: int, retry_after_seconds: int) -> list[tuple[bytes, bytes]]:
    """What the headers of an answer say of `error`: methods that are answered, how a key is sent, when to try again."""
    headers = []
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b'Bearer realm="awnet"'))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.allow).encode()))
    if status in (429, 503):
        seconds = error.retry_after_seconds if isinstance(error, TooSoon) else retry_after_seconds
        headers.append((b"retry-after", b"%d" % seconds))
    return headers


def problem(error: AWNetError, request_id: str, status: int | None = None) -> dict[str, object]:
    """The `application/problem+json` document of `error` (RFC 9457); `status` where it is not that of the table."""
    document: dict[str, object] = {
        "type": f"urn:awnet:problem:{error.slug}",
        "title": error.title,
        "status": status_of(error) if status is None else status,
        "detail": error.detail,
        "request_id": request_id,
    }
    if error.image is not None:
        document["image"] = error.image
    return document

"""Findings to a webhook: signed as Standard Webhooks 1.0 has it (standardwebhooks.com), over HTTPS.

The body is the lines of the journal as they are, one a line (`application/x-ndjson`), so that a receiver can check
their chain. `webhook-signature` is HMAC-SHA256 over id, time and body: a receiver compares it, refuses times that are
far from its own, and knows a replay by the id.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from .. import __version__
from ..core.regular_files import read_regular
from ..errors import StartupError
from ..ports.listening import is_loopback
from .delivery import MAX_PAUSE_SECONDS, SEND_SECONDS, DeliveryError

MIN_SECRET_BYTES = 24  # of Standard Webhooks
REFUSED_PAUSE_SECONDS = 300.0  # for statuses that another try does not change


class Webhook:
    """One address, and the secret that calls to it are signed with.

    Args:
        url: https, or http to a loopback address; see `wrong_url`.
        secret: of the signature.
        ca: PEM file of authorities that may have signed the receiver's certificate; None for the usual ones.

    Raises:
        StartupError: the file of authorities cannot be used.
    """

    name = "webhook"

    def __init__(self, url: str, secret: bytes, ca: Path | None = None) -> None:
        import httpx  # a second of the start for those who ask for no webhook

        # It logs each call with its whole address, and the path of a webhook often is the receiver's secret.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._url, self._secret = url, secret
        self._errors = (httpx.HTTPError, httpx.InvalidURL)
        # No redirects: they could lead the findings, and the signature, elsewhere. No proxies of the environment.
        self._client = httpx.AsyncClient(
            verify=trusted(ca), follow_redirects=False, trust_env=False, timeout=SEND_SECONDS, headers={"accept": "*/*"}
        )

    async def send(self, lines: Sequence[bytes]) -> None:
        body = b"\n".join(lines) + b"\n"
        # The same lines have the same id, whenever they are sent again.
        identity = "msg_" + hashlib.sha256(body).hexdigest()[:32]
        stamp = int(time.time())
        headers = {
            "content-type": "application/x-ndjson",
            "user-agent": f"awnet-server/{__version__}",
            "webhook-id": identity,
            "webhook-timestamp": str(stamp),
            "webhook-signature": signature(self._secret, identity, stamp, body),
        }
        try:
            async with self._client.stream("POST", self._url, content=body, headers=headers) as answer:
                status, again = answer.status_code, answer.headers.get("retry-after", "")
        except self._errors as error:
            raise DeliveryError(f"{type(error).__name__}: {error}") from error
        if 200 <= status < 300:
            return
        if 300 <= status < 400:
            raise DeliveryError(
                f"it redirects ({status}), which is not followed: name the address itself", MAX_PAUSE_SECONDS
            )
        if again.isascii() and again.isdigit():
            raise DeliveryError(f"it answers {status}", min(float(again), REFUSED_PAUSE_SECONDS))
        lasting = 400 <= status < 500 and status not in (408, 425, 429)
        raise DeliveryError(f"it answers {status}", REFUSED_PAUSE_SECONDS if lasting else None)

    async def close(self) -> None:
        await self._client.aclose()


def signature(secret: bytes, identity: str, stamp: int, body: bytes) -> str:
    """Of one call: `v1,` and base64 of HMAC-SHA256 over `ID.TIME.BODY`."""
    signed = b"%s.%d.%s" % (identity.encode(), stamp, body)
    return "v1," + base64.b64encode(hmac.digest(secret, signed, "sha256")).decode()


def read_secret(path: Path) -> bytes:
    """The secret in a file: `whsec_` and base64, as in Standard Webhooks, or the text itself. Raises StartupError."""
    try:
        text = read_regular(path, 4096).strip()
    except OSError as error:
        raise StartupError(f"the webhook's secret {path}: {error.strerror or error}") from None
    secret = text
    if text.startswith(b"whsec_"):
        try:
            secret = base64.b64decode(text[6:], validate=True)
        except binascii.Error:
            raise StartupError(f"the webhook's secret {path}: there is no base64 behind whsec_") from None
    if len(secret) < MIN_SECRET_BYTES:
        raise StartupError(f"the webhook's secret {path} has {len(secret)} bytes; it needs {MIN_SECRET_BYTES}")
    return secret


def trusted(ca: Path | None) -> ssl.SSLContext:
    """Certificates and host names are checked, always. Raises StartupError."""
    context = ssl.create_default_context()
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except (OSError, ssl.SSLError) as error:
            raise StartupError(f"the authorities in {ca} cannot be used: {error}") from None
    return context


def wrong_url(url: str) -> str | None:
    """Why findings are not sent there; None where they are."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        parts.port  # noqa: B018 - raises where it is none
    except ValueError:
        return "is no address"
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        return "must be https://HOST/PATH, without a user"
    if parts.scheme == "http" and not is_loopback(host):
        return "must be https: findings go unencrypted to this machine only"
    return None

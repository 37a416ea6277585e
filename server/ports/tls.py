"""TLS of the server's own ports: one certificate for all of them, replaced when its files change.

TLS 1.2 and 1.3, forward secret AEAD ciphers, no renegotiation (RFC 9325). Files are looked at on use, at most once a
second, so that nothing runs where nobody connects. What was replaced by something that does not load is logged once,
and the certificate before it stays.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from ..core.regular_files import read_regular
from ..errors import StartupError

log = logging.getLogger("awnet")

CHECK_SECONDS = 1.0
MAX_FILE_BYTES = 1 << 20
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; those of 1.3 are all of that kind
EXPIRES_SOON_SECONDS = 14 * 86_400

CertificateRead = Literal["loaded", "refused"]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was loaded: a context for asyncio, and the files' bytes for gRPC.

    Attributes:
        not_after: end of its validity, seconds of Unix time.
        client_ca: authorities of clients' certificates, which are demanded then; None demands none.
    """

    context: ssl.SSLContext
    chain: bytes
    key: bytes
    client_ca: bytes | None
    not_after: float


class Certificates:
    """The certificate of this moment.

    Args:
        chain: PEM file: the certificate, then what signed it.
        key: PEM file of its private key, not encrypted.
        client_ca: PEM file of the authorities whose clients are let in; None lets in all.
        on_read: told what became of changed files.
        clock: seconds, monotonic.

    Raises:
        StartupError: a file is missing, is nothing of that kind, or they do not belong together.
    """

    def __init__(
        self,
        chain: Path,
        key: Path,
        client_ca: Path | None = None,
        on_read: Callable[[CertificateRead], None] = lambda result: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = [chain, key, *([client_ca] if client_ca else [])]
        self._on_read = on_read
        self._clock = clock
        self._checked = clock()
        self._seen = self._fingerprint()
        self._current = self._load()
        _warn_of_expiry(self._current)

    @property
    def current(self) -> Certificate:
        """The certificate to answer a new connection with."""
        now = self._clock()
        if now - self._checked >= CHECK_SECONDS:
            self._checked = now
            self._renew()
        return self._current

    def _renew(self) -> None:
        found = self._fingerprint()
        if found == self._seen:
            return
        self._seen = found
        try:
            self._current = self._load()
        except StartupError as error:
            log.error("the new TLS certificate is not used, the one before it stays: %s", error.detail)
            self._on_read("refused")
            return
        self._on_read("loaded")
        log.info("the TLS certificate was replaced; valid until %s", _date(self._current.not_after))
        _warn_of_expiry(self._current)

    def _fingerprint(self) -> list[tuple[int, ...] | None]:
        """What tells one state of the files from another; links are followed, as whoever replaces them does."""
        found: list[tuple[int, ...] | None] = []
        for path in self._paths:
            try:
                state = os.stat(path)
                found.append((state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))
            except OSError:
                found.append(None)
        return found

    def _load(self) -> Certificate:
        chain, key, *client_ca = (_read(path) for path in self._paths)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols(["http/1.1"])

        def encrypted() -> str:
            raise StartupError(
                f"the TLS key {self._paths[1]} is encrypted: the server has nobody to ask for a password"
            )

        try:
            context.load_cert_chain(self._paths[0], self._paths[1], password=encrypted)
        except ssl.SSLError as error:
            files = f"{self._paths[0]} and {self._paths[1]}"
            raise StartupError(
                f"TLS: {files} are no certificate and its key (PEM): {error.reason or 'unreadable'}"
            ) from None
        except OSError as error:  # it has gone, or may not be read any more
            raise StartupError(f"TLS: {self._paths[0]} or its key cannot be read ({error.strerror})") from None
        if client_ca:
            try:
                context.load_verify_locations(cadata=client_ca[0].decode("ascii"))
            except (ssl.SSLError, ValueError):
                raise StartupError(f"TLS: {self._paths[2]} holds no certificate (PEM)") from None
            context.verify_mode = ssl.CERT_REQUIRED
        try:
            not_after = _not_after(chain)
        except (ValueError, IndexError):
            raise StartupError(f"TLS: {self._paths[0]} does not begin with a certificate (PEM)") from None
        return Certificate(context, chain, key, client_ca[0] if client_ca else None, not_after)


def _read(path: Path) -> bytes:
    """A whole file. Raises StartupError."""
    try:
        found = read_regular(path, MAX_FILE_BYTES)
    except OSError as error:
        raise StartupError(f"TLS: {path} cannot be read ({error.strerror})") from None
    if len(found) > MAX_FILE_BYTES:
        raise StartupError(f"TLS: {path} is larger than {MAX_FILE_BYTES} bytes")
    return found


def _not_after(chain: bytes) -> float:
    """End of the first certificate's validity, Unix time: RFC 5280, 4.1, of whose DER only this much is read."""
    text = chain.decode("ascii", "replace")
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    der = ssl.PEM_cert_to_DER_cert(begin + text.partition(begin)[2].partition(end)[0] + end)
    _, at, _ = _element(der, 0)  # Certificate
    _, at, _ = _element(der, at)  # TBSCertificate
    tag, _, after = _element(der, at)
    if tag == 0xA0:  # the version
        at = after
    for _ in range(3):  # serialNumber, signature, issuer
        _, _, at = _element(der, at)
    _, at, _ = _element(der, at)  # Validity
    _, _, at = _element(der, at)  # notBefore
    tag, at, after = _element(der, at)
    given = der[at:after].decode("ascii")
    if tag == 0x17:  # UTCTime, two digits of the year
        given = ("20" if int(given[:2]) < 50 else "19") + given
    return datetime.strptime(given, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag, begin and end of the contents of the element at `at`."""
    tag, length, at = der[at], der[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length, at = int.from_bytes(der[at : at + count], "big"), at + count
    return tag, at, at + length


def _warn_of_expiry(certificate: Certificate) -> None:
    left = certificate.not_after - time.time()
    if left < EXPIRES_SOON_SECONDS:
        log.warning("the TLS certificate %s on %s", "expired" if left < 0 else "expires", _date(certificate.not_after))


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")

"""HTTP for model sources: one file at a time, in bounds of bytes, tried again where that may help, and resumed.

Time is bounded by whoever calls. Redirects are followed here and not by the library: secrets stay with the host that
they are for, and `reach` says where one is led.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, TypeVar

import httpx

from .. import __version__
from ..errors import SourceError
from .reach import Address, Origin, Reach, origin, said

MAX_REDIRECTS = 5
TRIES = 5  # in a row without a byte more
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
CONNECT_SECONDS, SILENCE_SECONDS = 10.0, 20.0
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})

T = TypeVar("T")
Progress = Callable[[int, int | None], None]  # bytes that are there, and how many there will be if that is known


def _nothing() -> dict[str, str]:
    return {}


async def _unable(challenge: str) -> bool:
    return False


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        url: where.
        secrets: headers for the host of `url` alone, made anew for each try.
        general: headers for whoever answers.
        challenged: called once with the WWW-Authenticate of a 401; True where `secrets` are others now.
        named: the operator's address, where an answer named `url`.
        hint: what to do where access is refused.
    """

    url: str
    secrets: Callable[[], Mapping[str, str]] = _nothing
    general: Mapping[str, str] | None = None
    challenged: Callable[[str], Awaitable[bool]] = _unable
    named: str | None = None
    hint: str = ""


class Got(NamedTuple):
    """A file that was fetched: its hexadecimal SHA-256, its size, and what the first answer's headers said."""

    sha256: str
    size: int
    headers: httpx.Headers


class _AgainError(Exception):
    """It may go better next time; says what went wrong."""

    def __init__(self, why: str, seconds: float | None = None) -> None:
        super().__init__(why)
        self.seconds = seconds


class Transfer:
    """An asynchronous context that fetches files.

    Args:
        say: told what is tried again, and why.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self._say = say
        for library in ("httpx", "httpcore"):  # they log addresses and headers, in which secrets are
            logging.getLogger(library).setLevel(logging.WARNING)
        self._met: dict[Origin, list[Address]] = {}
        # No proxies and no passwords of the environment: what is sent where is decided here.
        self._client = httpx.AsyncClient(
            verify=ssl.create_default_context(),
            follow_redirects=False,
            trust_env=False,
            timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
            headers={"user-agent": f"awnet-server/{__version__}", "accept-encoding": "identity", "accept": "*/*"},
        )

    async def __aenter__(self) -> Transfer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def small(self, request: Request, most: int) -> tuple[bytes, httpx.Headers]:
        """A whole body of at most `most` bytes, and the first answer's headers. Raises SourceError."""

        async def once() -> tuple[bytes, httpx.Headers]:
            body = b""
            async with self._answer(request, {}) as (answer, headers):
                async for chunk in answer.aiter_raw():
                    body += chunk
                    if len(body) > most:
                        raise SourceError(f"{said(answer.url)} sends more than {most} bytes")
            return body, headers

        return await self._patiently(request, once, lambda: 0)

    async def file(self, request: Request, file: BinaryIO, most: int, progress: Progress) -> Got:
        """Write the body, of at most `most` bytes, to `file`, which is empty. Raises SourceError, OSError.

        A connection that breaks is taken up where it broke, where the server says by a strong ETag that the file is
        still the same one.
        """
        digest, done, etag = hashlib.sha256(), 0, ""

        async def once() -> httpx.Headers:
            nonlocal digest, done, etag
            more = {"range": f"bytes={done}-", "if-range": etag} if done and etag else {}
            async with self._answer(request, more) as (answer, headers):
                if answer.status_code == 206 and not more:
                    raise SourceError(f"{said(answer.url)} sends a part, and the whole was asked for")
                if answer.status_code != 206:
                    digest, done = hashlib.sha256(), 0
                    file.seek(0)
                    file.truncate()
                elif not answer.headers.get("content-range", "").startswith(f"bytes {done}-"):
                    etag = ""
                    raise _AgainError("it resumes elsewhere than asked")
                etag = answer.headers.get("etag", "") if answer.headers.get("etag", "").startswith('"') else ""
                total = _total(answer, done)
                if total is not None:
                    if total > most:
                        raise SourceError(f"{said(answer.url)} is {total} bytes large; at most {most} are taken")
                    room(file, total - done)
                async for chunk in answer.aiter_raw():
                    done += len(chunk)
                    if done > most:
                        raise SourceError(f"{said(answer.url)} sends more than the {most} bytes that are taken")
                    file.write(chunk)
                    digest.update(chunk)
                    progress(done, total)
                return headers

        headers = await self._patiently(request, once, lambda: done)
        return Got(digest.hexdigest(), done, headers)

    async def _patiently(self, request: Request, once: Callable[[], Awaitable[T]], done: Callable[[], int]) -> T:
        tried, before = 0, 0
        while True:
            try:
                return await once()
            except (_AgainError, httpx.TransportError) as error:
                tried = 1 if done() > before else tried + 1
                before = done()
                where, why = said(_address(request.url)), _why(error)
                if tried >= TRIES:
                    raise SourceError(f"{where}: {why}; given up after {TRIES} tries") from None
                self._say(f"{where}: {why}; tried again")
                pause = FIRST_PAUSE_SECONDS * 2.0 ** (tried - 1)
                asked = error.seconds if isinstance(error, _AgainError) else None
                # Not all at once, where many servers ask for the same file.
                await asyncio.sleep(min(asked or pause * random.uniform(0.5, 1.5), LONGEST_PAUSE_SECONDS))  # noqa: S311

    @asynccontextmanager
    async def _answer(
        self, request: Request, more: Mapping[str, str]
    ) -> AsyncIterator[tuple[httpx.Response, httpx.Headers]]:
        """The answer at the end of all redirects, 200 or 206, and the headers of the first one."""
        own = url = _address(request.url)
        reach = Reach(_address(request.named or request.url), self._met)
        first, challenged = None, False
        for _ in range(MAX_REDIRECTS + 2):
            await reach.check(url)
            secrets = request.secrets() if origin(url) == origin(own) else {}
            try:
                headers = {**(request.general or {}), **more, **secrets}
                answer = await self._client.send(self._client.build_request("GET", url, headers=headers), stream=True)
            except (httpx.InvalidURL, UnicodeError) as error:
                raise SourceError(f"{said(url)} cannot be asked: {error}") from None
            except httpx.TransportError as error:
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise SourceError(f"{said(url)}: its certificate is not trusted ({error})") from None
                raise _AgainError(str(error) or type(error).__name__) from None
            try:
                if peer := answer.extensions["network_stream"].get_extra_info("server_addr"):
                    reach.check_peer(url, peer[0])
                first = answer.headers if first is None else first
                if answer.status_code in (301, 302, 303, 307, 308):
                    url = _target(answer, url, request.hint)
                    continue
                if answer.status_code == 401 and origin(url) == origin(own) and not challenged:
                    challenged = True
                    if await request.challenged(answer.headers.get("www-authenticate", "")):
                        url, first = own, None
                        continue
                _judge(answer, request.hint)
                yield answer, first
                return
            finally:
                await answer.aclose()
        raise SourceError(f"{said(own)} redirects more than {MAX_REDIRECTS} times")


def _why(error: Exception) -> str:
    """Without the number that the system has for it."""
    return re.sub(r"^\[Errno -?[0-9]+\] ", "", str(error)) or type(error).__name__


def room(file: BinaryIO, size: int) -> None:
    """Raises SourceError where the disk has no room for so many bytes more: known before they are asked for."""
    system = os.fstatvfs(file.fileno())
    if system.f_blocks and system.f_bavail * system.f_frsize < size:  # none: a disk without a limit of its own
        raise SourceError(
            f"there is no room for {size} bytes: {system.f_bavail * system.f_frsize} are free where the repository lies"
        )


def _address(text: str) -> httpx.URL:
    try:
        return httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError) as error:  # of a host that is no name of IDNA
        raise SourceError(f"{text[:80]!r} is no address: {error}") from None


def _target(answer: httpx.Response, url: httpx.URL, hint: str) -> httpx.URL:
    try:
        return url.join(answer.headers["location"])
    except KeyError:  # S3 has it so where the region is another one
        why = f": {hint}" if hint else ""
        raise SourceError(f"{said(url)} redirects ({answer.status_code}) without saying where{why}") from None
    except (httpx.InvalidURL, UnicodeError):
        raise SourceError(f"{said(url)} redirects to what is no address") from None


def _judge(answer: httpx.Response, hint: str) -> None:
    """Raises SourceError, or `_AgainError`, where the answer is not a file as it is."""
    status, where = answer.status_code, said(answer.url)
    if status in AGAIN:
        after = answer.headers.get("retry-after", "")
        raise _AgainError(f"it answers {status}", float(after) if re.fullmatch(r"[0-9]{1,6}", after) else None)
    if status not in (200, 206):
        why = f": {hint}" if hint and status in (400, 401, 403, 404) else ""
        raise SourceError(f"{where} answers {status} {answer.reason_phrase[:40]}{why}")
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise SourceError(f"{where} sends the file compressed, which was not asked for")


def _total(answer: httpx.Response, done: int) -> int | None:
    length = answer.headers.get("content-length", "")
    return done + int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None

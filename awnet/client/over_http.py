"""Clients of a running server: `/predict` and `/model` over connections that are kept, with retries and a deadline."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import re
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

import httpx

from .errors import AnswerError, DeadlineError, ProblemError, TransportError, refusal
from .loop import LoopThread
from .predictor import PREDICT, AsyncPredictor, Options, Predictor, Request, SignalsLevel
from .retries import Budget, Retries, retry_after

URL = "http://127.0.0.1:8000"
UNKNOWN_ISSUER = "CERTIFICATE_VERIFY_FAILED"
TIMEOUT_SECONDS = 10.0  # as AWNET_TIMEOUT_SECONDS
MAX_ANSWER_BYTES = 64 << 20
MAX_CONNECTIONS = 32
AGAIN = (429, 503)  # what may be different later; 504 says that it takes too long already
# What a proxy says where the server behind it has died, Ray's with 500. A server's own 500 would come again.
AGAIN_OF_A_PROXY = (500, 502)
AGAIN_PATHS = (PREDICT, "model")  # readiness is asked for as it is now
DEFAULT_RETRIES = Retries()

WRITTEN = "write http://HOST:PORT or https://HOST, with the path before it if any, and an IPv6 address in brackets"
_KEY = re.compile(r"[!-~]{1,512}")


P = ParamSpec("P")
Init = Callable[Concatenate[Any, P], None]


def _parameters_of(init: Init[P]) -> Callable[[Callable[..., None]], Init[P]]:
    """Gives a constructor the parameters of another, for whoever reads or checks calls of it."""

    def give(wrapper: Callable[..., None]) -> Init[P]:
        return functools.wraps(init, assigned=())(wrapper)

    return give


class AsyncClient(AsyncPredictor):
    """As `Client`, on the event loop of whoever calls it."""

    def __init__(
        self,
        url: str = URL,
        *,
        key: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        retries: Retries = DEFAULT_RETRIES,
        model: str | None = None,
        version: int | str | None = None,
        mode: str | None = None,
        top_k: int | None = None,
        signals: SignalsLevel | None = None,
        verify: Any = True,
    ) -> None:
        super().__init__(Options(top_k, signals, model, version, mode), timeout)
        self._url = address(url)
        self._retries = retries
        self._budget = Budget(retries)
        headers = {"accept": "application/json"}
        if key is not None:
            if not _KEY.fullmatch(key):
                raise ValueError("a key is printable ASCII without spaces")
            headers["authorization"] = f"Bearer {key}"
        self._http = httpx.AsyncClient(
            base_url=self._url,
            headers=headers,
            verify=verify if self._url.scheme == "https" else False,  # setting TLS up takes a while
            timeout=None,  # noqa: S113 - `_ask` has one for the whole call
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _ask(self, asked: Request, timeout: float) -> Any:
        """As `AsyncPredictor._ask`; `timeout` is for all attempts and the waits between them."""
        clock = asyncio.get_running_loop().time
        deadline, last = clock() + timeout, None
        attempts = self._retries.attempts if asked.path in AGAIN_PATHS else 1
        for tried in range(1, attempts + 1):
            parameters = asked.parameters(deadline - clock())
            request = self._http.build_request(
                asked.method, asked.path, params=parameters, headers=asked.headers, content=asked.body
            )
            try:
                async with asyncio.timeout_at(deadline):
                    answer = await self._try(request)
                self._budget.succeeded()
                return answer
            except TimeoutError:
                raise DeadlineError(f"no answer within {timeout:g} seconds") from last
            except (TransportError, ProblemError) as error:
                last = error
            after = None
            # A second handshake shows the same certificate.
            if isinstance(last, TransportError) and UNKNOWN_ISSUER in str(last):
                raise last
            if isinstance(last, ProblemError):
                if not _again(last):
                    raise last
                after = last.retry_after_seconds
            wait = self._retries.wait(tried, after)
            if tried == attempts or clock() + wait >= deadline or not self._budget.take():
                raise last
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    async def _try(self, request: httpx.Request) -> Any:
        """One request and its answer. Raises TransportError, ProblemError, AnswerError."""
        try:
            reply = await self._http.send(request, stream=True)
            try:
                body = bytearray()
                async for chunk in reply.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise AnswerError(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
            finally:
                await reply.aclose()
        except httpx.TransportError as error:
            hint = "; SSL_CERT_FILE names a file of other authorities" if UNKNOWN_ISSUER in str(error) else ""
            raise TransportError(f"{self._url}: {error or type(error).__name__}{hint}") from None
        except httpx.HTTPError as error:  # an encoding that is none
            raise AnswerError(f"{self._url}: {error}") from None
        if reply.status_code >= 400:
            again = retry_after(reply.headers.get("retry-after"))
            raise refusal(reply.status_code, bytes(body), reply.headers.get("x-request-id"), again)
        if not reply.is_success:
            raise AnswerError(f"{self._url} answers {reply.status_code}; redirections are not followed")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise AnswerError(f"{self._url} does not answer JSON") from error


class Client(Predictor):
    """A client of a running server. It keeps its connections: make one and use it, from as many threads as you like.

    Args:
        url: of the server, with the path that a proxy may put before it; `HOST:PORT` is enough on this machine.
        key: an API key, for servers that want one; sent as `Authorization: Bearer KEY`.
        timeout: seconds that a call may take, all tries and the waits between them.
        retries: when to try again what met 429, 503, a connection that failed, or a proxy whose server died.
        model, version, mode, top_k, signals: what each call asks for unless it says otherwise; docs/api.md.
        verify: of httpx: False takes any certificate, an `ssl.SSLContext` has your own authority.

    Raises:
        ValueError: of the arguments; nothing is connected yet.
    """

    @_parameters_of(AsyncClient.__init__)
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(AsyncClient(*args, **options), LoopThread("awnet-client"))


def _again(refused: ProblemError) -> bool:
    """Whether another attempt may be answered."""
    proxy = refused.slug == f"http-{refused.status}"  # no problem document
    return refused.status in AGAIN or (refused.status in AGAIN_OF_A_PROXY and proxy)


def address(url: str) -> httpx.URL:
    """The server's address. Without a scheme it is `http://`, on this machine only. Raises ValueError."""
    if "@" in url:  # not repeated: it may be a password
        raise ValueError("an address names no user and no password; an API key is given apart")
    spelt = url if "://" in url else f"http://{url}"
    try:
        parsed = httpx.URL(spelt)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is no address ({error}): {WRITTEN}") from None
    named = parsed.scheme in ("http", "https") and parsed.host and (parsed.port or 1) < 1 << 16
    if not named or parsed.query or parsed.fragment:
        raise ValueError(f"{url!r} is no address of a server: {WRITTEN}")
    if spelt is not url and not on_this_machine(parsed):  # what is sent there, a key too, others might read
        raise ValueError(f"{url!r} has no scheme: write https://{url}, or http://{url} without encryption")
    return parsed


def on_this_machine(url: httpx.URL) -> bool:
    """Whether nobody else on the network sees what is sent there."""
    try:
        return ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        return url.host == "localhost"

"""Names the caller of each request, by the keys that the file holds now."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal

from ..core.policy import Policy
from ..errors import StartupError, Unauthorized
from ..settings.settings import Settings
from .caller import ANYBODY, Caller
from .keys import KEY, Keys, read_file

log = logging.getLogger("awnet")

CHECK_SECONDS = 1.0  # until a change of the file is seen; a key that is revoked is refused from then on
OTHERS = 0o007  # what every user of the machine may do with a file
CREDENTIALS = (b"authorization", b"x-api-key")

KeysRead = Literal["loaded", "refused"]


class Access:
    """Who asks.

    Without a file of keys everybody may everything, and is told what the settings say. With one, it is read again when
    it changes: once a second by a thread of its own, so that no request waits for a disk. A file that has gone or has
    become wrong changes nothing: the keys from before stay, which is logged and counted once for each such state.

    Args:
        settings: its `api_keys` and `answers`.
        on_read: told of each reading of a changed file.

    Raises:
        StartupError: the file cannot be read, or is wrong.

    Attributes:
        by_keys: callers are told apart by keys.
    """

    def __init__(self, settings: Settings, on_read: Callable[[KeysRead], None] = lambda result: None) -> None:
        self._path = settings.api_keys
        self._answers = settings.answers
        self._on_read = on_read
        self._text: str | None = None
        self._problem: str | None = None
        self._warned = self._leaky = False
        self._soon = threading.Event()
        self._over = False
        self._watcher: threading.Thread | None = None
        self.by_keys = self._path is not None
        self._keys = Keys(replace(ANYBODY, answers=self._answers))
        self._shows_metrics = settings.metrics_port is None
        if self.by_keys:
            self._take(self._read())
        self._warn_of_histograms()

    @property
    def anonymous(self) -> Caller:
        """A caller without a key."""
        return self._keys.anonymous

    @property
    def policies(self) -> set[Policy]:
        """Those that callers may have instead of the settings'."""
        of_keys = (entry.policy for entry in self._keys.entries.values())
        return {policy for policy in (self.anonymous.policy, *of_keys) if policy is not None}

    def identify(self, headers: Iterable[tuple[bytes, bytes]], query: bytes = b"") -> Caller:
        """Who sent a request.

        Args:
            headers: of it, names in lower case, or the metadata of a gRPC call: a key stands in
                `Authorization: Bearer KEY` or in `X-API-Key`.
            query: of its address, where no key may stand: addresses are logged on the way.

        Raises:
            Unauthorized: a key that is not known, or credentials that are none. Without any, a caller is anonymous.
        """
        if not self.by_keys:
            return self._keys.anonymous
        if query and re.search(KEY, query):
            raise Unauthorized("a key in an address stands in logs: replace that key, and send the new one in a header")
        given = [(name, value) for name, value in headers if name in CREDENTIALS]
        if not given:
            return self._keys.anonymous
        if len(given) > 1:
            raise Unauthorized("a request has one key, in one header")
        name, value = given[0]
        if name == b"authorization":
            scheme, _, value = value.partition(b" ")
            if scheme.lower() != b"bearer":
                raise Unauthorized("a key is sent as 'Authorization: Bearer KEY'")
        caller = self._keys.find(value.strip(b" \t"))
        if caller is None:
            raise Unauthorized("the key is not known here, or not any more")
        return caller

    def watch(self) -> None:
        """See changes of the file from now on."""
        if self.by_keys and self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, name="awnet-keys", daemon=True)
            self._watcher.start()

    def check_soon(self) -> None:
        """Have the thread look at the file now."""
        self._soon.set()

    def close(self) -> None:
        """Look no more. A thread that waits for a disk is not waited for."""
        self._over = True
        self._soon.set()

    def check(self) -> None:
        """Take the keys that the file holds now, if it has changed."""
        try:
            text = self._read()
            if text == self._text and self._problem is None:
                return
            self._take(text)
        except StartupError as error:
            if error.detail != self._problem:
                self._problem = error.detail
                log.error("%s; the keys from before stay", error.detail)
                self._on_read("refused")
            return
        self._problem = None
        self._warn_of_histograms()
        log.info("keys were read again: %d names", len(self._keys.entries))
        self._on_read("loaded")

    def _watch(self) -> None:
        while not self._over:
            self._soon.wait(CHECK_SECONDS)
            self._soon.clear()
            self.check()

    def _warn_of_histograms(self) -> None:
        """Once, where strangers are told less than exact scores and may read /metrics."""
        caller = self.anonymous
        if caller.answers != "exact" and "metrics" in caller.scopes and self._shows_metrics and not self._leaky:
            self._leaky = True
            log.warning(
                "callers without a key are told %s and may ask for /metrics, whose histogram tells a score of a quiet "
                "server in 25 steps: give metrics a port of their own (--metrics-port), or to keys alone",
                caller.answers,
            )

    def _read(self) -> str:
        assert self._path is not None
        text, mode = read_file(self._path)
        if mode & OTHERS and not self._warned:
            self._warned = True
            log.warning("every user of this machine can open the file of keys %s: chmod o= closes it", self._path)
        return text

    def _take(self, text: str) -> None:
        self._keys = Keys.parse(text, self._answers)
        self._text = text

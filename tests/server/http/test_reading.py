"""What a request's head is read as, where RFC 9112 gives a server a choice or takes it away."""

from __future__ import annotations

from typing import Any

import pytest

from server.http.reading import RequestReader


class Kept:
    """The requests that were read."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []

    def begin(self, scope: dict[str, Any], *, keep_alive: bool, expects_continue: bool) -> None:
        self.scopes.append(scope)

    def add(self, data: bytes) -> None: ...

    def finish(self) -> None: ...


@pytest.mark.parametrize(
    ("target", "host", "path"),
    [
        ("/a?b", "localhost", "/a"),
        ("//evil.example/a", "localhost", "//evil.example/a"),
        ("http://evil.example/a?b", "evil.example", "/a"),
        ("http://evil.example:8002/a", "evil.example", "/a"),
        ("http://localhost@evil.example/a", "evil.example", "/a"),
        ("https://[::1]:8002/a", "[::1]", "/a"),
    ],
)
def test_the_host_of_an_absolute_target_is_that_of_the_request(target: str, host: str, path: str) -> None:
    """Whatever the header says: the admin port would be told two names, and look at the harmless one."""
    kept = Kept()
    reader = RequestReader(kept, 1024)
    assert reader.feed(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n".encode(), idle=True) is None
    (scope,) = kept.scopes
    assert [value for name, value in scope["headers"] if name == b"host"] == [host.encode()]
    assert (b"accept", b"*/*") in scope["headers"] and scope["path"] == path

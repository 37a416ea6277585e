"""The name of the base image by digest, as documented, against a registry of our own: without a network."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from deploy.image.digest import KINDS, DigestError, main, pinned
from tests.repository import ROOT

MANIFEST = b'{"schemaVersion": 2,\n "manifests": []}'  # its bytes count, not what they mean
DIGEST = "sha256:" + hashlib.sha256(MANIFEST).hexdigest()


class Registry(BaseHTTPRequestHandler):
    """Images that are open, want a token, or are told with a wrong digest."""

    def log_message(self, *given: Any) -> None:
        pass

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        if self.path == "/token?service=it&scope=repository%3Aa%2Fclosed%3Apull":
            self._answer(200, {}, b'{"token": "t"}')
        elif self.path == "/v2/a/closed/manifests/1" and self.headers["Authorization"] != "Bearer t":
            where = f'Bearer realm="http://127.0.0.1:{port}/token",service="it",scope="repository:a/closed:pull"'
            self._answer(401, {"WWW-Authenticate": where}, b"")
        elif self.path in ("/v2/a/open/manifests/latest", "/v2/a/closed/manifests/1", "/v2/a/lying/manifests/latest"):
            assert KINDS[0] in self.headers["Accept"]
            digest = "sha256:" + "0" * 64 if "lying" in self.path else DIGEST
            self._answer(200, {"Docker-Content-Digest": digest}, MANIFEST)
        else:
            self._answer(404, {}, b"")

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("image", ["a/open", "a/open:latest", "a/closed:1"])
def test_an_image_is_named_by_the_hash_of_its_manifest(
    registry: str, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a token where the registry wants one, as Docker Hub does."""
    assert main([f"{registry}/{image}", "--http"]) == 0
    assert capsys.readouterr().out == f"{registry}/{image.partition(':')[0]}@{DIGEST}\n"


@pytest.mark.parametrize("image", ["a/nothing", "a/lying"])
def test_what_is_not_certain_is_not_printed(registry: str, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, status 2: a digest that does not fit its bytes is worse than none."""
    with pytest.raises(DigestError):
        pinned(f"{registry}/{image}", "http")
    assert main([f"{registry}/{image}", "--http"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_the_documents_say_how_the_base_is_pinned() -> None:
    """The command of the documents names the image that the Dockerfile takes."""
    base = re.search(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert base is not None
    command = f"python -m deploy.image.digest {base[1]}"
    for page in ("docs/deploy.md", "docs/security.md"):
        assert command in (ROOT / page).read_text("utf-8")

"""Files of Hugging Face, by a server that speaks the one route that is used: redirects to storage, commits, a token."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.errors import SourceError
from tests.server.model_sources.conftest import Fetch
from tests.server.model_sources.static import Handler, Static, body, redirect, serving

COMMIT = "0123456789" * 4


@pytest.fixture
def hub(web: Static, model: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Static, Static]]:
    """A hub whose repository is private, and the storage that it redirects to."""
    with serving() as storage:
        storage.routes["/blob"] = body(model, etag='"1"')

        def resolve(handler: Handler) -> None:
            if handler.headers.get("authorization") != "Bearer hf_secret":
                body(b"", 401)(handler)
            else:
                redirect(f"{storage.url}/blob?signature=s", x_repo_commit=COMMIT)(handler)

        for revision in ("main", COMMIT, "refs%2Fpr%2F1"):
            web.routes[f"/org/repo/resolve/{revision}/a%20b/model.onnx"] = resolve
        monkeypatch.setenv("HF_ENDPOINT", web.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield web, storage


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}", "@refs%2Fpr%2F1"])
def test_a_revision_is_pinned_to_its_commit(
    fetch: Fetch, hub: tuple[Static, Static], revision: str, digest: str
) -> None:
    """And the token stays with the hub."""
    found = fetch(f"hf://org/repo/a%20b/model.onnx{revision}")
    assert str(found.source) == f"hf://org/repo/a%20b/model.onnx@{COMMIT}#sha256={digest}"
    web, storage = hub
    assert [asked.headers.get("authorization") for asked in web.asked] == ["Bearer hf_secret"]
    assert [asked.headers.get("authorization") for asked in storage.asked] == [None]


def test_a_repository_that_is_not_ours_says_what_to_do(
    fetch: Fetch, hub: tuple[Static, Static], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SourceError, match=r"401.*HF_TOKEN") as raised:
        fetch("hf://org/repo/a%20b/model.onnx")
    assert "hf_wrong" not in str(raised.value)


def test_a_token_is_never_sent_unencrypted(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(SourceError, match="not encrypted"):
        fetch("hf://org/repo/model.onnx")

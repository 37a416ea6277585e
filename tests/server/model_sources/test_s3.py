"""Objects of S3: where they are, and the signature that AWS's own documentation computes."""

from __future__ import annotations

import calendar
from pathlib import Path

import pytest

from server.errors import SourceError
from server.model_sources import s3
from tests.requires import requires
from tests.server.model_sources.conftest import Fetch
from tests.server.model_sources.moto import Moto
from tests.server.model_sources.static import Static, body
from tests.server.tiny import publish

# "Example: GET Object" of sig-v4-header-based-auth.html.
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_REGION": "us-east-1",
}
NOW = calendar.timegm((2013, 5, 24, 0, 0, 0))


def test_the_signature_is_that_of_the_documentation() -> None:
    headers = s3.signed("https://examplebucket.s3.amazonaws.com/test.txt", KEYS, NOW, {"range": "bytes=0-9"})
    assert headers["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )


@requires("moto")
def test_objects_of_a_server_that_checks_signatures(
    fetch: Fetch, process: None, model: bytes, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest version, one that is named, none without keys, with wrong ones, or that is not there."""
    old = (publish(tmp_path / "old", seed=4) / "awnet/1/model.onnx").read_bytes()
    with Moto(tmp_path, "a%20b/model.onnx", [old, model]) as moto:
        for name, value in moto.keys.items():
            monkeypatch.setenv(name, value)
        found = fetch("s3://models/a%20b/model.onnx")
        assert str(found.source) == f"s3://models/a%20b/model.onnx?versionId={moto.versions[1]}#sha256={digest}"
        first = fetch(f"s3://models/a%20b/model.onnx?versionId={moto.versions[0]}")
        assert (first.version, first.source.revision) == (2, moto.versions[0])
        with pytest.raises(SourceError, match="404"):
            fetch("s3://models/nothing.onnx")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(SourceError, match="403"):
            fetch("s3://models/a%20b/model.onnx")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        with pytest.raises(SourceError, match="403"):
            fetch("s3://models/a%20b/model.onnx")


@pytest.mark.parametrize(
    ("endpoint", "bucket", "url"),
    [
        ("", "models", "https://models.s3.eu-west-1.amazonaws.com/a%20b/model.onnx?versionId=x%2By"),
        ("", "my.models", "https://s3.eu-west-1.amazonaws.com/my.models/a%20b/model.onnx?versionId=x%2By"),
        ("http://minio:9000/", "models", "http://minio:9000/models/a%20b/model.onnx?versionId=x%2By"),
    ],
)
def test_where_an_object_is(endpoint: str, bucket: str, url: str) -> None:
    """In a host of the bucket's own name, or behind an endpoint."""
    given = {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_ENDPOINT_URL_S3": endpoint}
    assert s3.url_of(bucket, "a b/model.onnx", "x+y", given) == url


@pytest.mark.parametrize("endpoint", ["minio:9000", "ftp://minio", "https://user:secret@minio", "https://"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(SourceError, match="AWS_ENDPOINT_URL_S3"):
        s3.url_of("models", "model.onnx", "", {"AWS_ENDPOINT_URL": endpoint})


def test_the_version_that_was_served_is_pinned(
    fetch: Fetch, web: Static, model: bytes, monkeypatch: pytest.MonkeyPatch, digest: str
) -> None:
    """Signed at each try, with the token of temporary keys; asked for by its versionId, which is in the signature."""
    for name, value in {**KEYS, "AWS_SESSION_TOKEN": "token", "AWS_ENDPOINT_URL_S3": web.url}.items():
        monkeypatch.setenv(name, value)
    web.routes["/bucket/a/model.onnx"] = body(model, x_amz_version_id="v/1")
    found = fetch("s3://bucket/a/model.onnx?versionId=v%2F1")
    assert str(found.source) == f"s3://bucket/a/model.onnx?versionId=v%2F1#sha256={digest}"
    (asked,) = web.asked
    assert asked.path == "/bucket/a/model.onnx?versionId=v%2F1"
    assert asked.headers["x-amz-security-token"] == "token" and "x-amz-security-token" in asked.headers["authorization"]


def test_a_refusal_says_what_to_look_at(fetch: Fetch, web: Static, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without keys nothing is signed."""
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", web.url)
    web.routes["/bucket/model.onnx"] = body(b"", 403)
    with pytest.raises(SourceError, match=r"403.*AWS_ACCESS_KEY_ID"):
        fetch("s3://bucket/model.onnx")
    assert "authorization" not in web.asked[0].headers
    web.routes["/bucket/model.onnx"] = body(b"", 301)
    with pytest.raises(SourceError, match="AWS_REGION"):
        fetch("s3://bucket/model.onnx")

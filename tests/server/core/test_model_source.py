"""How the place of a model is written, and what is no such place."""

from __future__ import annotations

import pytest

from server.core.model_source import parse_model_source

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        ("file:///models/a%20b/model.onnx", {"path": "/models/a b/model.onnx"}),
        (
            "https://host:8443/a/model.onnx?sig=s%2F",
            {"place": "host:8443", "path": "/a/model.onnx", "query": "sig=s%2F"},
        ),
        ("https://[2001:db8::1]/model.onnx", {"place": "[2001:db8::1]"}),
        ("hf://org/repo/a/model.onnx@main", {"place": "org/repo", "path": "a/model.onnx", "revision": "main"}),
        ("hf://org/repo@refs%2Fpr%2F1/model.onnx", {"path": "model.onnx", "revision": "refs/pr/1"}),
        ("hf://org/repo/model.onnx", {"revision": ""}),
        ("s3://bucket/a/model.onnx?versionId=x%2By", {"place": "bucket", "path": "a/model.onnx", "revision": "x+y"}),
        ("s3://bucket/model.onnx", {"path": "model.onnx", "revision": ""}),
        ("oci://localhost:5000/a/b:4", {"place": "localhost:5000", "path": "a/b", "revision": "4"}),
        (f"oci://host/a:4@sha256:{HEX}", {"path": "a", "revision": "4", "manifest": HEX}),
    ],
)
def test_a_source_is_read_and_written_again(text: str, attributes: dict[str, str]) -> None:
    """As it was, and the same is read from it; without a query, and without a tag that says nothing."""
    source = parse_model_source(f"{text}#sha256={HEX}")
    assert {name: getattr(source, name) for name in attributes} == attributes
    assert source.sha256 == HEX and source.pinned
    again = parse_model_source(str(source))
    assert str(again) == str(source) and again.sha256 == HEX
    assert (again.scheme, again.place, again.path, again.manifest) == (
        source.scheme,
        source.place,
        source.path,
        source.manifest,
    )


def test_a_digest_of_the_model_or_of_a_manifest_pins() -> None:
    """A commit, a tag and a versionId are the word of whoever serves them."""
    assert parse_model_source(f"oci://host/a@sha256:{HEX}").pinned
    for text in ("oci://host/a:4", "hf://o/r/m.onnx@" + HEX[:40], "s3://bucket/m.onnx?versionId=1", "https://h/m.onnx"):
        assert not parse_model_source(text).pinned


def test_what_opens_an_address_is_not_shown() -> None:
    source = parse_model_source("https://host/model.onnx?X-Amz-Signature=secret")
    assert "secret" not in str(source) and "secret" not in repr(source)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model.onnx",
        "ftp://host/model.onnx",
        "FILE:///model.onnx",
        "file://host/model.onnx",
        "file:model.onnx",
        "file:///a%00b",
        "https://user:secret@host/model.onnx",
        "https://host",
        "https://host:port/model.onnx",
        "https:///model.onnx",
        "https://host/model.onnx#sha256=12",
        f"https://host/model.onnx#sha256={HEX.upper()}",
        f"https://host/model.onnx#md5={HEX}",
        "https://host/model onnx",
        "https://host/model.onnx\n",
        "hf://org/model.onnx",
        "hf://org/repo/../model.onnx",
        "hf://org/repo/%2e%2e/model.onnx",
        "hf://../repo/model.onnx",
        "hf://org/repo@a/model.onnx@b",
        "s3://bucket",
        "s3://Bucket/model.onnx",
        "s3://bucket/../model.onnx",
        "s3://bucket/model.onnx?versionId=1&acl",
        "s3://bucket/model.onnx?versionId=1&versionId=2",
        "oci://host",
        "oci://host/Upper:4",
        "oci://host/a@sha256:12",
        "oci://host/../a:4",
        "oci://user@host/a:4",
        "https://host/" + "a" * 5000,
    ],
)
def test_what_is_no_source_is_refused_without_telling_it(text: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_model_source(text)
    assert "secret" not in str(raised.value)

"""Which web pages may read answers: only those that a setting names, errors included, and never with credentials."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings.settings import Settings
from tests.server.keys import table, write
from tests.server.small import Small

PAGE, OTHER = b"https://app.example", b"https://evil.example"
ASKS = {b"access-control-request-method": b"POST", b"access-control-request-headers": b"authorization"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    made = Small(tmp_path_factory.mktemp("cors"), cors_origins="https://app.example, http://localhost:3000")
    yield made
    made.close()


def allowed(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("access-control-")}


def test_a_page_of_a_named_origin_reads_answers_and_errors(small: Small) -> None:
    """Also what it needs to try again and to report: Retry-After and the request id."""
    for method, path in [("GET", "/v2/health/live"), ("POST", "/predict"), ("GET", "/nowhere"), ("PUT", "/predict")]:
        _, headers, _ = small.http(method, path, {b"origin": PAGE})
        assert headers["access-control-allow-origin"] == PAGE.decode()
        assert {"x-request-id", "retry-after"} <= set(headers["access-control-expose-headers"].split(", "))
        assert headers["vary"] == "origin"
        assert "access-control-allow-credentials" not in headers


def test_a_preflight_is_answered_before_anything_is_asked(small: Small) -> None:
    """A browser sends no key with it; at any path, since what is there is none of its business yet."""
    for path in ("/predict", "/v2/models/awnet/infer", "/nowhere"):
        status, headers, body = small.http("OPTIONS", path, {b"origin": PAGE, **ASKS})
        assert (status, body) == (200, b"")
        assert headers["access-control-allow-origin"] == PAGE.decode()
        assert "POST" in headers["access-control-allow-methods"]
        assert {"authorization", "content-type", "x-api-key"} <= set(
            headers["access-control-allow-headers"].split(", ")
        )
        assert int(headers["access-control-max-age"]) > 0


@pytest.mark.parametrize(
    "origin", [OTHER, b"https://app.example.evil.example", b"null", b"https://app.example:443", b""]
)
def test_a_page_of_another_origin_reads_nothing(small: Small, origin: bytes) -> None:
    """Its preflight is an OPTIONS like any other, and caches are told that answers differ."""
    _, headers, _ = small.http("GET", "/v2/health/live", {b"origin": origin})
    assert allowed(headers) == {} and headers["vary"] == "origin"
    status, headers, _ = small.http("OPTIONS", "/predict", {b"origin": origin, **ASKS})
    assert status == 405 and allowed(headers) == {}


def test_an_options_that_is_no_preflight_is_a_method_like_any_other(small: Small) -> None:
    assert small.http("OPTIONS", "/predict", {b"origin": PAGE})[0] == 405


def test_a_page_without_a_key_is_told_so(tmp_path: Path) -> None:
    """Its preflight needs none, and the refusal can be read."""
    keys = write(tmp_path / "keys.toml", table("shop", ["predict"]))
    made = Small(tmp_path / "models", cors_origins=PAGE.decode(), api_keys=keys)
    try:
        assert made.http("OPTIONS", "/predict", {b"origin": PAGE, **ASKS})[0] == 200
        status, headers, _ = made.http("POST", "/predict", {b"origin": PAGE})
        assert (status, headers["access-control-allow-origin"]) == (401, PAGE.decode())
    finally:
        made.close()


def test_nothing_is_said_by_default(tmp_path: Path) -> None:
    made = Small(tmp_path)
    try:
        for method, more in (("GET", {}), ("OPTIONS", ASKS)):
            _, headers, _ = made.http(method, "/v2/health/live", {b"origin": PAGE, **more})
            assert allowed(headers) == {} and "vary" not in headers
    finally:
        made.close()


def test_all_origins_may_read_and_none_brings_cookies(tmp_path: Path) -> None:
    """The answer is the same for all, so caches need no Vary."""
    made = Small(tmp_path, cors_origins="*")
    try:
        _, headers, _ = made.http("GET", "/v2/health/live", {b"origin": OTHER})
        assert headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in headers and "vary" not in headers
        _, headers, _ = made.http("GET", "/admin/models", {b"origin": OTHER})
        assert allowed(headers) == {}  # the admin port has nothing for pages
    finally:
        made.close()


@pytest.mark.parametrize(
    "given", ["app.example", "https://app.example/", "https://*.example", "*,https://a.example", "null"]
)
def test_what_is_no_origin_is_refused_at_the_start(given: str) -> None:
    with pytest.raises(ValidationError, match="no origin"):
        Settings(cors_origins=given)

"""GET /model: what a model's thresholds speak for, and what its audit found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.http.description import Description
from tests.server.schema_2 import ABOUT, CARD, RANGES, domain, schema_2
from tests.server.small import Small
from tests.server.tiny import LABELS, publish


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    """Versions 1 and 2 of schema 1, version 3 of schema 2 with a card."""
    repository = publish(tmp_path_factory.mktemp("repository"), "3", schema_2(card=CARD))
    running = Small(repository, versions_kept=3, prior=0.2)
    yield running
    running.close()


def described(small: Small, query: str = "") -> dict[str, Any]:
    status, headers, body = small.http("GET", f"/model{query}")
    assert (status, headers["content-type"]) == (200, "application/json"), body
    document: dict[str, Any] = json.loads(body)
    Description.model_validate_json(body, strict=True)
    return document


def test_the_version_that_answers_is_described(small: Small) -> None:
    """Name, hash, labels, prior, and each domain in the order in which it is tried."""
    document = described(small)
    model = small.service.models.latest()
    assert (document["name"], document["version"], document["sha256"]) == ("awnet", "3", model.sha256)
    assert (document["labels"], document["prior"]) == (LABELS, 0.2)
    assert document["card"] == {key: value for key, value in CARD.items() if key != "format"}
    assert [domain["name"] for domain in document["domains"]] == ["pristine", "pool"]
    pristine = document["domains"][0]
    assert (pristine["about"], pristine["ranges"]) == (ABOUT["pristine"], RANGES["pristine"])
    assert pristine["thresholds"] == {"suspicious": 0.3, "adversarial": 0.5}
    assert pristine["target_fpr"] == {"suspicious": 0.05, "adversarial": 0.01}
    assert pristine["rates"] == domain("pristine")["rates"]


def test_each_version_can_be_asked_about(small: Small) -> None:
    """One of schema 1 has a single domain, no ranges, no measured rates and no card."""
    for query in ("?version=2", "?name=awnet&version=2"):
        document = described(small, query)
        assert (document["version"], document["card"]) == ("2", None)
        [only] = document["domains"]
        assert (only["name"], only["ranges"]) == ("pristine", None)
        assert only["thresholds"] == {"suspicious": 0.41, "adversarial": 0.77}
        assert only["rates"] == {"fpr_pristine": None, "fpr_worst": None, "tpr_t0": {}}
    assert described(small, "?version=latest&name=awnet") == described(small)


@pytest.mark.parametrize(
    ("query", "status", "slug"),
    [
        ("?version=7", 404, "unknown-model"),
        ("?version=two", 404, "unknown-model"),
        ("?name=other", 404, "unknown-model"),
        ("?name=", 404, "unknown-model"),
        ("?model=awnet", 422, "invalid-query"),
        ("?name=awnet&name=awnet", 422, "invalid-query"),
    ],
)
def test_what_is_not_there_is_refused_as_elsewhere(small: Small, query: str, status: int, slug: str) -> None:
    got, headers, body = small.http("GET", f"/model{query}")
    assert (got, headers["content-type"]) == (status, "application/problem+json")
    assert json.loads(body)["type"] == f"urn:awnet:problem:{slug}"


def test_a_canary_takes_no_share_of_questions(tmp_path: Path) -> None:
    """They are about the version that serves, and leave the split of requests as it is."""
    running = Small(tmp_path, canary="1:0.5")
    try:
        assert {described(running)["version"] for _ in range(4)} == {"2"}
        versions = []
        for _ in range(4):
            with running.service.lease() as lease:
                versions.append(lease.model.version)
        assert versions == [2, 1, 2, 1]
    finally:
        running.close()


def test_before_the_model_is_loaded_it_is_not_described(tmp_path: Path) -> None:
    running = Small(tmp_path, start=False)
    try:
        assert running.http("GET", "/model")[0] == 503
    finally:
        running.close()


def test_who_has_the_model_already_is_told_so(small: Small) -> None:
    """And asks each time: a reload changes it. No cache on the way may hand it to another key."""
    _, headers, _ = small.http("GET", "/model?version=2")
    assert headers["cache-control"] == "private, no-cache"
    for given in (headers["etag"], f'"other", W/{headers["etag"]}', "*"):
        status, again, empty = small.http("GET", "/model?version=2", {b"if-none-match": given.encode()})
        assert (status, again["etag"], empty) == (304, headers["etag"], b"")
    other = small.http("GET", "/model?version=3", {b"if-none-match": headers["etag"].encode()})
    assert other[0] == 200 and other[1]["etag"] != headers["etag"]
    assert small.http("HEAD", "/model?version=2")[1]["etag"] == headers["etag"]


@pytest.mark.parametrize(
    "path",
    ["/v2/health/live", "/v2/health/ready", "/metrics", "/openapi.json", "/v2", "/admin/models", "/admin/detection"],
)
def test_what_changes_by_itself_is_kept_nowhere(small: Small, path: str) -> None:
    """A cache before the server would tell yesterday's readiness."""
    status, headers, _ = small.http("GET", path)
    assert (status, headers["cache-control"]) == (200, "no-store")

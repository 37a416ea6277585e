"""What `/` and `/page/` answer, without a browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import orjson
import pytest

from domain.statistics import REASONS
from server.access.caller import ANYBODY, Caller
from server.core.bundled import EXAMPLES as EXAMPLES_FOLDER
from server.core.codecs.file import UNUSUAL
from server.core.contract import parse
from server.core.engine import Model
from server.core.images import Altered
from server.http.page import ASSETS, Page
from server.monitoring.verdict_history import VerdictHistory
from tests.server.tiny import Running, contract_of, encoded, graph, plain

NAMES = sorted(path.name for path in ASSETS.iterdir())


@pytest.fixture(scope="module")
def model() -> Model:
    return Model("awnet", 2, "ab" * 32, parse(json.dumps(contract_of(graph()))))


@pytest.fixture
def page(model: Model) -> Page:
    return Page(lambda: {"awnet": {2: model}}, "awnet", VerdictHistory())


def header(reply: tuple[int, list[tuple[bytes, bytes]], bytes] | None, name: bytes) -> bytes:
    assert reply is not None
    return dict(reply[1])[name]


def test_every_answer_carries_the_policy(page: Page) -> None:
    """Nothing inline, nothing from elsewhere, in no frame; and no guessing of content types."""
    paths = [
        "/",
        "/page/model.json",
        "/page/recent.json",
        "/page/examples.json",
        "/page/page.js",
        "/page/examples/ship.png",
    ]
    for path in paths:
        reply = page.answer(path, {})
        policy = header(reply, b"content-security-policy").decode()
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy and "*" not in policy
        assert header(reply, b"x-content-type-options") == b"nosniff"
        assert header(reply, b"referrer-policy") == b"no-referrer"


def test_the_files_hold_nothing_that_the_policy_forbids() -> None:
    """No inline script or style, and no address of another host but the name of SVG."""
    index = (ASSETS / "index.html").read_text("utf-8")
    assert re.findall(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", index) == []
    for name in NAMES:
        text = (ASSETS / name).read_text("utf-8")
        assert [url for url in re.findall(r"https?://[^\"'\s)]+", text) if url != "http://www.w3.org/2000/svg"] == []
        assert "innerHTML" not in text


def test_the_files_are_small_and_all_served(page: Page) -> None:
    for name in NAMES:
        reply = page.answer("/" if name == "index.html" else f"/page/{name}", {})
        assert reply is not None and reply[0] == 200 and reply[2] == (ASSETS / name).read_bytes()
    assert sum((ASSETS / name).stat().st_size for name in NAMES) < 90_000


def test_a_browser_that_has_a_file_is_not_sent_it_again(page: Page) -> None:
    tag = header(page.answer("/page/page.js", {}), b"etag")
    for given in (tag, b"W/" + tag, b'"other", ' + tag, b"*"):
        reply = page.answer("/page/page.js", {b"if-none-match": given})
        assert reply is not None and reply[0] == 304 and reply[2] == b""
    assert page.answer("/page/page.js", {b"if-none-match": b'"other"'})[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/nothing.js",
        "/page/index.html",
        "/page/../page.py",
        "/page/examples/../draw.py",
        "/page/examples/",
        "/other",
    ],
)
def test_there_is_nothing_else(page: Page, path: str) -> None:
    """Files are looked up by name among those read at start; no path ever reaches the disk."""
    assert page.answer(path, {}) is None


def test_the_model_is_told_as_its_contract_has_it(page: Page, model: Model) -> None:
    reply = page.answer("/page/model.json", {})
    assert reply is not None
    (described,) = orjson.loads(reply[2])["models"]
    assert (described["name"], described["version"], described["sha256"], described["default"]) == (
        "awnet",
        "2",
        "ab" * 32,
        True,
    )
    assert described["labels"] == list(model.contract.labels) and described["size"] == 32
    assert described["modes"] == ["auto"]
    assert described["thresholds"] == {
        "suspicious": {"score": 0.41, "fpr": 0.05},
        "adversarial": {"score": 0.77, "fpr": 0.01},
    }
    means = np.concatenate([part["mean"] for part in described["reference"]["convolutions"]])
    np.testing.assert_allclose(means, model.contract.reference.omega_mean, rtol=1e-5)
    assert "golden" not in described and "provenance" not in described


def test_the_default_model_comes_first_and_its_newest_version_before_the_others(model: Model) -> None:
    loaded: dict[str, dict[int, Model]] = {}
    for name, version in (("aaa", 1), ("awnet", 9), ("awnet", 10)):
        loaded.setdefault(name, {})[version] = Model(name, version, model.sha256, model.contract)
    reply = Page(lambda: loaded, "awnet", VerdictHistory()).answer("/page/model.json", {})
    assert reply is not None
    listed = [(m["name"], m["version"]) for m in orjson.loads(reply[2])["models"]]
    assert listed == [("awnet", "10"), ("awnet", "9"), ("aaa", "1")]


def test_before_a_model_is_loaded_there_is_none_to_tell() -> None:
    reply = Page(dict, "awnet", VerdictHistory()).answer("/page/model.json", {})
    assert reply is not None
    document = orjson.loads(reply[2])
    assert (document["models"], document["default_mode"]) == ([], "auto")


def test_the_page_is_told_who_asks(model: Model) -> None:
    """As whom the server knows the visitor, and what that lets the page ask: it asks for nothing in vain."""
    page = Page(lambda: {"awnet": {2: model}}, "awnet", VerdictHistory(), by_keys=True)
    for caller, expected in (
        (Caller(), {"key": None, "keys": True, "answers": "verdict", "signals": False}),
        (Caller("shop", ANYBODY.scopes, "exact"), {"key": "shop", "keys": True, "answers": "exact", "signals": True}),
        (Caller("shop", ANYBODY.scopes, "bands"), {"key": "shop", "keys": True, "answers": "bands", "signals": False}),
    ):
        reply = page.answer("/page/model.json", {}, caller)
        assert reply is not None and orjson.loads(reply[2])["caller"] == expected
    robust = page.answer("/page/model.json", {}, Caller("shop", mode="robust"))
    assert robust is not None and orjson.loads(robust[2])["default_mode"] == "robust"


def test_examples_come_in_pairs_and_large_files_are_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "a-adversarial.png", "lone.png", "big.png", "big-adversarial.png", "notes.txt"):
        (tmp_path / name).write_bytes(bytes(100_000 if name == "big.png" else 10))
    page = Page(dict, "awnet", VerdictHistory(), tmp_path)
    reply = page.answer("/page/examples.json", {})
    assert reply is not None
    assert [e["name"] for e in orjson.loads(reply[2])["examples"]] == ["a"]
    assert page.answer("/page/examples/a-adversarial.png", {}) is not None
    assert page.answer("/page/examples/lone.png", {}) is None


def test_how_a_twin_was_made_is_told_of_the_file_that_was_made_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the committed ones all; of a file that was changed since, or a recipe that cannot be read, nothing."""
    listed = orjson.loads(Page(dict, "awnet", VerdictHistory()).answer("/page/examples.json", {})[2])["examples"]
    assert all(example["made"]["attack"] == "pgd_trades" and example["made"]["eps"] == 8 for example in listed)
    ship = next(example for example in listed if example["name"] == "ship")["made"]
    assert (ship["label"], ship["fooled"], ship["steps"]) == ("ship", [["pyautoattack", "ship", "airplane"]], 20)
    for name in ("ship.png", "ship-adversarial.png", "cat.png", "twins.json"):
        shutil.copy(EXAMPLES_FOLDER / name, tmp_path / name)
    shutil.copy(tmp_path / "ship.png", tmp_path / "cat-adversarial.png")
    for recipe, expected in ((None, [False, True]), (b"{}", [False, False]), (b"[", [False, False])):
        if recipe is not None:
            (tmp_path / "twins.json").write_bytes(recipe)
        page = Page(dict, "awnet", VerdictHistory(), tmp_path)
        given = orjson.loads(page.answer("/page/examples.json", {})[2])["examples"]
        assert [example["made"] is not None for example in given] == expected
    assert len(caplog.messages) == 2 and all("does not say how the examples were made" in m for m in caplog.messages)


def test_every_reason_for_no_threshold_has_words() -> None:
    """Those of the statistics, of files, and of contracts without domains."""
    reasons = {reason for pair in REASONS.values() for reason in pair} | {*UNUSUAL, *get_args(Altered)}
    table = (ASSETS / "words.js").read_text("utf-8").partition("const WHY = {")[2].partition("};")[0]
    assert set(re.findall(r'^  "?([^":]+)"?: "', table, re.MULTILINE)) == reasons


def test_without_examples_there_is_still_a_page(tmp_path: Path) -> None:
    page = Page(dict, "awnet", VerdictHistory(), tmp_path / "nowhere")
    reply = page.answer("/page/examples.json", {})
    assert reply is not None and reply[2] == b'{"examples":[]}'


class Clock:
    """Seconds that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_recent_verdicts_move_through_the_ring_and_fall_out() -> None:
    clock = Clock()
    recent = VerdictHistory(bins=3, bin_seconds=5, clock=clock)
    recent.add(["clean", "clean", "adversarial"])
    assert recent.document()["counts"] == [[0, 0, 0], [0, 0, 0], [2, 0, 1]]
    clock.now += 5
    recent.add(["suspicious"])
    assert recent.document()["counts"] == [[0, 0, 0], [2, 0, 1], [0, 1, 0]]
    clock.now += 10
    assert recent.document()["counts"] == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    clock.now += 10_000
    assert recent.document()["counts"] == [[0, 0, 0]] * 3


def test_what_recent_tells_is_a_copy() -> None:
    recent = VerdictHistory()
    before = recent.document()
    recent.add(["clean"])
    assert sum(map(sum, before["counts"])) == 0  # type: ignore[arg-type]


def test_a_running_server_serves_the_page_and_counts_its_verdicts(served: Running) -> None:
    """Through the whole server: the policy is not lost on the way, and errors stay problem documents."""
    index = served.http.get("/")
    assert index.status_code == 200 and index.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in index.headers["content-security-policy"]
    assert index.headers["cache-control"] == "no-cache"
    assert served.http.get("/", headers={"if-none-match": index.headers["etag"]}).status_code == 304
    assert served.http.head("/page/page.js").headers["content-type"].startswith("text/javascript")
    missing = served.http.get("/page/nothing")
    assert missing.status_code == 404 and missing.headers["content-type"] == "application/problem+json"
    for path in ("/", "/page/page.js", "/page/recent.json"):
        refused = served.http.post(path)
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["request_id"] == refused.headers["x-request-id"]
        assert refused.json()["type"] == "urn:awnet:problem:method-not-allowed"
    before = sum(map(sum, served.http.get("/page/recent.json").json()["counts"]))
    served.http.post("/predict", content=encoded(plain(0.9)), headers={"content-type": "image/png"})
    assert sum(map(sum, served.http.get("/page/recent.json").json()["counts"])) == before + 1

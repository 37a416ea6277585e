"""The page of a server with keys, in a real Chromium: asks for one, sends it, shows what its holder is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.requires import requires
from tests.server.keys import key, table, write
from tests.server.schema_2 import schema_2
from tests.server.tiny import Running, publish

pytestmark = requires("chromium")

Visit, Image = Callable[..., Any], Callable[..., Path]
REFUSED = "Failed to load resource"  # the browser's own line on the console about an answer of 4xx


def soon(locator: Any) -> Any:
    """Assertions on `locator` that wait."""
    from playwright.sync_api import expect

    return expect(locator)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(
        tmp_path_factory.mktemp("keys") / "keys.toml",
        table("everything"),
        table("plain", ["predict"]),
        table("bands", answers='"bands"'),
        table("verdict", answers='"verdict"'),
        table("scrapes", ["metrics"]),
        table("revoked"),
    )


@pytest.fixture(scope="module")
def locked(process: None, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that wants a key."""
    running = Running(publish(tmp_path_factory.mktemp("repository"), "1", schema_2()), api_keys=keys)
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


def enter(page: Any, name: str) -> None:
    """Type a key, by keyboard alone."""
    page.locator("#key-value").focus()
    page.keyboard.type(key(name))
    page.keyboard.press("Enter")


def choose(page: Any, path: Path) -> None:
    page.set_input_files("#file", str(path))
    page.wait_for_selector(".verdict, .problem")


def test_the_page_asks_for_a_key_and_uses_it(visit: Visit, locked: Running, image: Image) -> None:
    """Kept for this tab, over a reload too, and nowhere else; what the page shows comes once it is accepted."""
    page = visit(REFUSED, locked.url)
    soon(page.get_by_role("heading", name="This server asks for a key")).to_be_visible()
    soon(page.locator("#recent-words")).to_have_text("Not told without a key.")
    assert page.get_by_role("link", name="Metrics").count() == 0
    enter(page, "everything")
    soon(page.locator("#key")).to_be_hidden()
    soon(page.locator("#model-name")).to_have_text("awnet, version 1")
    soon(page.locator("#key-name")).to_have_text("Known as everything.")
    choose(page, image("mine.png", 0.9))
    assert page.locator(".verdict h3").inner_text().startswith("Adversarial")
    assert page.locator(".omegas li").count() == 3
    page.reload()
    soon(page.locator("#model-name")).to_have_text("awnet, version 1")
    assert page.evaluate("[localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]
    assert key("everything") not in page.content() + page.url
    page.get_by_role("button", name="Forget the key").click()
    soon(page.locator("#key")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("wrong", "The server does not know this key, or not any more."),
        ("scrapes", "This key is not enough: this key lacks the scope 'predict'."),
    ],
)
def test_a_key_that_is_refused_is_said_to_be(visit: Visit, locked: Running, given: str, said: str) -> None:
    """With the focus where another one is typed."""
    page = visit(REFUSED, locked.url)
    enter(page, given)
    soon(page.get_by_role("alert")).to_have_text(said)
    soon(page.locator("#key-value")).to_be_focused()


@pytest.mark.parametrize("text", ["", "password", "awnet_short", "awnet_" + "é" * 43, "x" * 90])
def test_what_is_no_key_is_not_sent(visit: Visit, locked: Running, text: str) -> None:
    """It could stand in no header."""
    page = visit(REFUSED, locked.url)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.fill("#key-value", text)
    page.get_by_role("button", name="Use it").click()
    soon(page.get_by_role("alert")).to_have_text("A key begins with awnet_ and has 49 characters.")
    assert asked == []


def test_a_key_that_is_revoked_is_asked_for_anew(visit: Visit, locked: Running, keys: Path, image: Image) -> None:
    """At the next question, which is asked again with the new key."""
    page = visit(REFUSED, locked.url)
    enter(page, "revoked")
    soon(page.locator("#key-name")).to_have_text("Known as revoked.")
    before = keys.read_text("utf-8")
    try:
        write(keys, before.replace("[keys.revoked]", "[keys.other]").replace(table("revoked").split('"')[1], "0" * 64))
        soon(page.locator("#key")).to_be_visible(timeout=20_000)  # the page looks at the last minutes' verdicts
        choose(page, image("mine.png", 0.2))
        assert "The server wants a key" in page.locator(".problem").inner_text()
        enter(page, "everything")
        soon(page.locator(".verdict h3")).to_contain_text("Clean")
    finally:
        write(keys, before)


@pytest.mark.parametrize(
    ("name", "score", "best", "cards"),
    [
        ("plain", r"score 0\.9020", r"\d+\.\d\s%", {"Adversarial score"}),
        ("bands", r"score very high", r"(very )?(low|medium|high)", set()),
        ("verdict", "", "", set()),
    ],
)
def test_the_page_shows_what_its_visitor_is_told(
    visit: Visit, locked: Running, image: Image, name: str, score: str, best: str, cards: set[str]
) -> None:
    """Levels in words, or nothing; no empty drawing stands for what is not told, and nothing is asked for in vain."""
    page = visit(REFUSED, locked.url)
    enter(page, name)
    soon(page.locator("#key")).to_be_hidden()
    choose(page, image("mine.png", 0.9))
    card = page.locator(".verdict")
    assert card.locator("h3").inner_text().startswith("Adversarial")
    assert re.search(score, card.inner_text()) and ("score" in card.inner_text()) == bool(score)
    cell = page.locator(".classes tbody tr").first.locator(".number").inner_text()
    assert re.fullmatch(best, cell)
    assert page.locator(".classes tbody tr").count() == (1 if name == "verdict" else 10)
    drawn = {"Adversarial score", "Regulation signals"}
    assert {title for title in drawn if page.get_by_role("region", name=title).count()} == cards
    assert "undefined" not in page.locator("main").inner_text() and "NaN" not in page.locator("main").inner_text()
    spoken = page.get_by_role("status").text_content()
    assert spoken.startswith("mine.png: adversarial") and "undefined" not in spoken


def test_images_are_chosen_where_they_always_are_while_a_key_is_asked_for(
    visit: Visit, locked: Running, served: Running, image: Image
) -> None:
    """The form stands beside them, and a key can be pasted into it; what was asked before is answered with the key."""
    box = visit().locator("#drop .button").bounding_box()
    page = visit(REFUSED, locked.url)
    soon(page.locator("#key")).to_be_visible()
    assert page.locator("#drop .button").bounding_box() == box
    soon(page.locator("#drop-locked")).to_have_text("The server wants a key first.")
    choose(page, image("mine.png", 0.2))
    assert "Enter one above" in page.locator(".problem").inner_text()
    page.locator("#key-value").focus()
    prevented = """() => !document.activeElement.dispatchEvent(
        new ClipboardEvent("paste", {clipboardData: new DataTransfer(), bubbles: true, cancelable: true}))"""
    assert page.evaluate(prevented) is False
    enter(page, "everything")
    soon(page.locator(".verdict h3")).to_contain_text("Clean")
    assert page.locator("#drop .button").bounding_box() == box
    soon(page.locator("#drop-locked")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_form_for_a_key_is_accessible(visit: Visit, locked: Running, scheme: str) -> None:
    """axe-core has nothing to say, and 320 pixels are enough."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-playwright-python")
    page = visit(REFUSED, locked.url, color_scheme=scheme, viewport={"width": 320, "height": 700}, bypass_csp=True)
    enter(page, "wrong")
    soon(page.get_by_role("alert")).to_be_visible()
    found = axe.Axe().run(page).response["violations"]
    assert [(v["id"], [n["target"] for n in v["nodes"]]) for v in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 320

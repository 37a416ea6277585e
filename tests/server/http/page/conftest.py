"""A real Chromium and a real server for the tests of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.chromium import launch
from tests.server.tiny import Running, plain, publish

# A violation of the policy is told to the console too; this one also catches those of a page that is left.
WATCH = (
    "addEventListener('securitypolicyviolation', e => console.error(`policy: ${e.violatedDirective} ${e.blockedURI}`))"
)


@pytest.fixture(scope="module")
def served(process: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server with the tiny model: the share of red in an image is its score."""
    running = Running(publish(tmp_path_factory.mktemp("repository")), max_body_bytes=1 << 20)
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, started once."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with api.sync_playwright() as playwright:
        launched = launch(playwright)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Any, served: Running) -> Iterator[Callable[..., Any]]:
    """Opens the page. Afterwards: nothing on the console that `expected` does not name, and no other host was asked."""
    contexts, complaints, asked = [], [], []

    def open_page(expected: str = "", url: str = "", **options: Any) -> Any:
        context = browser.new_context(reduced_motion="reduce", **options)
        contexts.append(context)
        context.add_init_script(WATCH)
        page = context.new_page()
        page.set_default_timeout(60_000)

        def note(text: str) -> None:
            if not (expected and expected in text):
                complaints.append(text)

        page.on("console", lambda message: note(message.text))
        page.on("pageerror", lambda error: note(f"uncaught: {error}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{url or served.url}/")
        page.wait_for_selector("#thumbs button")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:"))] == []


@pytest.fixture
def image(tmp_path: Path) -> Callable[..., Path]:
    """Writes a flat image whose score is `red` and returns its path."""

    def write(name: str, red: float, size: tuple[int, int] = (32, 32)) -> Path:
        path = tmp_path / name
        plain(red, size).save(path)
        return path

    return write

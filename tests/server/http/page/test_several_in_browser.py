"""Several images, photos of any size, narrow screens, refusals and keys of the keyboard, in a real Chromium."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from tests.requires import requires
from tests.server.http.page.test_browser import (
    OVERFULL,
    PATIENCE_MS,
    REFUSED,
    TIMES,
    choose,
    choose_several,
    soon,
)
from tests.server.tiny import Running, noise

pytestmark = requires("chromium")

Visit, Image = Callable[..., Any], Callable[..., Path]


# Playwright does not tell bodies that are files.
KEEP_SENT = """() => {
  const before = window.fetch;
  window.kept = [];
  window.fetch = (url, options) => {
    if (options?.body) window.kept.push(options.body);
    return before(url, options);
  };
}"""
KEPT = """() => Promise.all(window.kept.map((blob) => new Promise((done) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result.split(",")[1]);
  reader.readAsDataURL(blob);
})))"""


def sent(page: Any) -> list[bytes]:
    """The bodies of the requests since KEEP_SENT."""
    return [base64.b64decode(body) for body in page.evaluate(KEPT)]


def photo(path: Path, size: tuple[int, int], quality: int) -> Path:
    """A JPEG as telephones write it: the sensor's rows, and in EXIF that it is to be turned by a quarter."""
    exif = Pillow.Exif()
    exif[0x0112] = 6
    noise(128, 96).resize(size).save(path, "JPEG", quality=quality, exif=exif)
    return path


def test_three_images_are_a_strip_of_which_one_is_shown(visit: Visit, image: Image, tmp_path: Path) -> None:
    """Each with its verdict and class; a bad one costs the others nothing, and says why when it is selected."""
    (tmp_path / "bad.png").write_bytes(b"no image")
    page = visit(expected=REFUSED)
    choose_several(page, image("a.png", 0.2), image("b.png", 0.6), tmp_path / "bad.png", image("d.png", 0.9))
    tabs = page.get_by_role("tab")
    said = [text.split() for text in tabs.all_inner_texts()]
    assert [words[0] for words in said] == ["Clean", "Suspicious", "No", "Adversarial"]
    assert [words[-1] for words in said] == ["a.png", "b.png", "bad.png", "d.png"]
    assert (
        page.get_by_role("status").text_content() == "4 images: 1 clean, 1 suspicious, 1 not answered, 1 adversarial."
    )
    assert page.get_by_role("tabpanel").get_by_role("article").get_attribute("aria-label") == "a.png"
    tabs.nth(3).click()
    card = page.get_by_role("tabpanel", name="Adversarial").get_by_role("article")
    assert card.get_attribute("aria-label") == "d.png" and card.inner_text().startswith("Adversarial")
    assert page.locator(".classes .best th").inner_text() in tabs.nth(3).inner_text()
    tabs.nth(2).click()
    assert "not a PNG, JPEG or WebP" in page.get_by_role("alert").inner_text()
    choose(page, image("alone.png", 0.2))
    soon(page.locator(".strip")).to_have_count(0)
    soon(page.get_by_role("tabpanel")).to_have_count(0)


def test_the_strip_and_the_details_are_walked_with_the_keyboard(visit: Visit, image: Image) -> None:
    """One stop of Tab is the strip, arrows go along it and around, the next is in the details, Escape leads back."""
    page = visit(viewport={"width": 400, "height": 800})
    choose_several(page, *(image(f"{n}.png", n / 10) for n in (2, 6, 9)))
    page.locator("#thumbs button").last.focus()
    focus = "document.activeElement.id || document.activeElement.tagName"
    page.keyboard.press("Tab")
    assert page.evaluate(focus) == "tab-0"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for pressed, now in (("ArrowRight", 1), ("End", 2), ("ArrowRight", 0), ("ArrowLeft", 2), ("Home", 0)):
        page.keyboard.press(pressed)
        assert page.evaluate(focus) == f"tab-{now}"
        assert page.locator(".verdict").get_attribute("aria-label") == f"{(2, 6, 9)[now]}.png"
    page.keyboard.press("Tab")
    assert page.evaluate(focus) == "SUMMARY"
    page.keyboard.press("Escape")
    assert page.evaluate(focus) == "tab-0"
    page.keyboard.press("Escape")
    assert page.evaluate(focus) == "file"


def test_escape_stops_what_is_being_asked(visit: Visit, image: Image) -> None:
    """What has its answer keeps it; what has none says so, and can be asked about again."""
    page = visit(expected="")
    held: list[Any] = []
    page.route("**/predict?*", lambda route: route.continue_() if not held else held.append(route))
    paths = [image(f"{n}.png", n / 10) for n in (2, 6, 9)]
    page.set_input_files("#file", [str(paths[0])])
    page.wait_for_selector(".verdict")
    held.append(None)  # from now on nobody answers
    page.set_input_files("#file", [str(path) for path in paths])
    page.get_by_role("tab").first.wait_for()
    page.keyboard.press("Escape")
    soon(page.locator(".strip")).not_to_contain_text("waiting", timeout=PATIENCE_MS)
    assert "Not asked about." in page.get_by_role("alert").inner_text()
    page.unroute("**/predict?*")
    page.get_by_role("button", name="Ask again").click()
    page.wait_for_selector(".verdict.clean")
    assert page.get_by_role("tab").first.inner_text().startswith("Clean")


def test_a_photo_within_the_limits_is_sent_as_it_is(visit: Visit, served: Running, tmp_path: Path) -> None:
    """24 megapixels in half a megabyte, turned by EXIF: byte for byte, and shown upright as the server reads it."""
    path = photo(tmp_path / "photo.jpg", (6000, 4000), 20)
    assert path.stat().st_size < 1 << 20
    page = visit()
    page.evaluate(KEEP_SENT)
    choose(page, path)
    assert sent(page) == [path.read_bytes()]
    assert f"JPEG, 4000 {TIMES} 6000" in page.get_by_role("region", name="Preparation").inner_text()
    assert "smaller copy" not in page.locator("main").inner_text()
    assert page.locator(".preview img").evaluate("image => image.naturalHeight > image.naturalWidth")


@pytest.mark.parametrize("said_beforehand", [True, False])
def test_a_photo_that_is_too_large_is_asked_about_as_a_smaller_copy_which_is_said(
    visit: Visit, served: Running, tmp_path: Path, said_beforehand: bool
) -> None:
    """48 megapixels: a JPEG below the limit, upright. The verdict is of the copy, and without rates and chances.

    Whether the page was told the limit, or a proxy before the server has a lower one.
    """
    path = photo(tmp_path / "photo.jpg", (8064, 6048), 70)
    page = visit(expected=REFUSED)
    if not said_beforehand:

        def told_too_much(route: Any) -> None:
            response = route.fetch()
            route.fulfill(response=response, json={**response.json(), "max_body_bytes": 1 << 30})

        page.route("**/page/model.json", told_too_much)
        page.reload()
        page.wait_for_selector("#thumbs button")
    assert path.stat().st_size > 1 << 20
    page.evaluate(KEEP_SENT)
    choose(page, path)
    *before, last = sent(page)
    assert before == ([] if said_beforehand else [path.read_bytes()]) and len(last) < 1 << 20
    copy = Pillow.open(io.BytesIO(last))
    assert (copy.format, copy.getexif().get(0x0112)) == ("JPEG", None) and copy.height > copy.width
    card = page.locator(".verdict").inner_text()
    assert f"a JPEG of {copy.width} {TIMES} {copy.height} in place of 6048 {TIMES} 8064" in card
    assert "The verdict is about the copy" in card
    assert "Of clean images" not in card and "were attacked" not in card
    facts = page.get_by_role("region", name="Preparation").inner_text()
    assert f"6048 {TIMES} 8064" in facts and "a smaller copy was sent" in facts and "Of the copy: " in facts


def test_plots_are_folded_on_narrow_screens_until_they_are_opened(visit: Visit, image: Image) -> None:
    """By the keyboard too; what was opened stays open for the next image, and is drawn at its width."""
    page = visit(viewport={"width": 400, "height": 800})
    choose(page, image("one.png", 0.2))
    plots = page.locator("details.fold")
    assert plots.evaluate_all("all => all.map(one => one.open)") == [False, False]
    drawing = page.locator(".omegas svg").first
    soon(drawing).to_be_hidden()
    page.get_by_role("region", name="Regulation signals").locator("summary").press("Enter")
    soon(drawing).to_be_visible()
    assert page.evaluate(OVERFULL) == [] and page.evaluate("document.documentElement.scrollWidth") <= 400
    choose(page, image("two.png", 0.9))
    page.wait_for_selector(".verdict.adversarial")
    assert plots.evaluate_all("all => all.map(one => one.open)") == [False, True]
    page.set_viewport_size({"width": 1280, "height": 800})
    soon(page.get_by_role("region", name="Adversarial score").locator("svg").first).to_be_visible()


@pytest.mark.parametrize("width", [320, 400, 820])
def test_a_strip_sticks_out_nowhere(visit: Visit, image: Image, width: int) -> None:
    """It scrolls in itself."""
    page = visit(viewport={"width": width, "height": 740})
    choose_several(page, *(image(f"{'long-' * 9}{n}.png", 0.1 * n) for n in range(8)))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFULL) == []


def test_an_examples_twin_says_how_it_was_made(visit: Visit) -> None:
    """Attack, budget and steps, the network it was made on, original and twin and what differs, both verdicts."""
    page = visit()
    page.get_by_role("button", name="ship", exact=True).click()
    page.wait_for_selector(".verdict >> nth=1")
    corner = page.get_by_role("region", name="What differs")
    caption = corner.inner_text()
    verdicts = [title.split()[0].lower() for title in page.locator(".verdict h3").all_inner_texts()]
    for said in (
        *("pgd_trades: 20 steps", "at most 2 of 255 levels", "eps 8/255", "pyautoattack: ship → airplane"),
        *("python -m examples.attack --surrogate pyautoattack", "What differs", f"difference {TIMES} 15"),
        *verdicts,
    ):
        assert said in caption, said
    assert corner.locator("img").count() == 2 and corner.locator("canvas").count() == 1
    page.get_by_label("Attacked", exact=True).check()
    soon(page.locator(".verdict")).to_have_count(1, timeout=PATIENCE_MS)
    soon(corner).to_have_count(0)


@pytest.mark.parametrize(
    ("status", "slug", "title", "todo"),
    [
        (413, "body-too-large", "The file is too large.", "Take a smaller one"),
        (413, "", "The file is too large.", "Take a smaller one"),
        (415, "unsupported-media", "not a PNG, JPEG or WebP", "export it as PNG or JPEG"),
        (422, "undecodable-image", "broken", "Fetch it anew"),
        (422, "animated-image", "animated", "Save the frame"),
        (422, "image-too-small", "too small", "Take a larger one"),
        (422, "image-rejected", "does not answer images like this one", "policy"),
        (429, "rate-limited", "Too many questions", "Try again in 7 seconds."),
        (429, "repeated-queries", "too often", "ask about other images"),
        (429, "", "Too many questions", "Try again in 7 seconds."),
        (503, "queue-full", "hands full", "Try again in 7 seconds."),
        (503, "not-ready", "still being loaded", "Try again in 7 seconds."),
        (503, "", "cannot answer now", "Try again in 7 seconds."),
        (504, "deadline-exceeded", "took too long", "take a smaller image"),
        (500, "internal", "went wrong", "tell whoever runs the server"),
    ],
)
def test_a_refusal_says_what_to_do(visit: Visit, tmp_path: Path, status: int, slug: str, title: str, todo: str) -> None:
    """In words, of the server's own and of what a proxy before it says without a problem document."""
    page = visit(expected=REFUSED)
    body = json.dumps({"type": f"urn:awnet:problem:{slug}", "status": status, "request_id": "abc"} if slug else {})
    headers = {"retry-after": "7", "content-type": "application/problem+json"}
    page.route("**/predict?*", lambda route: route.fulfill(status=status, headers=headers, body=body))
    (tmp_path / "a.txt").write_bytes(b"nothing that a browser could make smaller")
    choose(page, tmp_path / "a.txt")
    alert = page.get_by_role("alert").inner_text()
    assert title in alert and todo in alert
    assert page.get_by_role("button", name="Ask again").count() == (1 if status in (429, 503, 504) else 0)


def test_a_photo_that_no_browser_opens_says_how_to_get_another(visit: Visit, tmp_path: Path) -> None:
    page = visit(expected=REFUSED)
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    choose(page, tmp_path / "IMG_1.HEIC")
    alert = page.get_by_role("alert").inner_text()
    assert "HEIC photos are not taken" in alert and "Most Compatible" in alert


def test_a_device_without_a_network_is_told_apart_from_a_server_that_is_gone(visit: Visit, image: Image) -> None:
    """Both can be asked again; a page that is opened while its server is gone says so at the top."""
    page = visit(expected="net::")
    page.context.set_offline(True)
    choose(page, image("one.png", 0.2))
    assert "This device is offline." in page.get_by_role("alert").inner_text()
    page.context.set_offline(False)
    page.get_by_role("button", name="Ask again").click()
    page.wait_for_selector(".verdict.clean")
    page.route("**/page/model.json", lambda route: route.abort())
    page.reload()
    soon(page.locator("#model-name")).to_have_text("The server cannot be reached; trying again.", timeout=PATIENCE_MS)
    page.unroute("**/page/model.json")
    soon(page.locator("#model-name")).to_contain_text("version", timeout=PATIENCE_MS)

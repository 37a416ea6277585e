"""The pictures of the page in docs/images, drawn in a real Chromium. Needs chromium; `natural` needs scikit-image."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from examples.photograph import bundled_photo

from ..harness.chromium import launch
from ..harness.processes import Server
from ..harness.report import ROOT, parser
from .natural_images import NaturalImage, natural_images

EXAMPLES = """examples:
  python -m benchmarks.project.screenshots                    the page in five settings, and twelve natural images
  python -m benchmarks.project.screenshots page               the page alone
  python -m benchmarks.project.screenshots natural --out DIR  the twelve alone, elsewhere
"""

WIDE, NARROW = {"width": 1280, "height": 1000}, {"width": 400, "height": 800}
STRIP = [f"{name}.png" for name in ("ship", "cat-adversarial", "truck", "chelsea", "dog-adversarial", "frog")]
# Name; an example with its twin, or the files of a strip; the last card that is on the image; the browser.
SHOTS: list[tuple[str, str | list[str], str, dict[str, Any]]] = [
    ("page-light", "ship", "Regulation signals", {"color_scheme": "light", "viewport": WIDE}),
    ("page-dark", "ship", "Classes of ship, attacked", {"color_scheme": "dark", "viewport": WIDE}),
    ("page-narrow", "ship", "What differs", {"color_scheme": "light", "viewport": NARROW}),
    ("page-narrow-dark", STRIP, "Regulation signals", {"color_scheme": "dark", "viewport": NARROW}),
    ("page-strip", STRIP, "Adversarial score", {"color_scheme": "light", "viewport": WIDE}),
]
MARGIN = 10
COLUMNS = 3  # of the sheet of twelve
CARDS: dict[str, Any] = {"color_scheme": "light", "viewport": {"width": 1280, "height": 1000}}


def main() -> int:
    """Write the pictures that were asked for; print what was said about each of the twelve."""
    command_line = parser("project.screenshots", __doc__, EXAMPLES)
    command_line.add_argument("what", nargs="*", metavar="{page,natural}", help="default: both")
    command_line.add_argument(
        "--photographs", type=Path, metavar="DIR", help="scikit-image's data (default: as installed)"
    )
    command_line.add_argument(
        "--out", type=Path, default=ROOT / "docs/images", metavar="DIR", help="default: docs/images"
    )
    options = command_line.parse_args()
    what = options.what or ["page", "natural"]
    if unknown := sorted(set(what) - {"page", "natural"}):
        command_line.error(f"there are page and natural, not {unknown[0]}")
    images: list[NaturalImage] = []
    if "natural" in what:
        try:
            images = natural_images(options.photographs or bundled_photo().parent)
        except FileNotFoundError as error:
            command_line.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    with Server() as server:
        server.wait_ready()
        with sync_playwright() as playwright:
            browser = launch(playwright)
            if "page" in what:
                page_in_each_setting(browser, server, options.out)
            if images:
                sheet(browser, server, images, options.out / "natural.png")
            browser.close()
    return 0


def page_in_each_setting(browser: Any, server: Server, out: Path) -> None:
    """An example with its twin, or a strip of which the second is selected; one small PNG each."""
    for name, asked, last, options in SHOTS:
        page = browser.new_context(reduced_motion="reduce", **options).new_page()
        page.goto(f"http://{server.address}/")
        page.wait_for_selector("#thumbs button")
        if isinstance(asked, str):
            page.get_by_role("button", name=asked, exact=True).click()
            page.wait_for_selector(".verdict >> nth=1")
        else:
            page.set_input_files("#file", [str(ROOT / "examples" / file) for file in asked])
            page.wait_for_selector(f".strip button:nth-child({len(asked)}) .icon")
            page.get_by_role("tab").nth(1).click()
        page.wait_for_selector("#recent-chart svg")
        page.evaluate("scrollTo(0, 0)")
        box = page.get_by_label(last, exact=True).bounding_box()
        assert box is not None
        clip = {"x": 0, "y": 0, "width": options["viewport"]["width"], "height": box["y"] + box["height"] + MARGIN}
        small(Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip))), out / f"{name}.png")


def sheet(browser: Any, server: Server, images: list[NaturalImage], path: Path) -> None:
    """The page's card about each image, side by side, and a line about each on the terminal."""
    page = browser.new_context(reduced_motion="reduce", **CARDS).new_page()
    page.goto(f"http://{server.address}/")
    page.wait_for_selector("#thumbs button")
    cards = []
    for image in images:
        with page.expect_response("**/predict?*") as asked:
            page.set_input_files("#file", {"name": image.kind, "mimeType": image.media, "buffer": image.content})
        card = page.get_by_role("article", name=image.kind, exact=True)
        card.wait_for()
        page.wait_for_function("[...document.images].every((image) => image.complete)")
        cards.append(Image.open(io.BytesIO(card.screenshot())).convert("RGB"))
        answer = asked.value.json()
        result = answer["results"][0]
        judged, best = result["adversarial"], result["predictions"][0]
        says = judged["domain"] or f"not calibrated: {judged['why']}"
        print(f"{image.kind:24} {judged['verdict']:12} {judged['score']:<12.6g} {says:40} {best['label']}", flush=True)
    print(f"{answer['model']['name']} version {answer['model']['version']}, mode {answer['mode']}")
    rows = [cards[first : first + COLUMNS] for first in range(0, len(cards), COLUMNS)]
    heights = [max(card.height for card in row) + MARGIN for row in rows]
    width = max(card.width for card in cards) + MARGIN
    whole = Image.new("RGB", (COLUMNS * width + MARGIN, sum(heights) + MARGIN), "#f7f6f2")
    for n, row in enumerate(rows):
        for column, card in enumerate(row):
            whole.paste(card, (column * width + MARGIN, sum(heights[:n]) + MARGIN))
    small(whole, path)


def small(image: Image.Image, path: Path) -> None:
    """Write `image` with a palette of 256 colours: a third of the size, and nobody sees it."""
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())

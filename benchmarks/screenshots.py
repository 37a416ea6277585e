"""The pictures of the page in docs/images: `python -m benchmarks.screenshots`. Needs chromium."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from .harness.chromium import launch
from .harness.processes import Server
from .harness.report import ROOT

# name, the last card that is on the image, the browser
SHOTS: list[tuple[str, str, dict[str, Any]]] = [
    ("page-light", "Regulation signals", {"color_scheme": "light", "viewport": {"width": 1280, "height": 1000}}),
    ("page-dark", "Classes of ship, attacked", {"color_scheme": "dark", "viewport": {"width": 1280, "height": 1000}}),
    ("page-narrow", "What differs", {"color_scheme": "light", "viewport": {"width": 360, "height": 800}}),
]
MARGIN = 10


def main() -> int:
    """Ask for an example with its twin in each setting; write one small PNG each."""
    with Server() as server:
        server.wait_ready()
        with sync_playwright() as playwright:
            browser = launch(playwright)
            for name, last, options in SHOTS:
                page = browser.new_context(reduced_motion="reduce", **options).new_page()
                page.goto(f"http://{server.address}/")
                page.get_by_role("button", name="ship", exact=True).click()
                page.wait_for_selector(".verdict >> nth=1")
                page.wait_for_selector("#recent-chart svg")
                page.evaluate("scrollTo(0, 0)")
                box = page.get_by_label(last, exact=True).bounding_box()
                assert box is not None
                clip = {
                    "x": 0,
                    "y": 0,
                    "width": options["viewport"]["width"],
                    "height": box["y"] + box["height"] + MARGIN,
                }
                small(page.screenshot(full_page=True, clip=clip), ROOT / "docs/images" / f"{name}.png")
            browser.close()
    return 0


def small(png: bytes, path: Path) -> None:
    """Write `png` with a palette of 256 colours: a third of the size, and nobody sees it."""
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())

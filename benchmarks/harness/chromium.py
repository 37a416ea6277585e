"""A real Chromium without a window, as tests of the page and its images start it."""

from __future__ import annotations

import shutil
from typing import Any

# The sandbox needs rights that a container does not have; the rest keeps the browser from talking to anybody else.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def launch(playwright: Any) -> Any:
    """The browser of `playwright`, which `sync_playwright()` gave."""
    return playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)

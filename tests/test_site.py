"""The documents as a site: no warning, no link that leads nowhere, nothing fetched from other hosts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from benchmarks.harness.chromium import launch
from domain import __version__
from tests.repository import ROOT
from tests.requires import requires

pytestmark = [pytest.mark.process, pytest.mark.slow]
PARTS = ("Tutorials", "How-to", "Reference", "Explanation")
LOADED = {"img", "script", "link", "iframe", "source", "audio", "video", "embed", "object"}


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """What `make site` runs. Everything under `out` is new."""
    options = ["-q", "--fail-on-warning", "--keep-going", "-c", "docs", "-d", str(out / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, ".", str(out / "site")]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)


class Page(HTMLParser):
    """The anchors of a page, where its links lead, and what a browser fetches to show it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADED and given.get("rel") not in ("next", "prev", "index", "search"):
            self.fetched += [given[name] for name in ("src", "href", "data", "srcset") if given.get(name)]


@pytest.fixture(scope="module")
def site(process: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("documents")
    done = build(ROOT, out)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return out / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_the_makefile_builds_what_is_tested_here() -> None:
    said = subprocess.run(["make", "-n", "site"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "-m sphinx -q --fail-on-warning --keep-going -c docs -d build/doctrees . build/site" in said


def test_every_page_of_the_documents_is_in_the_site(site: Path) -> None:
    """And carries the one version, in its title."""
    for path in (*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        page = (site / path.relative_to(ROOT)).with_suffix(".html").read_text("utf-8")
        assert f"AW-Net {__version__}</title>" in page, path


def broken(pages: dict[Path, Page]) -> Iterator[str]:
    """Links within the site whose file or anchor is missing."""
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].ids if target in pages else None
            if not target.is_file() or (
                parts.fragment and anchors is not None and unquote(parts.fragment) not in anchors
            ):
                yield f"{path.name}: {link}"


def test_links_and_anchors_within_the_site_lead_somewhere(pages: dict[Path, Page]) -> None:
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert list(broken(pages)) == []


def test_no_page_fetches_anything_from_another_host(site: Path, pages: dict[Path, Page]) -> None:
    """Neither fonts nor scripts nor images: the site works without a network, and tells nobody who reads it."""
    elsewhere = [link for page in pages.values() for link in page.fetched if re.match(r"(?:\w+:)?//", link)]
    styles = [
        f"{path.name}: {url}"
        for path in site.rglob("*.css")
        for url in re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')]+)""", path.read_text("utf-8"))
    ]
    assert (elsewhere, styles) == ([], [])


def test_links_that_lead_out_are_listed(site: Path, pages: dict[Path, Page]) -> None:
    """For whoever wants to follow them; no test does."""
    listed = {line.split()[0] for line in (site / "external-links.txt").read_text("utf-8").splitlines()}
    assert "https://semver.org/" in listed
    assert {link for page in pages.values() for link in page.links if "semver" in link} <= listed


def test_the_readme_leads_to_each_part() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    index = (ROOT / "docs/index.md").read_text("utf-8")
    assert re.findall(r"^## (.+)$", index, re.MULTILINE) == list(PARTS)
    assert [part for part in PARTS if f"(docs/index.md#{part.lower()})" not in text] == []


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("docs/lost.md", "document isn't included in any toctree"),
        ("docs/named.md", "nowhere.md"),
        ("docs/named.md", "no-such-heading"),
    ],
)
def test_a_page_in_no_table_of_contents_and_a_broken_link_fail(tmp_path: Path, page: str, complaint: str) -> None:
    (tmp_path / "domain").mkdir()
    shutil.copy(ROOT / "domain/__init__.py", tmp_path / "domain")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/conf.py", tmp_path / "docs")
    (tmp_path / "docs/index.md").write_text("# Index\n\n## Tutorials\n\n| [Named](named.md) | |\n|---|---|\n", "utf-8")
    (tmp_path / "docs/named.md").write_text("# Named\n\n[a](nowhere.md) [b](index.md#no-such-heading)\n", "utf-8")
    (tmp_path / "docs/lost.md").write_text("# Lost\n", "utf-8")
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if page in line and complaint in line], done.stderr


@requires("chromium")
def test_the_search_finds_pages_without_a_network(site: Path) -> None:
    """Opened as a file: no server, and no request that is not for a file."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    asked: list[str] = []
    with api.sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{(site / 'search.html').as_uri()}?q=CUSUM")
        page.wait_for_selector("#search-results li a[href*='docs/operations.html']", timeout=60_000)
        found = page.eval_on_selector_all("#search-results li a", "links => links.map(link => link.href)")
        browser.close()
    assert any("docs/operations.html" in link for link in found)
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []

"""The documents as a site (`make site`): the Markdown as it lies, so that links lead where they lead in a checkout.

Sphinx reads from the root of the repository. Its tables of contents are the tables of links that stand in
`docs/index.md`, and in some folders all pages (FOLDERS). docs/decisions/0034-the-site.md says why.
"""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser

ROOT = Path(__file__).resolve().parent.parent

project = "AW-Net"
release = version = runpy.run_path(str(ROOT / "domain/__init__.py"))["__version__"]
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/**",
    "benchmarks/results/*.md",
    "training/reports/*/**.md",
    "training/reports/[cgl]*.md",  # calibrations, GPU runs, leaderboard; of single evaluations the JSON is enough
]
exclude_patterns = [".*", "build", "dist", "data", "runs", "tests"]  # not even looked into
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # generated reports leave levels of headings out

html_theme = "furo"
html_title = f"{project} {version}"
html_copy_source = False
html_show_copyright = False

# Page -> pages that stand below it although it does not name them.
FOLDERS = {
    "docs/decisions/README": ["[0-9]*"],
    "docs/measurements": ["../benchmarks/results/*", "../training/reports/**"],
}
_ROW = re.compile(r"^(?:\| |- )\[[^\]]+\]\(([^)#\s:]+\.(?:md|ipynb))\)", re.MULTILINE)
EXTERNAL = "external-links.txt"


def contents(app: Any, page: str, source: list[str]) -> None:
    """Give a page its tables of contents: of the index one a heading, from the first link of each row of its tables."""
    trees = []
    if page == root_doc:
        for section in re.split(r"^## ", source[0], flags=re.MULTILINE):
            trees.append((f":caption: {section.partition(chr(10))[0]}", _ROW.findall(section)))
    elif page in FOLDERS:
        trees.append((":glob:", FOLDERS[page]))
    for option, pages in trees:
        if pages:
            listed = "\n".join(re.sub(r"\.(?:md|ipynb)$", "", page) for page in pages)
            source[0] += f"\n\n```{{toctree}}\n:hidden:\n{option}\n\n{listed}\n```\n"


class NotebookParser(MystParser):  # type: ignore[misc]
    """A notebook as a page: its text, its code, and what was committed as the code's output."""

    supported = ("ipynb",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        parts = []
        for cell in json.loads(inputstring)["cells"]:
            source = "".join(cell["source"])
            parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
            for output in cell.get("outputs", []):
                png = output.get("data", {}).get("image/png")
                text = "".join(output.get("text", ""))
                parts.append(f"![output](data:image/png;base64,{png.strip()})" if png else f"```text\n{text}```")
        super().parse("\n\n".join(parts) + "\n", document)


def finish(app: Any, error: Exception | None) -> None:
    """Send the root of the site to its index, and list the links that lead out of it: nobody follows them here."""
    if error:
        return
    out = Path(app.outdir)
    start = f"{root_doc}.html"
    (out / "index.html").write_text(
        f'<!doctype html><meta http-equiv="refresh" content="0; url={start}"><a href="{start}">{project}</a>\n', "utf-8"
    )
    links = {
        f"{reference['refuri']}  {page}"
        for page in app.env.found_docs
        for reference in app.env.get_doctree(page).findall(nodes.reference)
        if re.match(r"\w+://", reference.get("refuri", ""))
    }
    (out / EXTERNAL).write_text("".join(f"{link}\n" for link in sorted(links)), "utf-8")


def setup(app: Any) -> None:
    app.add_source_suffix(".ipynb", "ipynb")
    app.add_source_parser(NotebookParser)
    app.connect("source-read", contents)
    app.connect("build-finished", finish)

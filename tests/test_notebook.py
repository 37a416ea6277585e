"""The notebook runs from the committed files alone, and what it shows is small."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.repository import ROOT

NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))
pytestmark = [pytest.mark.process, pytest.mark.slow]


def executed(path: Path) -> Any:
    """The notebook after a fresh run of all cells, from its own folder; raises where a cell does."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    return NotebookClient(book, timeout=300, kernel_name="python3", resources=folder).execute()


def shown(book: Any) -> list[tuple[int, str, str]]:
    """(cell, kind, text) of each output; of a picture only that there is one."""
    found = []
    for number, cell in enumerate(book.cells):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            found.append((number, "picture", "") if "image/png" in data else (number, "text", output.get("text", "")))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_a_notebook_runs_and_shows_what_was_committed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a data set. Pictures may differ in their pixels; there are as many, after the same cells."""
    import nbformat

    monkeypatch.delenv("AWNET_DATA_DIR", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    assert shown(executed(path)) == shown(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_a_committed_notebook_is_small_and_has_no_paths_of_a_machine(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text) < 300_000
    assert re.findall(r"/(?:home|root|tmp|usr)/", text) == []
    assert '"image/png"' in text


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS

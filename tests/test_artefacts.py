"""Every committed result, checkpoint, recipe and image is used, and every path that a document names exists."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ARTEFACTS = ("training/reports", "training/checkpoints", "training/recipes", "benchmarks/results", "docs/images")
TEXTS = (".md", ".py", ".toml", ".yaml", ".sh")
ROOMS = "training|benchmarks|server|export|tests|examples|deploy|docs|requirements"


@cache
def tracked() -> tuple[str, ...]:
    """Paths of the repository's files."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout, so nobody can say which files belong to the repository")
    return tuple(name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file())


def expanded(text: str) -> list[str]:
    """`a-{,b}.json` as the shell reads it: `a-.json`, `a-b.json`."""
    parts = [part.split(",") if i % 2 else [part] for i, part in enumerate(re.split(r"\{([^{}]*)\}", text))]
    return ["".join(choice) for choice in product(*parts)]


def names_in(text: str) -> set[str]:
    """What a text calls files: what stands in quotes, backticks or after a slash, without folder and suffix."""
    found = re.findall(r"(?<=[`\"'/])[\w.{},-]*[\w}]", text)
    return {re.sub(r"\.\w+$", "", name) for token in found for name in expanded(token)}


@cache
def named() -> dict[str, set[str]]:
    """Text -> what it names. Reports and results do not count, nor does the changelog: they tell what was."""
    return {
        path: names_in((ROOT / path).read_text("utf-8"))
        for path in tracked()
        if (path.endswith(TEXTS) or path == "Makefile")
        and not path.startswith(("training/reports", "benchmarks/results"))
        and path not in ("CHANGELOG.md", "tests/test_artefacts.py")
    }


def written_whole() -> list[str]:
    """Folders that a command of the Makefile writes."""
    return re.findall(r"--out ((?:training|benchmarks)/\S+?)[;\s]", (ROOT / "Makefile").read_text("utf-8"))


def used(path: str) -> bool:
    """Whether a document, a recipe, a command or code uses the file at `path`, by name or by its folder."""
    stem = Path(path).stem
    return any(path.startswith(f"{folder}/") for folder in written_whole()) or any(
        stem in names for text, names in named().items() if text != path
    )


@pytest.mark.parametrize("folder", ARTEFACTS)
def test_every_artefact_is_used(folder):
    """What nothing names is history, and git keeps that: delete it, or say what it is for."""
    files = [path for path in tracked() if path.startswith(f"{folder}/")]
    assert files
    assert [path for path in files if not used(path)] == []


def test_an_artefact_that_nothing_names_is_found():
    """The rule can fail."""
    assert not used("training/reports/awnet-robust-of-nobody.json")
    assert used("training/reports/tables/any.json") and used("training/reports/awnet-robust-whitebox.json")


def paths_in(text: str) -> list[str]:
    """Paths of this repository that a document names; COMMIT:PATH, as git writes it, is not in this tree."""
    found = re.findall(rf"(?<![\w./:-])(?:{ROOMS})/[\w./{{}},*-]*[\w/}}*]", text)
    return sorted({path for token in found for path in expanded(token)})


@pytest.mark.parametrize(
    "document", [path for path in tracked() if path.endswith(".md") and path != "CHANGELOG.md"], ids=lambda path: path
)
def test_every_path_that_a_document_names_exists(document):
    """A reader who follows a path finds the file."""
    assert [path for path in paths_in((ROOT / document).read_text("utf-8")) if not list(ROOT.glob(path))] == []


def test_a_path_that_leads_nowhere_is_found():
    """Braces and stars are read as the shell reads them; a path at a commit is left to git."""
    told = "`training/reports/x{1,2}.json`, training/recipes/**/*.toml. `e2d316a:training/reports/y.json`"
    assert paths_in(told) == ["training/recipes/**/*.toml", "training/reports/x1.json", "training/reports/x2.json"]

"""The repository keeps its own promises: layout, documents, locks, package."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections import Counter

import pytest

from domain import __version__
from tests.repository import ROOT, tracked

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES = ("awnet", "domain", "server", "export", "training", "benchmarks", "examples")
LOCKS = ("server", "server-cpu", "dev", "triton", "moto")


def locked(name: str) -> dict[str, str]:
    """Package -> pinned version of a lock; a package pinned twice, by marker, keeps the first."""
    found: dict[str, str] = {}
    for package, version in re.findall(r"^([a-z0-9.-]+)==(\S+)", lock_text(name), re.MULTILINE):
        found.setdefault(package, version)
    return found


def lock_text(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text("utf-8")


def test_the_architecture_lists_exactly_the_rooms_that_exist():
    """A reader finds every folder that holds modules in docs/architecture.md, and nothing there that is gone."""
    rows = re.findall(r"^\| `([\w/]+)/`", (ROOT / "docs/architecture.md").read_text("utf-8"), re.MULTILINE)
    assert [row for row in rows if not (ROOT / row).is_dir()] == []
    rooms = {p.parent.relative_to(ROOT).as_posix() for name in PACKAGES for p in tracked(f"{name}/*.py")}
    assert sorted(rooms - set(rows)) == []


def test_inside_a_package_imports_are_relative():
    """A package can be installed under another name: no module of it names the package itself."""
    absolute = []
    for package in ("awnet", "domain", "server", "export", "training", "benchmarks"):
        for path in tracked(f"{package}/*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                named = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    named = [node.module or ""]
                absolute += [f"{path.relative_to(ROOT)}: {n}" for n in named if n.partition(".")[0] == package]
    assert absolute == []


@pytest.mark.parametrize(
    "document",
    sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")),
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_links_between_documents_lead_somewhere(document):
    """A relative link in a document names a file or folder that exists."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", document.read_text("utf-8"))
    assert [t for t in targets if not (document.parent / t).exists()] == []


def test_no_file_names_a_registry_or_a_path_of_one_machine():
    """Everything works from any mirror and in any folder, so neither may be written down."""
    hosts = "|".join(("py" + r"pi\.org", "python" + r"hosted\.org", "registry" + r"\.npmjs"))
    paths = r"(?<![\w.])/(?:" + "work|root|home/" + r"\w+)/"
    found = []
    for path in tracked():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {m[0]}" for m in re.finditer(f"{hosts}|{paths}", text)]
    assert found == []


def test_no_file_holds_both_sides_of_a_merge():
    """A conflict that was committed unresolved; the marks are put together here, so that this file is none."""
    marks = re.compile(rf"^(?:{'<' * 7}|{'>' * 7}|\|{{7}}) ".encode(), re.MULTILINE)
    assert [str(path.relative_to(ROOT)) for path in tracked() if marks.search(path.read_bytes())] == []


def test_every_module_says_what_it_is_for():
    """The first line of a module is its docstring, package by package."""
    silent = [
        path.relative_to(ROOT).as_posix()
        for name in (*PACKAGES, "tests", ".ci")
        for path in tracked(f"{name}/*.py")
        if not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert silent == []


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_pins_every_package_with_hashes_and_names_no_address(name):
    """The same bytes arrive everywhere, from whichever mirror the user has."""
    text = lock_text(name)
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(entries) > 20
    assert [e.splitlines()[0] for e in entries if "==" not in e.splitlines()[0] or "--hash=sha256:" not in e] == []
    assert "://" not in text and "--index" not in text and "--find-links" not in text


def test_the_server_lock_knows_neither_torch_nor_onnx_and_agrees_with_the_other():
    """Whoever serves does not download torch, and the tests see the versions that serve."""
    server, dev = locked("server"), locked("dev")
    assert not {"torch", "torchvision", "onnx", "onnxscript"} & server.keys()
    assert {"torch", "torchvision", "onnx"} <= dev.keys()
    assert {p: v for p, v in server.items() if dev.get(p) != v} == {}


def test_the_lock_for_cpus_differs_from_the_servers_in_the_runtime_alone():
    """And leaves out the distribution that would write the same files."""
    server, cpu = locked("server"), locked("server-cpu")
    assert {package for package in server.keys() | cpu.keys() if server.get(package) != cpu.get(package)} == {
        "onnxruntime-gpu"
    }
    assert "onnxruntime-gpu" not in cpu and "sys_platform" not in lock_text("server-cpu").split("onnxruntime==")[1][:80]


def test_the_locks_hold_every_declared_dependency():
    """A dependency that pyproject.toml names and `make lock` was not run for is found here, not by a user."""

    def names(requirements: list[str]) -> set[str]:
        return {re.match(r"[\w.-]+", r)[0].lower() for r in requirements}

    project = PROJECT["project"]
    assert names(project["dependencies"]) <= locked("server").keys()
    assert {name for extra in project["optional-dependencies"].values() for name in names(extra)} <= locked(
        "dev"
    ).keys()


def unreleased_or_listed(changelog: str, version: str, released: set[str]) -> bool:
    """Whether a changelog tells what is new, under Unreleased or the version, and each released version."""
    headings = re.findall(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    return headings[:1] in (["Unreleased"], [version]) and released <= set(headings)


def test_the_changelog_tells_what_is_new_and_every_release():
    """The version at hand is the newest heading or lies under Unreleased; what has a tag has a heading."""
    tags = subprocess.run(["git", "tag", "--list", "v*"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    released = {tag.removeprefix("v") for tag in tags}
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert unreleased_or_listed(changelog, __version__, released)


def test_a_changelog_that_lacks_a_version_is_found():
    """Neither Unreleased nor the version on top, or a release without a heading."""
    changelog = "## [Unreleased]\n\n## [0.1.0] - 2026-01-01\n"
    assert unreleased_or_listed(changelog, "0.1.0", {"0.1.0"})
    assert not unreleased_or_listed(changelog, "0.2.0", {"0.1.0", "0.2.0"})
    assert unreleased_or_listed(changelog.replace("## [Unreleased]", ""), "0.1.0", {"0.1.0"})
    assert not unreleased_or_listed(changelog.replace("## [Unreleased]", ""), "0.2.0", {"0.1.0"})
    assert not unreleased_or_listed("", "0.1.0", set())


def torn_entries(changelog: str) -> list[str]:
    """Entries that do not end as sentences do, and lines that stand twice: what two changes at once leave behind."""
    entries = re.findall(r"^- .*(?:\n  .*)*", changelog, re.MULTILINE)
    lines = Counter(line for entry in entries for line in entry.splitlines() if len(line) > 60)
    beginnings = Counter(entry[:60] for entry in entries if len(entry) > 60)
    return [entry for entry in entries if not entry.endswith((".", ".)"))] + [
        text for counts in (lines, beginnings) for text, count in counts.items() if count > 1
    ]


def test_every_entry_of_the_changelog_is_whole_and_there_once():
    assert torn_entries((ROOT / "CHANGELOG.md").read_text("utf-8")) == []


def test_entries_that_two_changes_tore_are_found():
    """One that ends in the middle of a sentence, and one that begins twice."""
    entry = "- `awnet serve` says what it serves, on which address, and where its settings come from,\n  in one line.\n"
    assert torn_entries(entry + "- More.\n") == []
    cut, _, rest = entry.partition("\n")
    assert torn_entries(f"{cut}\n- More.\n") == [cut]
    assert torn_entries(f"{cut}\n{rest}{entry}")

"""Every committed result, checkpoint, recipe and image is used; every path and name of code in a document exists."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.repository import ROOT, tracked

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/results/*.md")
    for path in ROOT.glob(pattern)
)
ARTEFACTS = ("training/reports", "training/checkpoints", "training/recipes", "benchmarks/results", "docs/images")
REPRODUCED = ("training/reports/tables/", "training/reports/figures/")
TEXTS = (".md", ".py", ".toml", ".yaml", ".sh")
SUFFIXES = (
    "crt",
    "json",
    "jsonl",
    "key",
    "md",
    "onnx",
    "pbtxt",
    "pem",
    "png",
    "pt",
    "py",
    "toml",
    "txt",
    "yaml",
    "yml",
)
SPAN_ATTRIBUTES = r"(awnet|ocsf|service)\.[a-z_.]+"  # of OpenTelemetry, which docs/telemetry.md tells
LIBRARIES = ("onnx", "torch")  # export/onnx.py is no one's prefix in prose
TELL_OLD_NAMES = (
    "benchmarks/results/structure-before.md",
    "docs/decisions/0017-rooms.md",
    "docs/glossary.md",
    "docs/renames.md",
)
NOT_CODE = {"backend", "preprocessing", "torchrun"}  # keys of other files, and a program
ROOMS = "domain|training|benchmarks|server|export|tests|examples|deploy|docs|requirements"


def paths(*folders: str) -> list[str]:
    """Paths of the repository's files, all or those in `folders`, which end in a slash."""
    found = (path.relative_to(ROOT).as_posix() for path in tracked())
    return [path for path in found if path.startswith(folders or "")]


def expanded(text: str) -> list[str]:
    """`a-{,b}.json` as the shell reads it: `a-.json`, `a-b.json`."""
    parts = [part.split(",") if i % 2 else [part] for i, part in enumerate(re.split(r"\{([^{}]*)\}", text))]
    return ["".join(choice) for choice in product(*parts)]


def names_in(text: str) -> set[str]:
    """What a text calls files: what stands in quotes, backticks or after a slash, without folder and suffix."""
    found = re.findall(r"(?<=[`\"'/])[\w.{},-]*[\w}]", text)
    return {re.sub(r"\.\w+$", "", name) for token in found for name in expanded(token)}


def folders_in(text: str) -> set[str]:
    """Every part of the paths in a text: of what has a slash."""
    found = re.findall(r"[\w.{},-]*/[\w.{},/-]*", text)
    return {part for token in found for path in expanded(token) for part in path.split("/")}


@cache
def named() -> dict[str, tuple[set[str], set[str]]]:
    """Text -> files and folders that it names. Reports and results do not count, nor does the changelog: they tell what
    was."""
    texts = {
        path: (ROOT / path).read_text("utf-8")
        for path in paths()
        if (path.endswith(TEXTS) or path == "Makefile")
        and not path.startswith(("training/reports", "benchmarks/results"))
        and path not in ("CHANGELOG.md", "tests/test_artefacts.py")
    }
    return {path: (names_in(text), folders_in(text)) for path, text in texts.items()}


@cache
def reproduced() -> frozenset[str]:
    """What `make tables-small` writes: a report for each judged network and seed, tables, the ledger, figures."""
    specification, paper, figures = (
        tomllib.loads((ROOT / f"training/reproduction/{name}.toml").read_text("utf-8"))
        for name in ("tables-small", "paper", "figures-small")
    )
    drawn = [*(f"tables/table-{n}" for n in paper), *(f"figures/figure-{n}" for n in figures)]
    found = {f"{stem}.{suffix}" for stem in drawn for suffix in ("json", "md", "png", "svg")}
    found |= {"tables/ledger.json", "tables/ledger.md"}
    for folder, networks in specification["networks"].items():
        for name, network in networks.items():
            if network.get("judge", True):
                seeds = ["", *(f".s{seed}" for seed in range(1, network.get("seeds", 1)))]
                found |= {f"tables/{folder}/{name}{seed}.json" for seed in seeds}
    return frozenset(f"training/reports/{path}" for path in found)


def used(path: str) -> bool:
    """Whether a document, a recipe, a command or code names the file at `path`, and its folder or lies beside it."""
    file = Path(path)
    return any(
        file.stem in names and (file.parent.name in folders or Path(text).parent == file.parent)
        for text, (names, folders) in named().items()
        if text != path
    )


@pytest.mark.parametrize("folder", ARTEFACTS)
def test_every_artefact_is_used(folder):
    """What nothing names is history, and git keeps that: delete it, or say what it is for."""
    files = paths(f"{folder}/")
    assert files
    assert [path for path in files if not path.startswith(REPRODUCED) and not used(path)] == []


def test_the_reproduction_keeps_what_its_specification_tells():
    """No report of a network that no table has, and none missing."""
    assert set(paths(*REPRODUCED)) == reproduced()


def test_an_artefact_that_nothing_names_is_found():
    """The rule can fail: for a name that nobody says, and for one that is said, but of another folder."""
    assert not used("training/reports/awnet-robust-of-nobody.json")
    assert not used("docs/images/ledger.png")
    assert used("training/reports/awnet-robust-whitebox.json")


def paths_in(text: str) -> list[str]:
    """Paths of this repository that a document names; COMMIT:PATH, as git writes it, is not in this tree."""
    found = re.findall(rf"(?<![\w./:-])(?:{ROOMS})/[\w./{{}},*-]*[\w/}}*]", text)
    return sorted({path for token in found for path in expanded(token)})


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path != "CHANGELOG.md"], ids=lambda path: path)
def test_every_path_that_a_document_names_exists(document):
    """A reader who follows a path finds the file; `--out` of a benchmark names a report without its suffix."""
    named = paths_in((ROOT / document).read_text("utf-8"))
    assert [path for path in named if not list(ROOT.glob(path)) and not (ROOT / f"{path}.md").is_file()] == []


def test_a_path_that_leads_nowhere_is_found():
    """Braces and stars are read as the shell reads them; a path at a commit is left to git."""
    text = "`training/reports/x{1,2}.json`, training/recipes/**/*.toml. `e2d316a:training/reports/y.json`"
    assert paths_in(text) == ["training/recipes/**/*.toml", "training/reports/x1.json", "training/reports/x2.json"]


@cache
def defined() -> dict[str, set[str]]:
    """Module, by each ending of its dotted name (`trainer.step`, `step`) -> what is defined in modules of that name."""
    found: dict[str, set[str]] = {}
    for path in paths("awnet/", "domain/", "server/", "training/", "export/"):
        if path.endswith(".py"):
            parts = path.removesuffix("/__init__.py").removesuffix(".py").split("/")
            names = set()
            for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    names.add(node.name)
                elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    names.add(node.id)
                elif isinstance(node, ast.ImportFrom) and path == "awnet/client/__init__.py":
                    # `awnet` has the names that its clients list.
                    found.setdefault("awnet", set()).update(alias.name for alias in node.names)
                elif isinstance(node, ast.Constant) and re.fullmatch(r"awnet(\.\w+)+", str(node.value)):
                    found.setdefault("awnet", set()).add(node.value.split(".")[1])  # of a logger, of a span's attribute
            for start in range(len(parts)):
                found.setdefault(".".join(parts[start:]), set()).update(names)
    return found


@cache
def recipe_defaults() -> dict[str, dict[str, object]]:
    """`training.trainer.recipe.DEFAULTS`, read without importing torch."""
    module = ast.parse((ROOT / "training/trainer/recipe.py").read_text("utf-8"))
    [value] = [
        node.value
        for node in module.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "DEFAULTS"
    ]
    return ast.literal_eval(value)


def chart_values() -> set[str]:
    """The dotted names of the Helm chart's values, tables included."""

    def under(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for name, value in table.items():
            yield prefix + name
            if isinstance(value, dict):
                yield from under(value, f"{prefix}{name}.")

    return set(under(yaml.safe_load((ROOT / "deploy/kubernetes/values.yaml").read_text("utf-8"))))


def unknown_names(text: str) -> list[str]:
    """Dotted names in backticks that begin with a module or a table of recipes, and lead nowhere."""
    defaults = recipe_defaults()
    wrong = []
    for name in sorted(set(re.findall(r"`([a-z_]+(?:\.[A-Za-z_]+)+)(?:\(\))?`", text))):
        parts = name.split(".")
        prefixes = [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
        module = next((prefix for prefix in prefixes if prefix in defined()), None)
        known = set(defined().get(module, ())) | set(defaults.get(parts[0], ()))
        options_of_a_kind = parts[0] in ("network", "init", "objective")  # a recipe's, checked where the kind is built
        if (module or parts[0] in defaults) and not options_of_a_kind and name not in defined():
            after = parts[len(module.split(".")) if module else 1]
            if after not in known and parts[-1] not in SUFFIXES and parts[0] not in LIBRARIES:
                wrong.append(name)
    return wrong


@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if path not in ("CHANGELOG.md", *TELL_OLD_NAMES)], ids=lambda path: path
)
def test_every_name_of_code_that_a_document_tells_exists(document):
    """A reader finds the function; a rename reaches the documents."""
    unknown = unknown_names((ROOT / document).read_text("utf-8"))
    if document == "docs/telemetry.md":
        unknown = [name for name in unknown if not re.fullmatch(SPAN_ATTRIBUTES, name)]
    if document == "docs/kubernetes.md":
        unknown = [name for name in unknown if name not in chart_values()]
    assert unknown == []


def test_a_name_that_leads_nowhere_is_found():
    """Modules, attributes and recipe keys; what is no name of ours is left alone."""
    right = (
        "`trainer.step.train_step` `core.verdict.judge` `attack.steps` `pyproject.toml` `torch.compile` `training.data`"
    )
    assert unknown_names(right) == []
    wrong = "`trainer.step.walk` `core.verdict.guess` `attack.stride` `service.Server.run()`"
    assert unknown_names(wrong) == ["attack.stride", "core.verdict.guess", "service.Server.run", "trainer.step.walk"]
    assert "telemetry.caSecret" in chart_values() and "telemetry.secret" not in chart_values()


def said_without_meaning(sources: dict[str, str], modules: set[str]) -> dict[str, list[str]]:
    """Module -> words and dotted names in backticks of its docstring that no code of its package has, nor a module."""
    trees = {path: ast.parse(source) for path, source in sources.items()}
    code = "\n".join(ast.unparse(ast.Module(tree.body[1:], [])) for tree in trees.values())
    known = {*re.findall(r"\w+", code), *modules, *NOT_CODE}
    found = {}
    for path, tree in trees.items():
        text = ast.get_docstring(tree) or ""
        words = set(re.findall(r"`([a-z_]+)(?:\(\))?`", text)) - known
        found[path] = sorted(words) + [name for name in unknown_names(text) if name not in code]
    return {path: wrong for path, wrong in found.items() if wrong}


@pytest.mark.parametrize("package", ["domain", "server", "training", "export"])
def test_every_name_that_a_module_is_introduced_with_exists(package):
    """The first lines of a module speak of what is there: a rename reaches them too."""
    modules = {part for name in defined() for part in name.split(".")}
    sources = {path: (ROOT / path).read_text("utf-8") for path in paths(f"{package}/") if path.endswith(".py")}
    assert said_without_meaning(sources, modules) == {}


def test_a_name_that_a_package_lacks_is_found():
    """A word, and a function of a module; not what a neighbour's code says."""
    first = '"""`opened` and `closed` by `step.train_step()`, not `step.walk()`."""'
    sources = {"a.py": first, "b.py": '"""B."""\nclosed = 1'}
    assert said_without_meaning(sources, {"step"}) == {"a.py": ["opened", "step.walk"]}

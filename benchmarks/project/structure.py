"""The drawing of a checkout: rooms, imports, floors, circles, lines of code; and how many functions an answer passes.

A room is a folder with modules. An arrow is an import, a lazy one or one for types too: from module to module, or, once
for all of them, from room to room; there the modules on top of a package stand for themselves, as in its import rules.
Floors are the longest chain of arrows. An arrow runs up where it goes against a `layers` contract of the checkout's own
pyproject.toml. Calls are counted by `benchmarks.project.hops`.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..harness.report import ROOT, add_out, conclude, parser
from . import hops

EXAMPLES = """examples:
  python -m benchmarks.project.structure                          this checkout
  python -m benchmarks.project.structure --root DIR --out NAME    another one, for a comparison
"""
PACKAGES = ("server", "export", "training")
Arrows = set[tuple[str, str]]

# Run in the checkout, so that it is its packages that are found. grimp comes with import-linter; it only reads files.
_GRAPH = """
import json, sys
import grimp
graph = grimp.build_graph(*sys.argv[1:], cache_dir=None)
arrows = [(a, b) for a in graph.modules for b in graph.find_modules_directly_imported_by(a)]
print(json.dumps([sorted(graph.modules), sorted(arrows)]))
"""
_QUIET = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def structure(root: Path, packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Package -> its figures, for the checkout `root`."""
    names = [name for name in packages if (root / name).is_dir()]
    modules, arrows = imports(root, names)
    upward = against(arrows, layers(root))
    return {name: _package(root, name, modules, arrows, upward) for name in names}


def imports(root: Path, packages: Iterable[str]) -> tuple[list[str], Arrows]:
    """Every module, and every arrow from one to another."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", _GRAPH, *packages], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    modules, arrows = json.loads(done.stdout)
    return modules, {(a, b) for a, b in arrows}


def _package(root: Path, name: str, modules: Iterable[str], arrows: Arrows, upward: Arrows) -> dict[str, Any]:
    files = {module: _file(root, module) for module in modules if module.split(".")[0] == name}
    texts = {module: path.read_text("utf-8") for module, path in files.items()}
    lines = {module: code_lines(text) for module, text in texts.items()}
    # An __init__ that only says what its room is for is no module to find one's way among.
    real = [module for module, path in files.items() if path.name != "__init__.py" or lines[module]]
    room = {module: files[module].parent.relative_to(root).as_posix() for module in files}
    inside = {(a, b) for a, b in arrows if a in files and b in files}
    place = {module: module if room[module] == name else room[module] for module in files}
    between = {(place[a], place[b]) for a, b in inside if place[a] != place[b]}
    rooms = Counter(room[module] for module in real)
    importers = Counter(b for _, b in inside)
    return {
        "modules": len(real),
        "rooms": dict(sorted(rooms.items())),
        "module_arrows": len(inside),
        "module_floors": floors(files, inside),
        "module_circles": circles(files, inside),
        "room_arrows": len(between),
        "room_floors": floors(place.values(), between),
        "room_circles": circles(place.values(), between),
        "upward": sorted(f"{a} -> {b}" for a, b in upward if a in files),
        "one_importer": sorted(module for module in real if importers[module] == 1 and module != name),
        "lines": sum(len(text.splitlines()) for text in texts.values()),
        "code_lines": sum(lines.values()),
    }


def _file(root: Path, module: str) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def code_lines(text: str) -> int:
    """Lines of a module that hold code: no blank ones, comments or docstrings."""
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _QUIET:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                found.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(found)


def components(nodes: Iterable[str], arrows: Arrows) -> list[list[str]]:
    """Nodes that reach each other, together; each group after those that it points to (Tarjan 1972)."""
    after: dict[str, list[str]] = {node: [] for node in nodes}
    for a, b in sorted(arrows):
        after[a].append(b)
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        path.append(node)
        for other in after[node]:
            if other not in number:
                visit(other)
            if other in path:
                low[node] = min(low[node], low[other])
        if low[node] == number[node]:
            at = path.index(node)
            found.append(sorted(path[at:]))
            del path[at:]

    for node in sorted(after):
        if node not in number:
            visit(node)
    return found


def circles(nodes: Iterable[str], arrows: Arrows) -> list[list[str]]:
    """Groups of more than one node that reach each other."""
    return [group for group in components(nodes, arrows) if len(group) > 1]


def floors(nodes: Iterable[str], arrows: Arrows) -> int:
    """The longest chain of arrows, counted in nodes; a circle is one node."""
    height: dict[str, int] = {}
    for group in components(nodes, arrows):
        below = [height[b] for a, b in arrows if a in group and b not in group]
        height.update(dict.fromkeys(group, 1 + max(below, default=0)))
    return max(height.values(), default=0)


def layers(root: Path) -> list[list[list[str]]]:
    """The `layers` contracts of the checkout: floors from the top down, each the full names of its modules or rooms."""
    path = root / "pyproject.toml"
    contracts = tomllib.loads(path.read_text("utf-8")) if path.exists() else {}
    found = []
    for contract in contracts.get("tool", {}).get("importlinter", {}).get("contracts", []):
        if contract["type"] == "layers":
            for container in contract.get("containers", [""]):
                prefix = f"{container}." if container else ""
                names = [line.replace("(", "").replace(")", "").replace(":", "|") for line in contract["layers"]]
                found.append([[prefix + name.strip() for name in line.split("|")] for line in names])
    return found


def against(arrows: Arrows, contracts: Iterable[list[list[str]]]) -> Arrows:
    """The arrows that run from a lower floor of a contract to a higher one."""

    def floor(module: str, contract: list[list[str]]) -> int | None:
        for place, names in enumerate(contract):
            if any(module == name or module.startswith(f"{name}.") for name in names):
                return place
        return None

    found: Arrows = set()
    for contract in contracts:
        for a, b in arrows:
            here, there = floor(a, contract), floor(b, contract)
            if here is not None and there is not None and there < here:
                found.add((a, b))
    return found


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    packages: Mapping[str, Mapping[str, Any]] = report["packages"]
    yield f"# Structure at commit {report['commit']}\n"
    yield "Made by `python -m benchmarks.project.structure`, which says what is counted.\n"
    yield f"| | {' | '.join(f'`{name}/`' for name in packages)} |\n|---|{'---|' * len(packages)}"
    rows = {
        "modules": lambda p: p["modules"],
        "rooms": lambda p: len(p["rooms"]),
        "most modules side by side": lambda p: max(p["rooms"].values()),
        "arrows between modules": lambda p: p["module_arrows"],
        "floors of modules": lambda p: p["module_floors"],
        "circles of modules": lambda p: len(p["module_circles"]),
        "modules with one importer": lambda p: len(p["one_importer"]),
        "arrows between rooms and modules on top": lambda p: p["room_arrows"],
        "floors of these": lambda p: p["room_floors"],
        "circles of these": lambda p: len(p["room_circles"]),
        "arrows that run up": lambda p: len(p["upward"]),
        "lines": lambda p: f"{p['lines']:,}",
        "lines of code": lambda p: f"{p['code_lines']:,}",
    }
    for title, figure in rows.items():
        yield f"| {title} | {' | '.join(str(figure(package)) for package in packages.values())} |"
    for name, package in packages.items():
        rooms = ", ".join(f"`{room}` {count}" for room, count in package["rooms"].items())
        yield f"\nModules of `{name}/` by room: {rooms}."
        for group in sorted({*map(tuple, package["room_circles"]), *map(tuple, package["module_circles"])}):
            yield f"Circle: {', '.join(f'`{member}`' for member in group)}."
        for arrow in package["upward"]:
            yield f"Runs up: `{arrow}`."
    if report.get("hops"):
        yield "\n| passes | functions of ours | modules | handovers from module to module |\n|---|---|---|---|"
        for title, passed in report["hops"].items():
            yield f"| {title} | {len(passed['functions'])} | {len(passed['modules'])} | {len(passed['handovers'])} |"


def commit(root: Path) -> str:
    """The commit of a checkout, with a mark where files differ from it; 'none' outside of git."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"], cwd=root, capture_output=True, text=True
    )
    return done.stdout.strip() or "none"


def main(arguments: list[str] | None = None) -> int:
    command_line = parser("project.structure", __doc__, EXAMPLES)
    command_line.add_argument("--root", type=Path, default=ROOT, help="the checkout to draw")
    command_line.add_argument("--hops", action=argparse.BooleanOptionalAction, default=True, help="count calls as well")
    add_out(command_line, "structure")
    options = command_line.parse_args(arguments)
    root = options.root.resolve()
    report: dict[str, Any] = {"commit": commit(root), "packages": structure(root)}
    if options.hops:
        report["hops"] = hops.counted(root)
    conclude(options.out, report, markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())

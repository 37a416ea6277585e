"""Lists the measurements, room by room: `python -m benchmarks`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
HARNESS = HERE / "harness"  # its programs are run by measurements alone


def programs() -> Iterator[tuple[str, str]]:
    """Modules with a `main`: what `python -m` takes, and the first line of what each says of itself."""
    for path in sorted(HERE.glob("*/*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        if path.parent != HARNESS and any(
            isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body
        ):
            name = f"{HERE.name}.{path.parent.name}.{path.stem}".removesuffix(".__main__")
            yield name, _first_line(tree)


def main() -> None:
    listed = ""
    for name, about in programs():
        room = name.split(".")[1]
        if room != listed:
            print(f"\n{room}/  {_first_line(ast.parse((HERE / room / '__init__.py').read_text('utf-8')))}")
            listed = room
        print(f"  python -m {name:39} {about}")


def _first_line(module: ast.Module) -> str:
    return (ast.get_docstring(module) or "").partition("\n")[0]


if __name__ == "__main__":
    main()

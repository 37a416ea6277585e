"""Names that go on working for one release: where they lead, and the line that says so (docs/renames.md lists them)."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# Old command -> the commands that do its work now, one after the other.
COMMANDS: dict[str, tuple[str, ...]] = {
    "training.tables": ("training.reproduction.sweep",),
    "training.figures": ("training.reproduction.figures",),
    "training.evaluate --table": ("training.reproduction.tables",),
    "training.evaluate --table all": ("training.reproduction.tables", "training.reproduction.claims"),
}


def run_renamed(old: str, *arguments: Sequence[str]) -> int:
    """Run what an old command is now, with the arguments of each; returns the first status that is not 0.

    Modules are found by name: the room in which an old name stands need not know the one that its work moved to.
    """
    modules = COMMANDS[old]
    now = " and ".join(f"python -m {module}" for module in modules)
    print(f"warning: python -m {old} goes with the next release: it is {now} now", file=sys.stderr)
    for module, own in zip(modules, arguments, strict=True):
        _, _, below = module.partition(".")
        status: int = importlib.import_module(f".{below}", __package__).main(own)
        if status:
            return status
    return 0


def run_table(arguments: Sequence[str]) -> int:
    """`python -m training.evaluate --table N`: where N was `all`, it wrote the ledger too."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--table", nargs="?")
    parser.add_argument("--page", nargs="?")
    found, rest = parser.parse_known_args(arguments)
    table = ["--table", found.table] if found.table else ["--table"]
    if found.table != "all":
        return run_renamed("training.evaluate --table", [*table, *rest])
    page = ["--page", found.page] if found.page else []
    return run_renamed("training.evaluate --table all", [*table, *rest], [*rest, *page])

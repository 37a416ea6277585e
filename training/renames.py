"""Old names and the new ones that they stand for; docs/renames.md lists them.

What users type (commands, options, recipes) goes on working for one release, with one warning a name. What stands in
files that are kept (checkpoints, records of runs, reports) is read for good, and without a warning.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

# Old command -> the commands that do its work now, one after the other.
COMMANDS: dict[str, tuple[str, ...]] = {
    "training.tables": ("training.reproduction.sweep",),
    "training.figures": ("training.reproduction.figures",),
    "training.evaluate --table": ("training.reproduction.tables",),
    "training.evaluate --table all": ("training.reproduction.tables", "training.reproduction.claims"),
}

# Command -> its old options -> the new ones.
OPTIONS: dict[str, dict[str, str]] = {"training.evaluate": {"--no-honest": "--no-corruptions"}}

# Recipe key -> its new name, each as table.key.
RECIPE_KEYS: dict[str, str] = {
    "attack.forced": "attack.adv_branch_share",
    "attack.through": "attack.adv_branch_sees_detector",
    "attack.detached": "attack.detector_ignored_share",
    "attack.evading": "attack.evading_share",
    "attack.radii": "attack.evading_radii",
    "attack.spread": "attack.noise_magnitude",
    "objective.clean": "objective.clean_weight",
    "objective.nat_images": "objective.nat_batch_share",
    "objective.nat_share": "objective.nat_perturbed_share",
    "objective.noise": "objective.sign_noise_share",
    "objective.together": "objective.one_batch",
    "optim.accumulate": "optim.microbatches",
}

# Recipe key -> its old values -> the new ones; of a list, each item.
RECIPE_VALUES: dict[str, dict[str, str]] = {
    "optim.schedule": {"onecycle": "triangular"},
    "objective.attackers": {"detached": "detector_ignored"},
}

# Read for good: keys of "run" in last.pt, and first words of the names of a report's parts.
CHECKPOINT_KEYS: dict[str, str] = {
    "averaged": "ema_network",
    "best_figure": "best_score",
    "done": "steps_done",
    "sums": "loss_sums",
}
REPORT_PARTS: dict[str, str] = {"honest": "corruptions"}


@cache  # once in a process, however many recipes use the name
def warn_renamed(old: str, new: str) -> None:
    """One line on stderr: `old` is deprecated for `new`."""
    print(f"warning: {old} goes with the next release: it is {new} now", file=sys.stderr)


def rename_recipe(
    recipe: Mapping[str, Any], warn: Callable[[str, str], None] = lambda old, new: None
) -> dict[str, Any]:
    """A recipe's tables under the new names of keys and values; `warn` is called with each (old, new) met.

    Raises:
        ValueError: one key stands there under both its names.
    """
    tables = {table: dict(keys) if isinstance(keys, Mapping) else keys for table, keys in recipe.items()}
    for old, new in RECIPE_KEYS.items():
        (table, key), (_, now) = old.split("."), new.split(".")
        keys = tables.get(table)
        if not isinstance(keys, dict) or key not in keys:
            continue
        if now in keys:
            raise ValueError(f"{old} is the old name of {new}: state one of them")
        warn(old, new)
        tables[table] = {now if k == key else k: v for k, v in keys.items()}
    for name, values in RECIPE_VALUES.items():
        table, key = name.split(".")
        keys = tables.get(table)
        if isinstance(keys, dict) and key in keys:
            stated = keys[key]
            for value in stated if isinstance(stated, list) else [stated]:
                if isinstance(value, str) and value in values:
                    warn(f'{name} = "{value}"', f'"{values[value]}"')
            if isinstance(stated, list):
                keys[key] = [values.get(v, v) if isinstance(v, str) else v for v in stated]
            elif isinstance(stated, str):
                keys[key] = values.get(stated, stated)
    return tables


def rename_parts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a report under their new names."""
    renamed = {}
    for name, part in parts.items():
        first, slash, rest = name.partition("/")
        renamed[REPORT_PARTS.get(first, first) + slash + rest] = part
    return renamed


class RenamedOption(argparse.Action):
    """A flag under its old name: sets what the new one sets, and warns; not in --help.

    argparse refuses both in a group that excludes them from each other.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, new: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        self.new = new

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        warn_renamed(str(option_string), self.new)
        setattr(namespace, self.dest, True)


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

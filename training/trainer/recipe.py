"""Recipes: TOML over another recipe's or over the defaults.

A recipe is read here and nowhere else, and strictly: a table or key that does not exist is a `RecipeError` that names
it. Every key has its default in `DEFAULTS`; those of [network], [init] and [objective] belong to what is built from
them (`build`).

A recipe that `extends = "FILE"` another one states only what differs. Its tables are laid over the other's key by key,
but for [init] and [objective], whose keys belong together: stated at all, they are taken as they stand.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import SETS
from ..renames import rename_recipe, warn_renamed

RECIPES = Path(__file__).parents[1] / "recipes"
WHOLE = ("init", "objective")  # tables that a recipe takes whole, or leaves as they are

DEFAULTS: dict[str, dict[str, Any]] = {
    "network": {"kind": "awnet", "freeze": []},
    "init": {},
    "objective": {"name": "pgd_at"},
    "attack": {
        "eps": 8.0,
        "step": 2.0,
        "steps": 10,
        "start": "normal",
        "adv_branch_share": 0.0,
        "adv_branch_sees_detector": False,
        "evading_share": 0.0,
        "evading_radii": [0.25, 0.5, 1.0],
        "detector_ignored_share": 0.0,
        "noise_magnitude": 2.0,
    },
    "optim": {
        "epochs": 10,
        "batch_size": 128,
        "microbatches": 1,
        "optimizer": "sgd",
        "lr": 0.1,
        "regulator_lr": 0.01,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "schedule": "triangular",
        "warmup": 0.2,
        "milestones": [],
        "ema": 0.0,
        "awp": 0.0,
        "awp_from": 0,
    },
    "data": {"set": "cifar10", "seed": 0, "train_images": 0, "padding": 4},
    "validate": {"images": 2_000, "attack_steps": 10, "every": 1},
    "runtime": {
        "bf16": False,
        "compile": False,
        "threads": 0,
        "sync_batch_norm": False,
        "data_on_device": True,
        "checkpoint_minutes": 10.0,
    },
}


class RecipeError(ValueError):
    """The recipe asks for something that does not exist; the message names the key."""


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The recipe, over what it extends, over the defaults, with `table.key=value` overrides (values in TOML) on top.

    Raises:
        FileNotFoundError: no recipe there.
        RecipeError: no TOML, an unknown table or key, an override that is none, a recipe to extend that does not exist,
            or recipes that extend each other in a circle.
    """
    given, more = _stated(path, ()), dict[str, dict[str, Any]]()
    for override in overrides:
        key, sign, value = override.partition("=")
        table, dot, name = key.partition(".")
        if not (sign and dot):
            raise RecipeError(f"--set needs table.key=value, not {override!r}")
        stated = more.setdefault(table, {})
        try:
            stated[name] = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            stated[name] = value
    for table, values in _checked(more, "--set").items():
        given[table] = {**given.get(table, {}), **values}
    recipe = {table: {**values, **given.get(table, {})} for table, values in DEFAULTS.items()}
    if recipe["data"]["set"] not in SETS:
        raise RecipeError(f"data.set must be one of {', '.join(SETS)}, not {recipe['data']['set']!r}")
    return recipe


def _stated(path: Path, below: tuple[Path, ...]) -> dict[str, dict[str, Any]]:
    """What a recipe and those that it extends say, without defaults; `below` are those that extend it."""
    if path.resolve() in below:
        circle = " > ".join(p.name for p in (*below[below.index(path.resolve()) :], path))
        raise RecipeError(f"recipes extend each other in a circle: {circle}")
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: {error}") from error
    document.pop("about", None)
    parent = document.pop("extends", None)
    document = _checked(document, str(path))
    if parent is None:
        return document
    stated = _stated(_extended(path, parent), (*below, path.resolve()))
    return stated | {t: v if t in WHOLE else {**stated.get(t, {}), **v} for t, v in document.items()}


def _extended(path: Path, parent: object) -> Path:
    """The file that `path` extends: beside it, or in training/recipes."""
    if not isinstance(parent, str):
        raise RecipeError(f"{path}: extends is the path of one recipe in quotes, not {parent!r}")
    places = (path.parent / parent, RECIPES / parent)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise RecipeError(f"{path} extends {parent!r}, which is neither {places[0]} nor {places[1]}")
    return found


def _checked(document: Mapping[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """The tables under today's names; RecipeError for one or a key that does not exist. `source`: where it stands."""
    try:
        document = rename_recipe(document, warn_renamed)
    except ValueError as error:
        raise RecipeError(f"{source}: {error}") from error
    for table, values in document.items():
        if table not in DEFAULTS:
            raise RecipeError(f"{source}: unknown table {table}; known are {', '.join(DEFAULTS)}")
        if not isinstance(values, dict):
            raise RecipeError(f"{source}: {table} is a table, not {values!r}")
        unknown = sorted(values.keys() - DEFAULTS[table].keys())
        if unknown and table not in ("network", *WHOLE):
            raise RecipeError(f"{source}: unknown key {table}.{unknown[0]}; known are {', '.join(DEFAULTS[table])}")
    return dict(document)

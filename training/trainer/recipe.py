"""Recipes: TOML over another recipe's or over the defaults.

A recipe is read here and nowhere else, and strictly: a table or key that does not exist, or a value that its key cannot
have, is a `RecipeError` that names it. Every key has its default in `DEFAULTS`, whose type its values have, and its
range in `RANGES`; other keys of [network], [init] and [objective] belong to what is built from them, which has their
defaults (`build`).

A recipe that `extends = "FILE"` another one states only what differs. Its tables are laid over the other's key by key,
but for [init] and [objective], whose keys belong together: stated at all, they are taken as they stand.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..data.sets import SETS
from ..renames import rename_recipe, warn_renamed

RECIPES = Path(__file__).parents[1] / "recipes"
DEEPEST = 20  # recipes that may extend one another in a row
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
    "data": {
        "set": "cifar10",
        "size": 32,
        "held_out": 0.15,
        "seed": 0,
        "train_images": 0,
        "padding": 4,
    },
    "validate": {"images": 2_000, "attack_steps": 10, "every": 1},
    "runtime": {
        "bf16": False,
        "compile": False,
        "cuda_graphs": False,
        "threads": 0,
        "sync_batch_norm": False,
        "data_on_device": True,
        "checkpoint_minutes": 10.0,
    },
}


class RecipeError(ValueError):
    """The recipe asks for something that does not exist; the message names the key."""


Range = tuple[str, Callable[[Any], bool]]  # in words, and whether a value of the right type lies in it
POSITIVE: Range = ("at least 1", lambda v: v >= 1)
NOT_NEGATIVE: Range = ("at least 0", lambda v: 0 <= v < math.inf)
SHARE: Range = ("from 0 to 1", lambda v: 0 <= v <= 1)
PIXELS: Range = ("above 0 and at most 255", lambda v: 0 < v <= 255)
ANY: Range = ("", lambda v: not isinstance(v, float) or math.isfinite(v))  # names are known to what builds by them
TYPES: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("a text", (str,)),
}

# What the values of a key may be, and the items of a list; types are those of the defaults, of lists those of ITEMS.
ITEMS: dict[str, type] = {
    "network.freeze": str,
    "attack.evading_radii": float,
    "objective.surrogates": str,
    "optim.milestones": int,
}
RANGES: dict[str, Range] = {
    "network.kind": ANY,
    "network.freeze": ANY,
    "objective.name": ANY,
    "objective.label_smoothing": SHARE,
    "objective.nat_weight": SHARE,
    "objective.clean_weight": SHARE,
    "objective.adv_weight": SHARE,
    "objective.signals_weight": NOT_NEGATIVE,
    "objective.distil": SHARE,
    "objective.mixture_weight": NOT_NEGATIVE,
    "attack.eps": PIXELS,
    "attack.step": PIXELS,
    "attack.steps": POSITIVE,
    "attack.start": ANY,
    "attack.adv_branch_share": SHARE,
    "attack.adv_branch_sees_detector": ANY,
    "attack.evading_share": SHARE,
    "attack.evading_radii": SHARE,
    "attack.detector_ignored_share": SHARE,
    "attack.noise_magnitude": NOT_NEGATIVE,
    "optim.epochs": POSITIVE,
    "optim.batch_size": POSITIVE,
    "optim.microbatches": POSITIVE,
    "optim.optimizer": ANY,
    "optim.lr": NOT_NEGATIVE,
    "optim.regulator_lr": NOT_NEGATIVE,
    "optim.momentum": SHARE,
    "optim.nesterov": ANY,
    "optim.weight_decay": NOT_NEGATIVE,
    "optim.schedule": ANY,
    "optim.warmup": SHARE,
    "optim.milestones": NOT_NEGATIVE,
    "optim.ema": ("at least 0 and below 1", lambda v: 0 <= v < 1),
    "optim.awp": NOT_NEGATIVE,
    "optim.awp_from": NOT_NEGATIVE,
    "data.set": (f"one of {', '.join(SETS)}", lambda v: v in SETS),
    "data.size": ("from 8 to 1024", lambda v: 8 <= v <= 1024),
    "data.held_out": ("above 0 and below 0.5", lambda v: 0 < v < 0.5),
    "data.seed": ("from 0 to 2147483647", lambda v: 0 <= v < 2**31),
    "data.train_images": NOT_NEGATIVE,
    "data.padding": NOT_NEGATIVE,
    "validate.images": POSITIVE,
    "validate.attack_steps": NOT_NEGATIVE,
    "validate.every": POSITIVE,
    "runtime.bf16": ANY,
    "runtime.compile": ANY,
    "runtime.cuda_graphs": ANY,
    "runtime.threads": NOT_NEGATIVE,
    "runtime.sync_batch_norm": ANY,
    "runtime.data_on_device": ANY,
    "runtime.checkpoint_minutes": NOT_NEGATIVE,
}


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The recipe, over what it extends, over the defaults, with `table.key=value` overrides (values in TOML) on top.

    Raises:
        FileNotFoundError: no recipe there.
        RecipeError: no TOML, an unknown table or key, a value of another type or out of its range, an override that is
            none, a recipe to extend that does not exist, or recipes that extend each other in a circle.
    """
    given, more = _stated(_named(path), ()), dict[str, dict[str, Any]]()
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
    return {table: {**values, **given.get(table, {})} for table, values in DEFAULTS.items()}


def _named(path: Path) -> Path:
    """The file at `path`, or the one of training/recipes that is called so, with or without its .toml."""
    places = (path, RECIPES / path, RECIPES / f"{path}.toml")
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        known = [str(p.relative_to(RECIPES).with_suffix("")) for p in RECIPES.rglob("*.toml")]
        raise FileNotFoundError(f"no recipe at {path}{nearest(str(path), known)}")
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """What may have been meant, for the end of an error message; nothing where no name is near."""
    found = get_close_matches(name, list(known), 1)
    return f"; is {found[0]} meant?" if found else ""


def _stated(path: Path, below: tuple[Path, ...]) -> dict[str, dict[str, Any]]:
    """What a recipe and those that it extends say, without defaults; `below` are those that extend it."""
    if path.resolve() in below:
        circle = " > ".join(p.name for p in (*below[below.index(path.resolve()) :], path))
        raise RecipeError(f"recipes extend each other in a circle: {circle}")
    if len(below) == DEEPEST:
        raise RecipeError(f"{path}: more than {DEEPEST} recipes extend one another")
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:  # no TOML, or not even UTF-8
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
    """The tables under today's names; RecipeError for a table, key or value that cannot be there, with its `source`."""
    try:
        document = rename_recipe(document, warn_renamed)
    except ValueError as error:
        raise RecipeError(f"{source}: {error}") from error
    for table, values in document.items():
        if table not in DEFAULTS:
            raise RecipeError(
                f"{source}: unknown table {table}; known are {', '.join(DEFAULTS)}{nearest(table, DEFAULTS)}"
            )
        if not isinstance(values, dict):
            raise RecipeError(f"{source}: {table} is a table, not {values!r}")
        unknown = sorted(values.keys() - DEFAULTS[table].keys())
        if unknown and table not in ("network", *WHOLE):
            known = DEFAULTS[table]
            raise RecipeError(
                f"{source}: unknown key {table}.{unknown[0]}; known are {', '.join(known)}{nearest(unknown[0], known)}"
            )
        for key, value in values.items():
            if table == "init" and not isinstance(value, str):
                raise RecipeError(f"{source}: init.{key} must be the path of a checkpoint in quotes, not {value!r}")
            if key in DEFAULTS[table]:
                try:
                    check_value(f"{table}.{key}", value, DEFAULTS[table][key])
                except RecipeError as error:
                    raise RecipeError(f"{source}: {error}") from None
    return dict(document)


def check_value(key: str, value: Any, default: Any) -> None:
    """RecipeError where a value has not the type of its key's default, or is out of its key's range."""
    listed = isinstance(default, (list, tuple))
    item_type = (ITEMS.get(key) or type(default[0])) if listed else type(default)
    name, types = TYPES[item_type]
    text, within = RANGES.get(key, SHARE if key.endswith("_share") else ANY)
    items = value if listed else [value]
    if not isinstance(items, (list, tuple)) or not all(
        isinstance(item, types) and isinstance(item, bool) == (bool in types) and within(item) for item in items
    ):
        wanted = text if text.startswith("one of") else f"{name}{text and ', '}{text}"
        raise RecipeError(f"{key} must be {'a list, each item ' if listed else ''}{wanted}, not {value!r}")

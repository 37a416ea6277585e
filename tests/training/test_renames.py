"""Old names in recipes, options and files: they mean what they meant, warn where users type them, are documented."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from training.evaluate import arguments, part_seed
from training.evaluation.report import Report
from training.renames import (
    CHECKPOINT_KEYS,
    OPTIONS,
    RECIPE_KEYS,
    RECIPE_VALUES,
    REPORT_PARTS,
    rename_recipe,
    warn_renamed,
)
from training.trainer.build import OBJECTIVES
from training.trainer.recipe import DEFAULTS, RecipeError, read_recipe

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).with_name("kept") / "recipes"


@pytest.fixture(autouse=True)
def nothing_was_said_yet() -> None:
    """A name is warned of once in a process, and this process runs many tests."""
    warn_renamed.cache_clear()


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("old", RECIPE_KEYS)
def test_an_old_key_sets_the_new_one_and_says_so_once(
    old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a recipe and in --set, which goes over it under either name."""
    (table, key), (_, new) = old.split("."), RECIPE_KEYS[old].split(".")
    values = {bool: (True, False, True), int: (2, 3, 4), list: ([0.125], [0.25], [0.5])}
    one, two, three = values.get(type(DEFAULTS[table].get(new)), (0.125, 0.25, 0.5))
    path = written(tmp_path, f"[{table}]\n{key} = {json.dumps(one)}\n")
    assert read_recipe(path)[table][new] == one
    assert read_recipe(path, [f"{old}={json.dumps(two)}"])[table][new] == two
    assert read_recipe(path, [f"{RECIPE_KEYS[old]}={json.dumps(three)}"])[table][new] == three
    assert key not in read_recipe(path)[table]
    assert said(capsys) == [f"warning: {old} goes with the next release: it is {RECIPE_KEYS[old]} now"]


@pytest.mark.parametrize(("key", "old"), [(key, old) for key, values in RECIPE_VALUES.items() for old in values])
def test_an_old_value_is_the_new_one_and_says_so_once(
    key: str, old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By itself and in a list."""
    (table, name), new = key.split("."), RECIPE_VALUES[key][old]
    path = written(tmp_path, f"[{table}]\n{name} = '{old}'\n")
    assert read_recipe(path)[table][name] == new
    assert rename_recipe({table: {name: [old, "other", new]}})[table][name] == [new, "other", new]
    assert read_recipe(path, [f"{key}={old}"])[table][name] == new
    assert said(capsys) == [f'warning: {key} = "{old}" goes with the next release: it is "{new}" now']


@pytest.mark.parametrize("old", RECIPE_KEYS)
def test_both_names_of_one_key_are_an_error_that_names_both(old: str, tmp_path: Path) -> None:
    (table, key), (_, new) = old.split("."), RECIPE_KEYS[old].split(".")
    path = written(tmp_path, f"[{table}]\n{key} = 1\n{new} = 1\n")
    both = rf"{re.escape(old)} is the old name of {re.escape(RECIPE_KEYS[old])}: state one of them"
    with pytest.raises(RecipeError, match=rf"recipe\.toml: {both}"):
        read_recipe(path)
    with pytest.raises(RecipeError, match=f"--set: {both}"):
        read_recipe(written(tmp_path, ""), [f"{old}=1", f"{RECIPE_KEYS[old]}=1"])


def test_a_recipe_under_old_names_extends_and_is_extended(tmp_path: Path) -> None:
    """Names are new before tables are laid over each other."""
    (tmp_path / "parent.toml").write_text("[attack]\nforced = 0.5\nevading_share = 0.25\n")
    path = written(tmp_path, "extends = 'parent.toml'\n[attack]\nadv_branch_share = 0.75\nevading = 0.125\n")
    attack = read_recipe(path)["attack"]
    assert (attack["adv_branch_share"], attack["evading_share"]) == (0.75, 0.125)


def test_the_recipes_of_e2d316a_say_each_old_name_once(capsys: pytest.CaptureFixture[str]) -> None:
    """They state every key that there was; none is left under its old name."""
    for path in sorted(KEPT.glob("*.toml")):
        recipe = read_recipe(path)
        assert (
            recipe["attack"].keys() == DEFAULTS["attack"].keys() and recipe["optim"].keys() == DEFAULTS["optim"].keys()
        )
        assert recipe["objective"]["name"] in OBJECTIVES
    old = [*RECIPE_KEYS, 'optim.schedule = "onecycle"']
    warnings = said(capsys)
    assert sorted(line.removeprefix("warning: ").partition(" goes")[0] for line in warnings) == sorted(old)


def test_an_old_option_sets_the_new_one_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Both are an error; --help knows the new one alone."""
    needed = ["--ckpt", "c.pt", "--data-dir", "d", "--out", "o.json"]
    assert not arguments().parse_args(needed).no_corruptions
    for old, new in OPTIONS["training.evaluate"].items():
        assert arguments().parse_args([*needed, old]) == arguments().parse_args([*needed, new])
        assert said(capsys) == [f"warning: {old} goes with the next release: it is {new} now"]
        with pytest.raises(SystemExit):
            arguments().parse_args([*needed, old, new])
        assert "not allowed with" in said(capsys)[-1]
        assert old not in arguments().format_help() and new in arguments().format_help()


def test_a_report_under_old_names_goes_on(tmp_path: Path) -> None:
    """Its parts are known under the new names, draw the same random numbers, and none is measured twice."""
    part = {"images": 4, "accuracy": 0.5, "seconds": 1.0}
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"setup": {}, "parts": {"clean": part, "honest/jpeg_75": part}, "checks": []}))
    assert Report(path, {}).parts == {"clean": part, "corruptions/jpeg_75": part}
    assert part_seed("corruptions/jpeg_75") == part_seed("honest/jpeg_75") != part_seed("corruptions/jpeg_90")


def listed(section: str, columns: int) -> list[tuple[str, ...]]:
    """The rows of a section of docs/renames.md, without backticks."""
    _, _, text = (ROOT / "docs/renames.md").read_text("utf-8").partition(f"\n## {section}\n")
    rows = [line.strip("| ").split(" | ") for line in text.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    assert rows and all(len(row) == columns for row in rows), section
    return [tuple(cell.replace("`", "") for cell in row) for row in rows]


def test_the_document_lists_exactly_the_old_names_of_training() -> None:
    """Options, keys and values of recipes; what stands in files."""
    options: list[Any] = [(f"python -m {c}", old, new) for c, names in OPTIONS.items() for old, new in names.items()]
    assert listed("Options of commands", 3) == options
    assert listed("Keys of recipes", 2) == list(RECIPE_KEYS.items())
    values = [(key, old, new) for key, names in RECIPE_VALUES.items() for old, new in names.items()]
    assert listed("Values in recipes", 3) == values
    text = (ROOT / "docs/renames.md").read_text("utf-8").partition("\n## Files of training\n")[2].partition("\n## ")[0]
    for old, new in CHECKPOINT_KEYS.items():
        assert f"| `last.pt`, in `run` | `{old}` | `{new}` |\n" in text
    for old, new in REPORT_PARTS.items():
        assert f"| reports, in `parts` | `{old}/...` | `{new}/...` |\n" in text
    assert len(re.findall(r"^\| (last|reports|`last)", text, re.MULTILINE)) == len(CHECKPOINT_KEYS) + len(REPORT_PARTS)

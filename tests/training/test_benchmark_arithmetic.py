"""The benchmark of float32 against bfloat16 measures the bundled model's recipes, and says what a training would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.model import arithmetic
from training.trainer.recipe import read_recipe


def test_a_stage_is_measured_in_both_kinds_of_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of each is not counted; without patience it is the only one."""
    small = ["network.width=2", "optim.batch_size=2"]
    monkeypatch.setattr(arithmetic, "read_recipe", lambda path: read_recipe(path, small))
    for patience, counted in ((60.0, 2), (0.0, 1)):
        row = arithmetic.measure("small/a-detector", 2, patience)
        assert {name: len(seconds) for name, seconds in row["cpu_seconds"].items()} == {
            "float32": counted,
            "bfloat16": counted,
        }
        assert row["images"] == 2 * 20_480 and min(row["images_per_second"].values()) > 0


def test_the_table_has_the_minutes_of_the_arithmetic_that_a_training_gets() -> None:
    """Where the CPU has no bfloat16, those of float32."""
    row = {"stage": "small/0-trunk", "images": 60_000, "images_per_second": {"float32": 100.0, "bfloat16": 200.0}}
    cpus: list[dict[str, Any]] = [
        {"name": name, "environment": {}, "multiplies_bfloat16": has, "stages": [row, row]}
        for name, has in (("new", True), ("old", False))
    ]
    host = {"cpu": "a CPU", "torch": "2"}
    new, old = arithmetic.markdown({"command": "c", "date": "d", "machine": host, "rounds": 3, "cpus": cpus}).split(
        "## "
    )[1:]
    assert "| 100.0 | 200.0 | 5 |" in new and "| all | | | 10 |" in new
    assert "gets float32" in old and "| 100.0 | 200.0 | 10 |" in old and "| all | | | 20 |" in old


def test_the_stages_are_those_of_the_makefile() -> None:
    """And each has its recipe."""
    assert arithmetic.stages()[-1] == "small/d-robust"
    assert all((Path(arithmetic.ROOT) / f"training/recipes/{stage}.toml").is_file() for stage in arithmetic.stages())

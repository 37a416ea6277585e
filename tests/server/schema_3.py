"""Contracts of schema 3: those of schema 2 with modes, mixing and precision put in, and models that have the modes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.server.schema_2 import schema_2
from tests.server.tiny import publish

OUTPUT = {"auto": "logits", "robust": "logits_adv", "natural": "logits_nat"}
MODES = tuple(OUTPUT)
BOUNDED = {"kind": "bounded", "limit": 0.45, "temperature": 1.5}


def schema_3(
    *modes: str, mixing: dict[str, Any] | None = None, card: dict[str, Any] | None = None, points: int = 3
) -> Callable[[dict[str, Any]], None]:
    """Turns a contract of schema 1 into one with these modes, all where none is named; for `tiny.publish`."""

    def change(document: dict[str, Any]) -> None:
        schema_2(card=card, points=points)(document)
        document["schema_version"] = 3
        document["modes"] = {mode: {"output": OUTPUT[mode], "rates": {}} for mode in modes or MODES}
        document["mixing"] = copy.deepcopy(mixing or BOUNDED)
        document["precision"] = "float32"

    return change


def branches(*modes: str) -> list[str]:
    """The further outputs of a model with these modes, all where none is named; for `tiny.graph`."""
    return [OUTPUT[mode] for mode in modes or MODES if mode != "auto"]


def publish_modes(repository: Path, version: str, *modes: str, seed: int = 0, name: str = "awnet") -> Path:
    """Write the tiny model with these modes, all where none is named. Returns the repository."""
    return publish(repository, version, schema_3(*modes), name=name, seed=seed, branches=branches(*modes))

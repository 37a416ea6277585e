"""The paper's rows of AW-Net beside networks of its width: what full-width.toml names, with the reports behind them.

One training each, by other recipes than the paper's, so that no number of the paper is refuted or confirmed: a row
says what differs, and stands beside what the judges say whose verdict counts.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .results import KINDS, FinishedRun, binomial
from .tables import STRONG, head_of, percent, read_paper, row_of, shown

SPECIFICATION = Path(__file__).parent / "full-width.toml"
REPORTS = Path(__file__).parents[1] / "reports"


@dataclass(frozen=True)
class FullWidth:
    """A network of the paper's width.

    Attributes:
        reports: files of `training/reports/`, reports or audits; a part counts from the first that has it.
        rows: table of the paper -> the network of that table whose rows these are.
        differs: what this training has otherwise than the paper's.
    """

    name: str
    reports: list[str]
    rows: dict[str, str]
    differs: str

    def finished(self) -> FinishedRun:
        """The parts of all reports; those of an audit are its parts at 8/255."""
        parts: dict[str, Any] = {}
        for report in self.reports:
            found = json.loads((REPORTS / report).read_text())["parts"].items()
            parts = {name.removesuffix("@8"): part for name, part in found} | parts
        return FinishedRun(self.name, parts, {})


def read() -> list[FullWidth]:
    """The networks of the specification."""
    return [FullWidth(name, **entry) for name, entry in tomllib.loads(SPECIFICATION.read_text()).items()]


def full_width() -> list[dict[str, Any]]:
    """One row for each network, table and attack: the paper's numbers, ours with the interval of the test images, and
    the judges at full strength."""
    rows = []
    for network in read():
        run = network.finished()
        for number, name in network.rows.items():
            for attack, printed in read_paper()[number]["cifar10"].items():
                if name not in printed:
                    continue
                found = run.figures("T2", attack)
                images = part_of(run, attack).get("images", 0)
                rows.append(
                    {
                        "network": network.name,
                        "table": number,
                        "row": name,
                        "attack": attack,
                        "paper": dict(zip(KINDS, printed[name], strict=True)),
                        "ours": {
                            kind: figure(value, run.images if kind == "natural" else images)
                            for kind, value in (found or {}).items()
                        },
                        "images": images,
                        "strong": {judge: strong(run, judge) for judge in STRONG},
                        "differs": network.differs,
                    }
                )
    return rows


def part_of(run: FinishedRun, attack: str) -> Mapping[str, Any]:
    part: Mapping[str, Any] = run.parts.get(f"T2/{attack}", run.parts.get(attack, {}))
    return part


def figure(value: float, images: int) -> dict[str, float]:
    """A share in per cent with the 95 % interval of the test images."""
    half = binomial(value, images)
    return {"value": value, "low": max(0.0, value - half), "high": min(100.0, value + half)}


def strong(run: FinishedRun, attack: str) -> dict[str, float] | None:
    """What an attack at full strength leaves; None where it has not judged the network."""
    part = part_of(run, attack)
    if not part:
        return None
    return {"images": part["images"], **figure(100 * part["accuracy"], part["images"])}


def full_width_markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The section of the ledger."""
    lines = ["### At the paper's width", ""]
    lines += [
        "Networks of width 64, one training each, by recipes of our own. Attacks by their last iterate as the paper",
        "has them; the worst case and AutoAttack, whose verdict counts, are on fewer images. No verdict on the paper's",
        "numbers: what differs stands below.",
        "",
    ]
    lines += head_of(
        "network", "table", "row", "attack", "paper: nat / adv / W", "ours", "images", "worst case", "AutoAttack"
    )
    for row in rows:
        ours = row["ours"]
        lines.append(
            row_of(
                row["network"],
                row["table"],
                row["row"],
                row["attack"],
                " / ".join(percent(v) for v in row["paper"].values()),
                " / ".join(shown(ours[kind]) for kind in KINDS) if ours else "not tried",
                f"{row['images']:,}" if ours else "",
                *(f"{shown(s)}, {s['images']} images" if s else "" for s in row["strong"].values()),
            )
        )
    differs = {row["network"]: row["differs"] for row in rows}
    return [*lines, "", *(f"- `{name}`: {' '.join(said.split())}" for name, said in differs.items()), ""]

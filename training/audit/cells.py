"""What the report and the pages share: the rows that stand side by side for every subject, and their cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from . import measures

TITLES = {
    "": "this network",
    "static": "control: static network, never rejects",
    "max_softmax": "control: static network, rejects by its own confidence",
    "separate_detector": "control: static network beside a separate detector",
}


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def with_interval(share: float, images: int) -> str:
    """A share in per cent with its 95 % interval."""
    low, high = measures.interval(share, images)
    return f"{percent(share)} ({percent(low)}-{percent(high)})"


def right(level: str, part: Mapping[str, Any]) -> str:
    """The accuracy under an attack; T3 wants more than a wrong class, so there it would say nothing."""
    return "" if "T3" in level else with_interval(part["accuracy"], part["images"])


def levels(parts: Mapping[str, Any], subject: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(title, part) of what stands side by side for every subject: clean, T0, the worst case, AutoAttack, T3."""
    prefix = f"{subject}:" if subject else ""
    for name, part in parts.items():
        if not name.startswith(prefix) or ":" in name.removeprefix(prefix):
            continue
        what, _, eps = name.removeprefix(prefix).rpartition("@")
        if eps != "8" and name != f"{prefix}clean":
            continue
        if name == f"{prefix}clean":
            yield "nobody attacks", part
        elif what.startswith("T0/"):
            yield f"T0, {what.split('/')[1]}", part
        elif what == "black_box/square":
            yield "black box, Square (logits)", part
        elif what.endswith("/worst_case"):
            yield f"{what[:2]} alone, best iterate", part
        elif what == "worst_case":
            yield "**T1 and T2, worst case**", part
        elif what == "T2/autoattack":
            yield "T2, AutoAttack", part
        elif what == "T3":
            yield "**T3**, best of all evasions", part

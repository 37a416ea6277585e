"""The report of the audit: a JSON file of finished parts, and tables for people beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from domain.files import replace

FORMAT = 1
JUDGED = ("n", "accuracy", "flagged: suspicious", "flagged: adversarial", "outside the domains")


class ReportError(ValueError):
    """The report belongs to another audit, or cannot be written."""


class Report:
    """The report file: finished parts by name, kept across runs of the same set-up unless `fresh`.

    Args:
        path: of the JSON file; the tables go beside it.
        setup: what every part depends on.
        heading: what else stands at the top: command, thresholds of each domain, and what was left out and why.

    Raises:
        ReportError: the file belongs to another set-up (its differing keys are named), is no report, or cannot be made.
    """

    def __init__(self, path: Path, setup: dict[str, Any], heading: dict[str, Any], fresh: bool) -> None:
        self.path, self.setup, self.heading = path, setup, heading
        self.parts: dict[str, dict[str, Any]] = {}
        if path.suffix != ".json" or not path.parent.is_dir() or path.is_dir():
            raise ReportError(f"{path} must be a .json file in a folder that exists")
        if path.is_file() and not fresh:
            try:
                old = json.loads(path.read_text("utf-8"))
                old_setup, self.parts = old["setup"], old["parts"]
                if not all(isinstance(part, dict) for part in self.parts.values()):
                    raise TypeError
                differing = sorted(k for k in setup.keys() | old_setup.keys() if setup.get(k) != old_setup.get(k))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                raise ReportError(f"{path} is not a report of this program; choose another --out") from None
            if differing:
                differ = ", ".join(differing)
                raise ReportError(f"{path} was made with another set-up ({differ}): choose another --out, or --fresh")

    def put(self, name: str, part: dict[str, Any]) -> None:
        """Add a finished part and write both files, each atomically."""
        self.parts[name] = part
        self.write()

    def write(self) -> dict[str, Any]:
        """Both files as they stand; returns the document."""
        document = {"format": FORMAT, **self.heading, "setup": self.setup, "parts": self.parts}
        replace(self.path, (json.dumps(document, indent=1) + "\n").encode())
        replace(self.path.with_suffix(".md"), markdown(document).encode())
        return document


def markdown(document: dict[str, Any]) -> str:
    """The report as tables, a kind of part each."""
    setup, parts, skipped = document["setup"], document["parts"], document["skipped"]
    lines = [f"# {setup['model']}, judged by the file alone", "", f"    {document['command']}", ""]
    lines += [f"SHA-256 {setup['sha256']}, seed {setup['seed']}. Shares in per cent, with 95 % intervals.", ""]
    lines += [f"Left out: {kind} ({why})." for kind, why in skipped.items()] + [""] * bool(skipped)
    rows = [[name, *(f"{score:.6g}" for score in points.values())] for name, points in document["thresholds"].items()]
    lines += _table(["domain", "threshold: suspicious", "threshold: adversarial"], rows)
    if golden := parts.get("golden"):
        lines += [f"Golden values {'hold' if golden['holds'] else '**do not hold**'}.", ""]
        rows = [
            [k, "not finite" if difference is None else f"{difference:.2g}", f"{golden['tolerance'][k]:g}"]
            for k, difference in golden["differences"].items()
        ]
        lines += _table(["output", "largest difference", "tolerance"], rows)
    kinds: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, part in parts.items():
        kind, _, rest = name.partition("/")
        kinds.setdefault(kind, []).append((rest, part))
    rows = [["natural images", *_judged(part), ""] for _, part in kinds.get("natural", [])]
    for name, part in kinds.get("t0", []):
        rows += [[f"{name}, natural", *_judged(part["natural"]), ""]]
        rows += [[f"{name}, T0", *_judged(part), f"{part['auroc']:.4f}"]]
    lines += _table(["images", *JUDGED, "AUROC"], rows)
    rows = [
        [name, part["group"], strength, *_judged(judged)]
        for name, part in kinds.get("corruptions", [])
        for strength, judged in part["strengths"].items()
    ]
    lines += _table(["corruption", "group", "strength", *JUDGED], rows)
    rows = [
        [name, str(part["queries"]), _percent(part["reached"]), _number(part["median_queries"]), *_judged(part)]
        for name, part in kinds.get("square", [])
    ]
    lines += _table(["Square: aim / radius", "queries", "reached", "median queries", *JUDGED], rows)
    rows = [
        [
            name,
            str(part["queries"]),
            radius,
            _percent(reached),
            _number(part["median_linf"]),
            _number(part["median_l2"]),
        ]
        for name, part in kinds.get("boundary", [])
        for radius, reached in part["reached"].items()
    ]
    head = ["boundary attack: aim", "queries", "radius", "reached", "median distance", "median L2 (of [0,1])"]
    return "\n".join(lines + _table(head, rows)).rstrip() + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)] + [""] if rows else []


def _judged(part: dict[str, Any]) -> list[str]:
    """The cells of `JUDGED`."""
    flagged = part["flagged"]
    shares = [part.get("accuracy"), flagged["suspicious"], flagged["adversarial"], part["outside"]]  # None: not known
    return [str(part["images"]), *map(_percent, shares)]


def _percent(share: list[float] | None) -> str:
    return "" if share is None else "{:.1f} ({:.1f}-{:.1f})".format(*(100 * value for value in share))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"

"""The report of an evaluation: a JSON file of finished parts, the tables beside it, and figures over several parts.

Nothing here computes with a network. Parts are named `clean`, `zero_gradients`, `corruptions/<name>`,
`T0/<surrogate>/<attack>`, `T1/<attack>`, `T2/<attack>`, `worst_case` over both, `T3/<evasion>`; `T3` is the best case
over the last.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import files
from ..renames import rename_parts

FORMAT = 1
ONE_STEP = ("fgsm",)


def w_robust(natural: float, adversarial: float, gamma_nat: float = 0.5) -> float:
    """Weighted robust accuracy, Eq. 25; the paper weights both halves by 0.5."""
    return gamma_nat * natural + (1 - gamma_nat) * adversarial


def to_hex(bits: Tensor) -> str:
    """Bool [N] -> '1' and '0' packed into hexadecimal digits, the first image highest; see `from_hex`."""
    text = "".join("1" if b else "0" for b in bits.tolist())
    return f"{int(text, 2):0{math.ceil(len(text) / 4)}x}"


def from_hex(text: str, n: int) -> Tensor:
    """The bool [n] that `to_hex` packed."""
    return torch.tensor([c == "1" for c in f"{int(text, 16):0{n}b}"])


def best_case(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """T3 as a whole: an image is lost where any single evasion succeeded on it."""
    n = min(p["images"] for p in parts.values())
    out: dict[str, Any] = {"images": n, "attacks": sorted(parts), "sr_at": {}, "joint_at": {}}
    for fpr in next(iter(parts.values()))["success_bits"]:
        lost = torch.stack([from_hex(p["success_bits"][fpr], p["images"])[:n] for p in parts.values()]).any(0)
        out["sr_at"][fpr] = float(lost.double().mean())
        out["joint_at"][fpr] = 1 - out["sr_at"][fpr]
    return out


def masking_checks(parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Signs of masked gradients among finished parts: {check, holds, detail}. A failed one needs an explanation.

    Two shares may differ by two standard errors against the expected order before that counts.
    """
    out: list[dict[str, Any]] = []

    def at_most(check: str, low: tuple[str, float, int], high: tuple[str, float, int]) -> None:
        slack = 2 * math.sqrt(sum(p * (1 - p) / n for _, p, n in (low, high)))
        detail = f"{low[0]} {low[1]:.4f}, {high[0]} {high[1]:.4f}, slack {slack:.4f}"
        out.append({"check": check, "holds": low[1] <= high[1] + slack, "detail": detail})

    def accuracy(name: str) -> tuple[str, float, int]:
        return name, parts[name]["accuracy"], parts[name]["images"]

    for name in parts:
        level, _, attack = name.partition("/")
        if level in ("T1", "T2") and attack not in ONE_STEP and f"{level}/fgsm" in parts:
            at_most(
                "an iterative attack is at least as strong as a single step", accuracy(name), accuracy(f"{level}/fgsm")
            )
        if level in ("T1", "T2") and "worst_case" in parts:
            at_most("the worst case is at least as strong as each attack", accuracy("worst_case"), accuracy(name))
        if level == "T0" and (white := f"T2/{attack.partition('/')[2]}") in parts:
            at_most("the white box is at least as strong as transfer", accuracy(white), accuracy(name))
    if "T3" in parts and (best := [p for n, p in parts.items() if n.startswith("T2/") and "sr_at" in p]):
        fpr = max(parts["T3"]["sr_at"], key=float)
        plain = max(best, key=lambda p: p["sr_at"][fpr])
        at_most(
            "an adaptive attack is at least as strong as a plain one",
            ("best T2 SR", plain["sr_at"][fpr], plain["images"]),
            ("T3 SR", parts["T3"]["sr_at"][fpr], parts["T3"]["images"]),
        )
    for kind, share in parts.get("zero_gradients", {}).items():
        if kind.endswith("_images"):
            check = f"hardly any image has a zero {kind.removesuffix('_images')} gradient"
            out.append({"check": check, "holds": share <= 0.01, "detail": f"share {share:.4f}"})
    return out


class Report:
    """The report file: finished parts by name, kept across runs of the same set-up unless `fresh`.

    Raises:
        ValueError: the file belongs to another set-up (its differing keys are named) or is no report.
    """

    def __init__(self, path: Path, setup: dict[str, Any], fresh: bool = False) -> None:
        self.path, self.setup = path, setup
        self.parts: dict[str, Any] = {}
        if path.is_file() and not fresh:
            try:
                old = json.loads(path.read_text())
                parts, old_setup = old["parts"], old["setup"]
                setup = json.loads(json.dumps(setup))
                differing = sorted(k for k in setup.keys() | old_setup.keys() if setup.get(k) != old_setup.get(k))
                parts = rename_parts(parts)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} is not a report of this program; choose another --out") from error
            if differing:
                raise ValueError(
                    f"{path} was made with another set-up ({', '.join(differing)}): choose another --out, or --fresh"
                )
            self.parts = parts

    def document(self) -> dict[str, Any]:
        evasions = {n.partition("/")[2]: p for n, p in self.parts.items() if n.startswith("T3/")}
        parts = dict(self.parts)
        if evasions:
            parts["T3"] = best_case(evasions)
        return {"format": FORMAT, "setup": self.setup, "parts": parts, "checks": masking_checks(parts)}

    def put(self, name: str, part: dict[str, Any]) -> None:
        """Add a finished part and write both files, each atomically."""
        self.parts[name] = part
        self.write()

    def write(self) -> dict[str, Any]:
        """Both files as they stand; returns the document."""
        document = self.document()
        files.write_json(self.path, document)
        files.write_text(self.path.with_suffix(".md"), markdown(document))
        return document


class PartProgress:
    """The finished batches of the part under way, in a file, so that a kill costs at most `every` seconds of attack.

    With the batches stands the state of the random numbers, so that a resumed part is what it would have been.
    """

    def __init__(self, path: Path, setup: dict[str, Any], every: float = 60.0) -> None:
        self.path, self.every = path, every
        self.setup = json.dumps(setup, sort_keys=True)
        self.name, self.began, self.written, self.before = "", 0.0, 0.0, 0.0

    def begin(self, name: str) -> None:
        """Start the part `name`; batches that are kept from here on are its."""
        self.name, self.before = name, 0.0
        self.began = self.written = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Spent on this part, earlier runs included."""
        return self.before + time.perf_counter() - self.began

    def restored(self) -> list[tuple[Tensor | None, ...]]:
        """The batches of an earlier run of this part, or none; the random numbers go on from there."""
        if not self.path.is_file():
            return []
        try:
            kept = torch.load(self.path, weights_only=True)
        except Exception:  # torch raises half a dozen types for a damaged file; what it held is computed again
            return []
        if (kept["setup"], kept["name"]) != (self.setup, self.name):
            return []
        self.before = kept["seconds"]
        torch.set_rng_state(kept["cpu"])
        if kept["cuda"]:
            torch.cuda.set_rng_state_all(kept["cuda"])
        return [tuple(batch) for batch in kept["batches"]]

    def keep(self, batches: list[tuple[Tensor | None, ...]]) -> None:
        """All batches so far; written where the last writing is `every` seconds ago."""
        if time.perf_counter() - self.written < self.every:
            return
        document = {
            "setup": self.setup,
            "name": self.name,
            "seconds": self.seconds,
            "batches": batches,
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        files.save(self.path, document)
        self.written = time.perf_counter()

    def end(self) -> None:
        """Remove the file: the part is in the report."""
        self.path.unlink(missing_ok=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, an empty one at its end."""
    return ["| " + " | ".join(r) + " |" for r in (head, ["---"] * len(head), *rows)] + [""]


def markdown(document: dict[str, Any]) -> str:
    """The report as tables for people."""
    setup, parts = document["setup"], document["parts"]
    percent = "{:.2f}".format

    def cells(part: dict[str, Any]) -> list[str]:
        row = [str(part["images"]), percent(100 * part["accuracy"]), percent(100 * part["w_robust"])]
        row.append(percent(100 * part["float_accuracy"]) if "float_accuracy" in part else "")
        if "auroc" in part:
            row.append(f"{part['auroc']:.4f} ({part['auroc_interval'][0]:.4f}-{part['auroc_interval'][1]:.4f})")
            row += [percent(100 * part["tpr"].get(f, math.nan)) for f in ("0.01", "0.05")]
            row += [percent(100 * part[k].get("0.05", math.nan)) for k in ("sr_at", "joint_at")]
        else:
            row += [""] * 5
        return [*row, f"{part.get('seconds', 0):.0f}"]

    mode = f", mode {setup['mode']}," if "mode" in setup else ""
    lines = [f"# {setup['checkpoint']}{mode} on {setup['images']} {setup['split']} images", ""]
    lines += [f"L-infinity eps {setup['eps']:g}/255, seed {setup['seed']}; figures in per cent but AUROC.", ""]
    if "clean" in parts:
        lines += [f"Clean accuracy {percent(100 * parts['clean']['accuracy'])}.", ""]
    attacked = [(n, p) for n, p in parts.items() if n.split("/")[0] in ("T0", "T1", "T2", "worst_case")]
    if attacked:
        head = ["level / attack", "images", "accuracy", "W-Robust", "accuracy, float", "AUROC (95 %)"]
        head += ["TPR @ 1 %", "TPR @ 5 %", "SR @ 5 %", "right or flagged @ 5 %", "s"]
        lines += table(head, [[n, *cells(p)] for n, p in sorted(attacked)])
    if "worst_case" in parts:
        broken = parts["worst_case"]["broken_first_by"].items()
        lines += table(["worst case: broken first by", "images"], [[n, str(count)] for n, count in broken])
    if "T3" in parts:
        head = ["T3 attack", "images", "SR @ 5 %", "SR @ 1 %, at least", "right or flagged @ 5 %", "s"]
        rows = []
        for name, part in [*((n, p) for n, p in parts.items() if n.startswith("T3/")), ("T3 best case", parts["T3"])]:
            rates = [100 * part["sr_at"].get(f, math.nan) for f in ("0.05", "0.01")]
            seconds = f"{part['seconds']:.0f}" if "seconds" in part else ""
            rows.append([name, str(part["images"]), *map(percent, [*rates, 100 - rates[0]]), seconds])
        lines += table(head, rows)
    corruptions = [(n.partition("/")[2], p) for n, p in parts.items() if n.startswith("corruptions/")]
    if corruptions:
        head = ["corruption", "images", "accuracy", "FPR at the 5 % threshold", "FPR at the 1 % threshold"]
        rates = [[percent(100 * p["fpr"][f]) if "fpr" in p else "" for f in ("0.05", "0.01")] for _, p in corruptions]
        lines += table(
            head,
            [
                [n, str(p["images"]), percent(100 * p["accuracy"]), *r]
                for (n, p), r in zip(corruptions, rates, strict=True)
            ],
        )
    if document["checks"]:
        rows2 = [[c["check"], "yes" if c["holds"] else "**no**", c["detail"]] for c in document["checks"]]
        lines += table(["masking check", "holds", "detail"], rows2)
    return "\n".join(lines)

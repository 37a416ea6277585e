"""Makes docs/model-card.md and docs/threat-model.md from the audits of the bundled networks.

    python -m training.audit.pages
    python -m training.audit.pages --audits training/reports/audits --out docs

Every folder of `--audits` holds one audit.json; the one named by `--model` is the model that is served, the others are
what it is compared with. Every figure on both pages comes from these files, with its number of images and interval.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.files import write_text
from ..evaluation.report import table
from . import linter
from .card import FPR, mode_of, statement
from .cells import TITLES, levels, percent, right, with_interval
from .report import passed

MADE = "<!-- Made by `python -m training.audit.pages` from the audits, and a test compares: change those. -->"
MODEL = "awnet-bounded"
COUNTED = (
    "*Flagged*: by the threshold that flags 5 % of natural validation images. *SR@5*: misclassified and not flagged "
    "there, images that are misclassified without any attack among them."
)
SHAPES = {
    "l2": "moved by {} in L2 (pixel values from 0 to 1)",
    "sparse": "{} pixels changed at will",
    "patch": "a square of side {} painted over",
}
Document = Mapping[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m training.audit.pages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    default = Path("training/reports/audits")
    add("--audits", type=Path, default=default, metavar="DIR", help=f"NAME/audit.json each (default: {default})")
    add("--model", default=MODEL, metavar="NAME", help=f"the audit of what is served (default: {MODEL})")
    add("--out", type=Path, default=Path("docs"), metavar="DIR", help="receives both pages (default: docs)")
    args = parser.parse_args(argv)
    try:
        made = pages(read(args.audits), args.model, args.audits)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    for name, text in made.items():
        write_text(args.out / name, text)
        print(args.out / name)
    return 0


def read(folder: Path) -> dict[str, Document]:
    """Name -> document of every FOLDER/NAME/audit.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: one is no report of training.audit.
    """
    files = sorted(folder.glob("*/audit.json"))
    if not files:
        raise FileNotFoundError(f"no */audit.json in {folder}: python -m training.audit --out {folder}/NAME makes one")
    found: dict[str, Document] = {}
    for file in files:
        try:
            document = json.loads(file.read_text("utf-8"))
            found[file.parent.name] = {key: document[key] for key in ("setup", "plan", "parts", "findings", "failed")}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is not a report of training.audit") from error
    return found


def pages(audits: Mapping[str, Document], model: str, folder: Path) -> dict[str, str]:
    """File name -> text of both pages; ValueError where the model was not audited."""
    if model not in audits:
        raise ValueError(f"no audit of {model}: there are {', '.join(audits)}")
    return {
        "model-card.md": model_card(audits[model], folder / model, in_other_modes(audits, model)),
        "threat-model.md": threat_model(audits, model, folder),
    }


def in_other_modes(audits: Mapping[str, Document], model: str) -> dict[str, Document]:
    """Name -> the audits of the same checkpoint in its other modes."""
    setup = audits[model]["setup"]

    def other(name: str) -> bool:
        there = audits[name]["setup"]
        return bool(there["sha256"] == setup["sha256"] and mode_of(there) != mode_of(setup))

    return {name: audits[name] for name in audits if other(name)}


def model_card(audit: Document, folder: Path, modes: Mapping[str, Document] | None = None) -> str:
    """docs/model-card.md; `modes` are audits of the same checkpoint in other modes, which lie beside `folder`."""
    setup, parts = audit["setup"], audit["parts"]
    size, count = setup["image_size"], f"{setup['parameters'] / 1e6:.1f} million"
    report, kind = f"{folder.as_posix()}/audit.md", "AW-Net" if setup["kind"] == "awnet" else setup["kind"]
    lines = [
        "# Model card",
        "",
        MADE,
        "",
        statement(parts),
        "",
        "| | |",
        "|---|---|",
        f"| checkpoint | `training/checkpoints/{setup['checkpoint']}`, sha256 `{setup['sha256'][:12]}...` |",
        f"| network | {kind}, {count} parameters, recipe `{setup['recipe']}` |",
        f"| answers | one of {len(setup['labels'])} classes ({', '.join(setup['labels'])}), and a score of tampering |",
        f"| images | {size} x {size} pixels, RGB, 8 bits |",
        f"| audited | {audit['plan']['date']}, on test images of {setup['set']}: [{report}](../{report}) |",
        "",
        "## For what, and for what not",
        "",
        "A demonstration of a classifier that also says whether an image was tampered with, and a test bed for "
        "attacks on such networks. It names one of its classes for any image, whatever it shows. The verdict `clean` "
        "says that no known trick was seen; it is no proof that nobody attacked. Let nothing that matters depend on "
        "it where an attacker can have the model.",
        "",
        "## Figures",
        "",
        f"Every pixel moved by at most {setup['eps']:g}/255, rounded to 8 bits. {COUNTED} Per cent, with 95 % "
        "intervals.",
        "",
        *_levels(parts, ""),
        *_false_positives(parts),
        *_modes(modes or {}, folder.parent),
        "## How the figures were made",
        "",
        "`python -m training.audit` ([audit.md](audit.md)); the report holds every part, its number of images and "
        f"the linter's findings. {_linter(audit)}",
    ]
    return "\n".join(lines).rstrip() + "\n"


def threat_model(audits: Mapping[str, Document], model: str, folder: Path) -> str:
    audit = audits[model]
    parts, eps = audit["parts"], f"{audit['setup']['eps']:g}/255"
    lines = [
        "# Threat model",
        "",
        MADE,
        "",
        f"The attacker moves every pixel of an image by at most {eps} and sends it as a lossless file. What the model "
        f"is worth depends on what the attacker has. {COUNTED}",
        "",
        *table(
            ["level", "the attacker has", "and wants", "what was measured", "what to rely on"], list(_relied_on(parts))
        ),
        f"**{statement(parts)}**",
        "",
        "## What it has to beat",
        "",
        "The same attacks on networks that one could have had instead, trained at the same size. A detector that "
        "does not push SR@5 at T3 under the best of them adds nothing against an attacker who has the model.",
        "",
    ]
    for subject, title in TITLES.items():
        if rows := _levels(parts, subject):
            lines += [f"**{title[0].upper()}{title[1:]}**", "", *rows]
    others = {name: a for name, a in audits.items() if name != model}
    if others:
        lines += ["## Other networks, audited in the same way", ""]
        head = ["audit", "clean accuracy", "worst case", "T3 SR@5", "linter"]
        lines += table(head, [_row(n, a, folder) for n, a in others.items()])
    lines += [
        "## Outside this model",
        "",
        "- Larger changes, and other ones: patches, stickers, blur, another picture altogether. None is defended "
        f"against.{_shapes(parts)}",
        "- Whoever can change the model file, its thresholds or the server: signatures and hashes are in "
        "[lifecycle.md](lifecycle.md).",
        "- How often somebody asks: the server looks for clients that try out many variants of an image, see its "
        "[query guard](security.md#the-query-guard).",
        "- Poisoned training data, stolen weights, and what the answers tell about the training images.",
        "- Images that nobody attacked and that are unlike those of the calibration: the answer then says "
        "`calibrated: false`, and why.",
        "",
        "## Whether the measurement can be believed",
        "",
        _linter(audit),
        "",
        *_failures(audit),
        f"An attack that was not tried may succeed. Tried were {', '.join(_tried(parts))}. [The report]"
        f"(../{(folder / model).as_posix()}/audit.md) has every check with its figures and the images that each part "
        "got; [audit.md](audit.md) says what the checks mean.",
    ]
    return "\n".join(lines).rstrip() + "\n"


def _modes(modes: Mapping[str, Document], folder: Path) -> list[str]:
    """The table of each other mode; the score, and with it what is flagged of natural images, is the same in all."""
    lines = []
    for name, audit in modes.items():
        lines += [
            f"## In mode {mode_of(audit['setup'])}",
            "",
            f"The same score, but another branch answers: [{name}](../{(folder / name).as_posix()}/audit.md). "
            f"{_linter(audit)}",
            "",
            *_levels(audit["parts"], ""),
        ]
    return lines


def _tried(parts: Mapping[str, Any]) -> list[str]:
    """The attacks that an audit made, in words."""
    words = {
        "T0/": "transfer from other networks",
        "worst_case@": "the worst case over T1, T2 and forced branches",
        "T2/autoattack@": "AutoAttack",
        "black_box/": "Square",
        "T3@": "at T3 every evasion of `training.attacks.evasion`",
        "l2@": "changes in L2, in a few pixels and in a patch",
    }
    return [title for start, title in words.items() if any(name.startswith(start) for name in parts)]


def _shapes(parts: Mapping[str, Any]) -> str:
    """What attacks of other shapes do, as a server answers where the calibration has domains; empty without them."""
    said = []
    for name, p in parts.items():
        what, _, size = name.rpartition("@")
        if what in SHAPES and "sr_at" in p:
            success = with_interval(p.get("served_sr", p["sr_at"])[FPR], p["images"])
            outside = f", {percent(p['uncalibrated'])} % `calibrated: false`" if "uncalibrated" in p else ""
            said.append(f"{SHAPES[what].format(size)}, {success} %{outside}")
    return f" Misclassified and answered `clean`: {'; '.join(said)}." if said else ""


def _failures(audit: Document) -> list[str]:
    """A point for each finding that the linter fails: the figures, and what a reader is to make of them."""
    failing = [one for one in (linter.Finding(**f) for f in audit["findings"]) if one.fails]
    points = [f"- **{one.check}**: {one.detail}. {one.advice}" for one in failing]
    return [*points, ""] if points else []


def _relied_on(parts: Mapping[str, Any]) -> list[list[str]]:
    """One row a level: the worst figure of it, and what follows."""
    t0 = [p for n, p in parts.items() if n.startswith("T0/") and n.endswith("@8") and "tpr" in p]
    rows = []
    if t0:
        worst = min(t0, key=lambda p: p["tpr"][FPR])
        flagged = with_interval(worst["tpr"][FPR], worst["images"])
        said = f"{flagged} % flagged, the least of {len(t0)} surrogates; {percent(worst['accuracy'])} % right"
        rows.append(["T0", "other networks only", "a wrong class", said, "the verdict, as an alarm"])
    if plain := parts.get("worst_case@8"):
        kept = with_interval(plain["accuracy"], plain["images"])
        said = f"{kept} % right" + (f"; {percent(plain['tpr'][FPR])} % flagged" if "tpr" in plain else "")
        has = "the network; at T1 the attack ignores the detector, at T2 it follows all gradients"
        rows.append(["T1, T2", has, "a wrong class", said, "the verdict, as an alarm; not the class"])
    if evasion := parts.get("T3@8"):
        said = f"{with_interval(evasion['sr_at'][FPR], evasion['images'])} % misclassified and not flagged"
        rows.append(["T3", "the whole network", "a wrong class *and* the verdict `clean`", said, "nothing"])
    return rows


def _levels(parts: Mapping[str, Any], subject: str) -> list[str]:
    rows = []
    for name, p in levels(parts, subject):
        n = p["images"]
        flagged = percent(p["fpr" if "fpr" in p else "tpr"][FPR]) if "fpr" in p or "tpr" in p else ""
        success = with_interval(p["sr_at"][FPR], n) if "sr_at" in p else ""
        held = percent(1 - p["sr_at"][FPR]) if "sr_at" in p else ""
        rows.append([name, str(n), right(name, p), flagged, success, held])
    return table(["attack", "images", "accuracy", "flagged", "SR@5", "right or flagged"], rows) if rows else []


def _false_positives(parts: Mapping[str, Any], most: int = 8) -> list[str]:
    """The kinds of natural images that are flagged most, at any strength."""
    worst: dict[str, tuple[float, Mapping[str, Any]]] = {}
    for name, part in parts.items():
        if name.startswith(("corruptions/", "pictures/")) and FPR in part.get("fpr", {}):
            kind = name.split("/")[1]
            rate = part["served" if "served" in part else "fpr"][FPR]
            worst[kind] = max(worst.get(kind, (-1.0, part)), (rate, part), key=lambda pair: pair[0])
    if not worst:
        return []
    chosen = sorted(worst.items(), key=lambda item: -item[1][0])[:most]
    rows = []
    for kind, (rate, part) in chosen:
        outside = percent(part["uncalibrated"]) if "uncalibrated" in part else ""
        rows.append([kind.replace("_", " "), str(part["images"]), with_interval(rate, part["images"]), outside])
    said = "Natural images that are flagged although nobody attacked them, each kind at its worst strength"
    text = (
        f"{said}, by the thresholds that a server applies to each image ([domain.md](domain.md)); the worst of "
        f"{len(worst)} kinds:"
    )
    return [text, "", *table(["kind", "images", "flagged", "`calibrated: false`"], rows)]


def _row(name: str, audit: Document, folder: Path) -> list[str]:
    parts = audit["parts"]

    def cell(part: str, value: str) -> str:
        if part not in parts or value not in parts[part]:
            return ""
        share = parts[part][value]
        return with_interval(share[FPR] if isinstance(share, Mapping) else share, parts[part]["images"])

    mode = mode_of(audit["setup"])
    link = f"[{name}](../{(folder / name).as_posix()}/audit.md)" + (f", mode {mode}" if mode != "auto" else "")
    return [link, cell("clean", "accuracy"), cell("worst_case@8", "accuracy"), cell("T3@8", "sr_at"), _linter(audit)]


def _linter(audit: Document) -> str:
    failing = linter.failures([linter.Finding(**f) for f in audit["findings"]])
    if failing:
        return f"The linter fails it: {'; '.join(failing)}."
    return passed(audit)


if __name__ == "__main__":
    sys.exit(main())

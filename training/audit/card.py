"""What the model's card says: one sentence, and the figures that a server shows beside the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ..evaluation.report import from_hex
from . import measures

FORMAT = 1
FPR = "0.05"  # of the threshold that everything is quoted at, as the report's parts name it
NOTHING = 0.02  # a detector that gains less than this at T3 pays nothing


def card(document: Mapping[str, Any]) -> dict[str, Any]:
    """card.json of an audit's document."""
    setup, parts = document["setup"], document["parts"]
    return {
        "format": FORMAT,
        "title": f"Audit of {subject_of(setup)}",
        "statement": statement(parts),
        "checkpoint_sha256": setup["sha256"],
        "date": document["plan"]["date"],
        "figures": list(figures(parts)),
    }


def subject_of(setup: Mapping[str, Any]) -> str:
    """What was audited: the checkpoint, and the mode where it is not auto."""
    mode = mode_of(setup)
    return str(setup["checkpoint"]) + (f", mode {mode}" if mode != "auto" else "")


def mode_of(setup: Mapping[str, Any]) -> str:
    """The mode of `network.MODES` that was audited; audits from before there were modes tell none."""
    return str(setup.get("mode", "auto"))


def figures(parts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each figure with its 95 % interval; shares lie from 0 to 1."""

    def share(name: str, title: str, part: str, value: float) -> dict[str, Any]:
        n = parts[part]["images"]
        low, high = measures.interval(value, n)
        return {"name": name, "title": title, "value": value, "low": low, "high": high, "images": n, "unit": "share"}

    for part, data in parts.items():
        what, _, eps = part.rpartition("@")
        if part == "clean":
            yield share("clean_accuracy", "accuracy on natural images", part, data["accuracy"])
            if "fpr" in data:
                yield share("clean_flagged", "natural images flagged at the 5 % threshold", part, data["fpr"][FPR])
        elif what == "static:worst_case":
            yield share(f"static_worst_case_{eps}", f"control, static: worst case at {eps}/255", part, data["accuracy"])
        elif what.endswith(":T3"):
            control = what.removesuffix(":T3")
            title = f"control, {control.replace('_', ' ')}: misclassified and not rejected, T3 at {eps}/255"
            yield share(f"{control}_t3_sr_{eps}", title, part, data["sr_at"][FPR])
        elif what == "worst_case":
            yield share(f"worst_case_{eps}", f"accuracy, worst case of T1 and T2 at {eps}/255", part, data["accuracy"])
        elif what == "T2/autoattack":
            yield share(f"autoattack_{eps}", f"accuracy, AutoAttack at {eps}/255", part, data["accuracy"])
        elif what == "T3":
            title = f"misclassified and not flagged, T3 at {eps}/255"
            yield share(f"t3_sr_{eps}", title, part, data["sr_at"][FPR])
        elif what.startswith("T0/") and "tpr" in data:
            surrogate = what.split("/")[1]
            title = f"flagged at the 5 % threshold, T0 from {surrogate} at {eps}/255"
            yield share(f"t0_flagged_{surrogate}_{eps}", title, part, data["tpr"][FPR])
            low, high = min(data["auroc"], data["auroc_interval"][0]), max(data["auroc"], data["auroc_interval"][1])
            yield {
                "name": f"t0_auroc_{surrogate}_{eps}",
                "title": f"AUROC, T0 from {surrogate} at {eps}/255",
                "value": data["auroc"],
                "low": low,
                "high": high,
                "images": data["images"],
                "unit": "auroc",
            }


def statement(parts: Mapping[str, Any], eps: str = "8") -> str:
    """One sentence on what the detector is worth at T3, against the best control on the same images."""
    worst, evasion = parts.get(f"worst_case@{eps}"), parts.get(f"T3@{eps}")
    if worst is None:
        return "Not audited: the worst case was not measured."
    left = f"The worst case at {eps}/255 leaves {100 * worst['accuracy']:.1f} % of {worst['images']} images right"
    if evasion is None or "evaded_bits" not in evasion:
        rest = "nobody tried to evade the detector (T3)" if "auroc" in worst else "there is no detector to evade"
        return f"{left}; {rest}."
    name, control = min(_controls(parts, worst, eps).items(), key=lambda item: float(item[1].double().mean()))
    success = from_hex(evasion["evaded_bits"], evasion["images"])
    n = min(len(success), len(control))
    here, there = float(success[:n].double().mean()), float(control[:n].double().mean())
    pays = "pays nothing" if there - here < NOTHING else f"pays {100 * (there - here):.1f} points"
    words = f"{100 * here:.1f} % of {n} images are misclassified and not flagged, where {name} {100 * there:.1f} %"
    return f"The detector {pays} at T3: {words}. {left}."


def _controls(parts: Mapping[str, Any], worst: Mapping[str, Any], eps: str) -> dict[str, Tensor]:
    """In words -> whether each image is lost: to the static network, by itself or with somebody who rejects.

    Without any control, what is lost to whoever ignores the detector.
    """
    lost = {}
    if plain := parts.get(f"static:worst_case@{eps}"):
        lost["the static network misclassifies"] = ~from_hex(plain["correct_bits"], plain["images"])
    for name, title in (
        ("max_softmax", "the static network that rejects by its own confidence is misled on"),
        ("separate_detector", "the static network beside a separate detector is misled on"),
    ):
        if part := parts.get(f"{name}:T3@{eps}"):
            lost[title] = from_hex(part["evaded_bits"], part["images"])
    return lost or {"who ignores the detector turns": ~from_hex(worst["correct_bits"], worst["images"])}

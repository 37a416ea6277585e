"""Signs that an audit's attacks were weak or its gradients masked; a pure function of the finished parts.

A check compares shares of the *same* images, those that two parts have in common. Best-iterate parts are judged; the
paper's attacks, which return their last iterate, are annotated only. docs/audit.md says what to do about each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from ..evaluation.report import ONE_STEP, from_hex

PAPERS = ("fgsm", "pgd_sat", "pgd_trades", "cw_inf", "adaptive")  # their last iterate counts: annotated, not judged

T2_WEAKER = "T2 leaves more than T1"
AUTOATTACK_STRONGER = "AutoAttack leaves less than the worst case"
STEPS_HELP = "more steps help the defender"
ONE_STEP_STRONGER = "one step beats an iterative attack"
BLACK_BOX_STRONGER = "a black box beats the white box"
LARGE_EPS_LEAVES = "a large radius leaves something"
ZERO_GRADIENTS = "gradients are zero"
DIFFERENCES = "gradients disagree with finite differences"
PLAIN_STRONGER = "a plain attack evades more than T3"

# Check -> what to do where it fails.
ADVICE: dict[str, str] = {
    T2_WEAKER: "The gradient through the detector misleads the attacker. Quote the worst case, never T2 alone; look "
    "for a saturated type head or a detached signal.",
    AUTOATTACK_STRONGER: "The worst case is too weak: give it more steps or restarts, and quote AutoAttack's figure.",
    STEPS_HELP: "The attack walks away from what it had found: its gradient points elsewhere after the first steps. "
    "Look for a switch (a detector, a branch) that the steps flip, and attack each side of it by itself.",
    ONE_STEP_STRONGER: "The iterative attack is broken, or the gradient is right only at the start: keep the best "
    "iterate, lower the step size, force the branch that answered the single step.",
    BLACK_BOX_STRONGER: "Gradients are masked: whoever has none does better. Quote the black box's figure, and look "
    "for what hides the gradient (rounding, saturation, randomness).",
    LARGE_EPS_LEAVES: "Within such a radius every image can become any other, so something stops the attack: attack "
    "the images that are left one by one.",
    ZERO_GRADIENTS: "Attack the logits, not a saturated softmax; differentiate through rounding as if it were not "
    "there; force the branch that is switched off.",
    DIFFERENCES: "What the attacker differentiates is not what is deployed: a detached part, a straight-through "
    "estimate, or arithmetic that is too coarse. Robustness measured with this gradient is no evidence.",
    PLAIN_STRONGER: "T3 is broken or was given too few steps: it may do whatever T2 does. Quote the larger figure.",
}

ZERO_SHARE = 0.01  # of images may have no gradient at all
DIFFERENCE = 0.05  # median relative difference of a derivative from the finite difference
AUTOATTACK_SLACK = 0.02
LARGE_EPS = 32.0  # in 1/255: from here on nothing may be left


@dataclass(frozen=True)
class Finding:
    """One check of one pair of parts. `judged` is false where it only annotates an attack that is named as the paper's.

    `holds` is about the network: false where what the check's name says is so.
    """

    check: str
    holds: bool
    detail: str
    advice: str
    judged: bool = True

    @property
    def fails(self) -> bool:
        return self.judged and not self.holds

    def document(self) -> dict[str, Any]:
        return asdict(self)


Parts = Mapping[str, Mapping[str, Any]]


def lint(parts: Parts) -> list[Finding]:
    """Every check that the parts of one network allow; names of parts are those of `subject`.

    Parts are named `WHAT@EPS`, eps in units of 1/255; the shares compared are of the images that both have.
    """
    return [
        *_levels(parts),
        *_autoattack(parts),
        *_steps(parts),
        *_one_step(parts),
        *_black_box(parts),
        *_large_eps(parts),
        *_gradients(parts),
        *_adaptive(parts),
    ]


def failures(findings: list[Finding]) -> list[str]:
    """Names of the checks that fail, each once."""
    return list(dict.fromkeys(f.check for f in findings if f.fails))


def shared(parts: Parts, a: str, b: str, bits: str = "correct_bits") -> tuple[float, float, float, str]:
    """Shares of a and of b over their common images, two standard errors of the difference, and both in words."""
    n = min(parts[a]["images"], parts[b]["images"])
    one, two = (from_hex(parts[p][bits], parts[p]["images"])[:n].double() for p in (a, b))
    difference = one - two
    slack = 2 * math.sqrt(float(difference.var(correction=0)) / n)
    shares = float(one.mean()), float(two.mean())
    return *shares, slack, f"{a} {shares[0]:.3f}, {b} {shares[1]:.3f} of {n} images"


def at_most(parts: Parts, check: str, a: str, b: str, slack: float | None = None, judged: bool = True) -> Finding:
    """a leaves at most what b leaves; by default two standard errors of the paired difference are allowed."""
    left, right, errors, words = shared(parts, a, b)
    allowed = errors if slack is None else slack
    return Finding(check, left <= right + allowed + 1e-9, f"{words}, slack {allowed:.3f}", ADVICE[check], judged)


def radius(name: str) -> float:
    """The eps in a part's name, in units of 1/255."""
    return float(name.rpartition("@")[2])


def _levels(parts: Parts) -> Iterator[Finding]:
    """T2 has all that T1 has, and more."""
    for name in parts:
        level, _, attack = name.partition("/")
        if level == "T2" and f"T1/{attack}" in parts:
            best = attack.startswith("worst_case@")
            yield at_most(parts, T2_WEAKER, name, f"T1/{attack}", judged=best)


def _autoattack(parts: Parts) -> Iterator[Finding]:
    for name in parts:
        attack, _, eps = name.rpartition("@")
        if attack.endswith("autoattack") and f"worst_case@{eps}" in parts:
            yield at_most(parts, AUTOATTACK_STRONGER, f"worst_case@{eps}", name, AUTOATTACK_SLACK)


def _steps(parts: Parts) -> Iterator[Finding]:
    """Parts `steps/N@EPS`: the same attack with N steps."""
    runs = sorted((int(n.partition("/")[2].partition("@")[0]), n) for n in parts if n.startswith("steps/"))
    for (_, few), (_, many) in pairwise(runs):
        yield at_most(parts, STEPS_HELP, many, few)


def _one_step(parts: Parts) -> Iterator[Finding]:
    for name in parts:
        attack, _, eps = name.rpartition("@")
        level, _, attack = attack.rpartition("/")
        for single in ONE_STEP:
            step = f"{level}/{single}@{eps}"
            if level in ("T1", "T2") and step in parts and attack not in (*ONE_STEP, "autoattack"):
                yield at_most(parts, ONE_STEP_STRONGER, name, step, judged=attack == "worst_case")
            if name == f"worst_case@{eps}" and f"T2/{single}@{eps}" in parts:
                yield at_most(parts, ONE_STEP_STRONGER, name, f"T2/{single}@{eps}")


def _black_box(parts: Parts) -> Iterator[Finding]:
    for name in parts:
        eps = name.rpartition("@")[2]
        if name.startswith(("T0/", "black_box/")) and f"worst_case@{eps}" in parts:
            yield at_most(parts, BLACK_BOX_STRONGER, f"worst_case@{eps}", name)


def _large_eps(parts: Parts) -> Iterator[Finding]:
    for name, part in parts.items():
        if name.startswith("worst_case@") and radius(name) >= LARGE_EPS:
            left = round(part["accuracy"] * part["images"])
            detail = f"{left} of {part['images']} images stay right at {radius(name):g}/255"
            yield Finding(LARGE_EPS_LEAVES, left == 0, detail, ADVICE[LARGE_EPS_LEAVES])


def _gradients(parts: Parts) -> Iterator[Finding]:
    for key, share in parts.get("zero_gradients", {}).items():
        if key.endswith("_images"):
            detail = f"{key.removesuffix('_images')} gradient: {share:.3f} of the images"
            yield Finding(ZERO_GRADIENTS, share <= ZERO_SHARE, detail, ADVICE[ZERO_GRADIENTS])
    for kind, part in parts.get("finite_differences", {}).items():
        if isinstance(part, Mapping):
            holds = part["median"] <= DIFFERENCE
            detail = f"{kind} gradient: median relative difference {part['median']:.2g}"
            yield Finding(DIFFERENCES, holds, detail, ADVICE[DIFFERENCES])


def _adaptive(parts: Parts) -> Iterator[Finding]:
    """T3 may do what T2 does: its successes are at least those that fell to T2 by chance."""
    for name in parts:
        eps = name.rpartition("@")[2]
        plain = f"worst_case@{eps}"
        if name == f"T3@{eps}" and "evaded_bits" in parts.get(plain, {}):
            by_plain, by_t3, errors, words = shared(parts, plain, name, "evaded_bits")
            detail = f"misclassified and not flagged: {words}, slack {errors:.3f}"
            yield Finding(PLAIN_STRONGER, by_plain <= by_t3 + errors + 1e-9, detail, ADVICE[PLAIN_STRONGER])

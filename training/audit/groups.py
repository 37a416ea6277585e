"""The groups of parts that an audit has, in the order of their importance, with what each costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from domain.corruptions import CORRUPTIONS, STRENGTHS

from ..attacks.catalogue import ATTACKS
from ..attacks.shapes import SHAPES
from ..evaluation.pictures import PICTURES
from .linter import PAPERS
from .parts import EPS, TRANSFER, Audit
from .plan import Cost

RADII = (2.0, 4.0, 16.0)  # beside EPS, in units of 1/255
LARGE = 64.0  # leaves nothing of any network
STEPS = (10, 40, 160)  # of the same attack, which may not get weaker
CHANGE_SECONDS = 0.001  # to change one natural image

Parts = list[tuple[str, Callable[[int], dict[str, Any]]]]


@dataclass(frozen=True)
class Group:
    """Parts that get the same number of images, each made by a function of that number."""

    cost: Cost
    parts: Parts

    @property
    def name(self) -> str:
        return self.cost.name


def groups(audit: Audit) -> list[Group]:
    """Those that make sense for the network and what stands beside it, the most important first; none is empty."""
    images = len(audit.subject.run.split)
    return [
        Group(Cost(name, seconds, min(wanted, images), min(least, images)), parts)
        for name, seconds, wanted, least, parts in _groups(audit)
        if parts
    ]


def _groups(audit: Audit) -> Iterator[tuple[str, float, int, int, Parts]]:
    """(name, seconds an image, images wanted, images at least, parts).

    An image costs so many gradients of the network as it was measured to on the bundled one, where images that are
    lost early are left alone.
    """
    one, controls, detects = audit.subject, audit.controls, audit.subject.run.detects
    everyone = [one, *controls]
    g, f = one.speed.gradient, one.speed.forward
    transfer = sum(ATTACKS[TRANSFER][1].steps * speed.gradient for _, speed in audit.surrogates)

    parts: Parts = [(s.part("clean"), partial(audit.clean, s)) for s in everyone]
    clean = len(one.run.split)
    yield "clean", sum(s.speed.forward for s in everyone), clean, clean, parts
    parts = [(f"worst_case@{EPS:g}", partial(audit.worst_case, one, EPS))]
    yield "worst_case", (330 if detects else 80) * g, 500, 50, parts
    if detects:
        yield "evasion", 220 * g, 500, 50, [(f"T3@{EPS:g}", partial(audit.evasion, one, EPS))]
    parts = [
        (s.part(f"T0/{surrogate.name}/{TRANSFER}@{EPS:g}"), partial(audit.transfer, s, surrogate, EPS))
        for surrogate, _ in audit.surrogates
        for s in everyone
    ]
    yield "transfer", transfer + len(audit.surrogates) * sum(s.speed.forward for s in everyone), 500, 100, parts
    for s in controls:
        radii = (EPS, EPS / 2) if s.target is None else (EPS,)
        parts = [(s.part(f"worst_case@{eps:g}"), partial(audit.worst_case, s, eps)) for eps in radii]
        if s.target is not None:
            parts.append((s.part(f"T3@{EPS:g}"), partial(audit.evasion, s, EPS)))
        yield s.name, (1050 if s.target is not None else 250) * s.speed.gradient, 300, 50, parts
    if detects:
        parts = [
            (f"corruptions/{name}/{strength}", partial(audit.corruption, name, strength))
            for name in CORRUPTIONS
            for strength in STRENGTHS
        ]
        yield "corruptions", len(parts) * (f + CHANGE_SECONDS), 500, 100, parts
        yield "pictures", len(PICTURES) * f, 500, 100, [(f"pictures/{n}", partial(audit.pictures, n)) for n in PICTURES]
    parts = [("zero_gradients", one.run.zero_gradients), ("finite_differences", audit.differences)]
    yield "gradients", 3 * g, 200, 50, parts
    for s in everyone:
        if s.classifier is None:
            parts = [(s.part(f"T2/autoattack@{EPS:g}"), partial(audit.named, s, "T2", "autoattack", EPS))]
            yield s.part("autoattack"), 3000 * s.speed.gradient, 100, 30, parts
    parts = [(f"black_box/square@{EPS:g}", partial(audit.named, one, "T2", "square", EPS))]
    yield "black_box", 1100 * f, 200, 50, parts
    parts = [(name, partial(audit.shape, one, name)) for name in SHAPES]
    yield "shapes", len(SHAPES) * (90 if detects else 40) * g, 200, 30, parts
    levels = ("T1", "T2") if detects else ("T2",)
    if detects:
        parts = [(f"{v}/worst_case@{EPS:g}", partial(audit.worst_case, one, EPS, level=v)) for v in levels]
        yield "levels", 2 * 120 * g, 200, 50, parts
    # Whoever ignores the detector, or meets none, gains nothing by fooling it.
    pairs = [(v, name) for v in levels for name in PAPERS if name != "adaptive" or (detects and v == "T2")]
    parts = [(f"{v}/{name}@{EPS:g}", partial(audit.named, one, v, name, EPS)) for v, name in pairs]
    yield "paper", sum(ATTACKS[name][1].steps for _, name in pairs) * g, 500, 50, parts
    parts = [(f"steps/{n}@{EPS:g}", partial(audit.steps, n, EPS)) for n in STEPS]
    yield "steps", 1.5 * sum(STEPS) * g, 100, 50, parts
    parts = [(f"worst_case@{eps:g}", partial(audit.worst_case, one, eps)) for eps in (*RADII, LARGE)]
    yield "curve", (1000 if detects else 300) * g, 100, 30, parts
    if detects:
        yield "evasion_radii", 1400 * g, 100, 30, [(f"T3@{eps:g}", partial(audit.evasion, one, eps)) for eps in RADII]
    parts = [
        (f"T0/{surrogate.name}/{TRANSFER}@{eps:g}", partial(audit.transfer, one, surrogate, eps))
        for surrogate, _ in audit.surrogates
        for eps in RADII
    ]
    yield "transfer_radii", len(RADII) * (transfer + len(audit.surrogates) * f), 200, 50, parts
    if detects:
        t0, worst = [f"T0/{s.name}/{TRANSFER}@{EPS:g}" for s, _ in audit.surrogates], f"worst_case@{EPS:g}"
        mixes = {"T0": t0, "T2": [worst]}
        parts = [(f"reliability/{v}", partial(audit.reliability, made)) for v, made in mixes.items() if made]
        yield "reliability", 4 * f, 500, 50, parts
        if audit.onnx is not None:
            yield "onnx", 8 * f, 200, 50, [("onnx", partial(audit.agreement, [*t0, worst, f"T3@{EPS:g}"]))]

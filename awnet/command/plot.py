"""Scores of natural images a kind, and where thresholds lay before and lie now: a drawing (SVG) without a library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, TOP = 640, 130, 90, 34  # pixels; HEIGHT is of one kind
BINS = 40
REACH = 8.0  # scores are drawn as log odds within +-REACH: near 0 and 1 they would all fall together
COLOURS = {"before": "#b3261e", "after": "#1b6e3c"}
TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)


def drawn(scores: Mapping[str, Sequence[float]], thresholds: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """`scores` a kind, in [0, 1]; `thresholds`: before | after -> operating point -> {"score"}."""
    height = TOP + HEIGHT * len(scores) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {height}" font-family="sans-serif" '
        'font-size="11">',
        f'<rect width="{LEFT + WIDTH + 20}" height="{height}" fill="white"/>',
    ]
    for n, (when, colour) in enumerate(COLOURS.items()):
        parts.append(f'<text x="{LEFT + 150 * n}" y="14" fill="{colour}">thresholds {when}</text>')
    for n, (kind, values) in enumerate(scores.items()):
        floor = TOP + HEIGHT * (n + 1) - 12
        counts = _counts(values)
        most = max([*counts, 1])
        for k, count in enumerate(counts):
            tall = (HEIGHT - 24) * count / most
            x = LEFT + WIDTH * k / BINS
            parts.append(
                f'<rect x="{x:.1f}" y="{floor - tall:.1f}" width="{WIDTH / BINS - 1:.1f}" height="{tall:.1f}" '
                'fill="#7a8ca0"/>'
            )
        parts.append(
            f'<text x="8" y="{floor - 40}">{kind}</text><text x="8" y="{floor - 26}">{len(values)} images</text>'
        )
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{floor}" y2="{floor}" stroke="black"/>')
    bottom = TOP + HEIGHT * len(scores) - 12
    for when, points in thresholds.items():
        for point, threshold in points.items():
            x = _place(threshold["score"])
            dash = ' stroke-dasharray="4 3"' if point == "suspicious" else ""
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 12}" y2="{bottom}" stroke="{COLOURS[when]}"{dash}>'
                f"<title>{point} {when}: {threshold['score']:.6g}</title></line>"
            )
    for tick in TICKS:
        parts.append(f'<text x="{_place(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<text x="{LEFT}" y="{bottom + 30}">score, as log odds; dashed: suspicious, whole: adversarial</text>'
    )
    return "\n".join([*parts, "</svg>\n"])


def _odds(score: float) -> float:
    inside = min(max(score, 1e-9), 1 - 1e-9)
    return min(max(math.log(inside / (1 - inside)), -REACH), REACH)


def _place(score: float) -> float:
    return LEFT + WIDTH * (_odds(score) + REACH) / (2 * REACH)


def _counts(values: Sequence[float]) -> list[int]:
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int(BINS * (_odds(value) + REACH) / (2 * REACH)))] += 1
    return counts

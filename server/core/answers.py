"""How much of the scores a caller is told.

Whoever sees exact scores can follow their slope to an image that passes; with less, that takes many more questions
(A. Ilyas et al., "Black-box adversarial attacks with limited queries and information", arXiv:1804.08598).
"""

from __future__ import annotations

from typing import Literal

# exact: scores and probabilities as numbers. bands: as one of five levels. verdict: class and verdict only.
Answers = Literal["exact", "bands", "verdict"]
Level = Literal["very-low", "low", "medium", "high", "very-high"]

LEVELS: tuple[Level, ...] = ("very-low", "low", "medium", "high", "very-high")


def level(probability: float) -> Level:
    """The fifth of [0, 1] that a probability lies in; one on an edge has the upper one."""
    return LEVELS[min(int(len(LEVELS) * probability), len(LEVELS) - 1)]

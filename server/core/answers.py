"""How much of the scores a caller is told."""

from __future__ import annotations

from typing import Literal

# exact: scores and probabilities as numbers. bands: as one of five levels. verdict: class and verdict only.
Answers = Literal["exact", "bands", "verdict"]

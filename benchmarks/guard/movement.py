"""What might tell a camera that does not move from an attack: how far images and answers move from query to query.

In this process, by the bundled model, without a server: cameras with several levels of noise, Square, the boundary
attack and one that hides in noise, on the same images.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from export.audit.black_box import Answers, Counts, Pixels
from export.audit.model_file import ModelFile

from ..harness.report import bundled_model
from .attackers import attack

NOISES = (0.5, 1.0, 2.0)  # levels, standard deviation


def movement(images: Pixels, labels: Counts, count: int, queries: int) -> list[dict[str, Any]]:
    """A row for each camera and attack: medians over its queries, of those of `count` images that are answered right.

    Args:
        images, labels: of a split.
        queries: frames of a camera; most queries of an attack.
    """
    model = ModelFile(bundled_model() / "model.onnx", threads=1, batch_size=16)
    right = np.flatnonzero(model.run(images[: 4 * count])["logits"].argmax(axis=1) == labels[: 4 * count])[:count]
    rows = []
    for noise in NOISES:
        rng = np.random.default_rng(0)
        frames = [
            np.rint(images[n] + rng.normal(0, noise, (queries, *images[n].shape))).clip(0, 255).astype(np.uint8)
            for n in tqdm(right, desc=f"noise of {noise:g}")
        ]
        rows.append(_row(f"a camera, noise of {noise:g}", [(one, _logits(model, one)) for one in frames]))
    for kind in ("square", "boundary", "estimated"):
        attacks = []
        for n in tqdm(right, desc=kind):
            start = images[next(m for m in right if labels[m] != labels[n])]
            asked = _Asked(lambda tries: _logits(model, tries))
            attack(kind, asked, images[n], int(labels[n]), start, queries, int(n))
            attacks.append((np.concatenate(asked.images), np.concatenate(asked.logits)))
        rows.append(_row(kind, attacks))
    return rows


class _Asked:
    """Answers an attack, and keeps what it asked and was told."""

    def __init__(self, logits: Callable[[Pixels], Any]) -> None:
        self._of = logits
        self.images: list[Pixels] = []
        self.logits: list[Any] = []

    def __call__(self, tries: Pixels) -> Answers:
        self.images.append(tries)
        self.logits.append(self._of(tries))
        return Answers(self.logits[-1], np.zeros(len(tries)), np.ones(len(tries)))

    def close(self) -> None:
        pass


def _logits(model: ModelFile, images: Pixels) -> Any:
    return model.run(images)["logits"].astype(np.float64)


def _row(name: str, attacks: list[tuple[Pixels, Any]]) -> dict[str, Any]:
    """From query to query: how far images (levels, root mean square) and margins move, and how often the class."""
    apart, moved, flips = [], [], []
    for images, logits in attacks:
        if len(images) > 1:
            apart += np.sqrt(np.square(np.diff(images.astype(np.float64), axis=0)).mean(axis=(1, 2, 3))).tolist()
            ordered = np.sort(logits, axis=1)
            moved += np.abs(np.diff(ordered[:, -1] - ordered[:, -2])).tolist()
            flips += (np.diff(logits.argmax(axis=1)) != 0).tolist()
    ends = statistics.quantiles(apart, n=20)
    return {
        "name": name,
        "queries": len(apart),
        "apart": [ends[0], statistics.median(apart), ends[-1]],
        "margin": statistics.median(moved),
        "flips": sum(flips) / len(flips),
    }

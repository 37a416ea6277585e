"""Attacks of a client who sees answers and no gradients: Square on served numbers, a boundary attack on verdicts alone.

Pure numpy on one callable, `Ask`, which is whatever answers: a model file, a server, a toy. An attack has one of two
aims, `AIMS`: a wrong class (`class`), or a wrong class under the threshold at which an image is flagged (`evasion`).
Every image that is asked is an 8-bit image; nothing is rounded afterwards. A query is one image asked once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

AIMS = ("class", "evasion")

Pixels = npt.NDArray[np.uint8]
Levels = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Bits = npt.NDArray[np.bool_]

SIDE_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries, as Square's authors publish it
SEARCH_STEPS = 8  # halvings from 255 levels to 1
AT_ONCE = 2**25  # pixel values of the probes that are made at once: bounds memory
LINE_STEPS = 6  # lengths that are tried along an estimated gradient
KEPT = 0.9  # of the boundary's normal from round to round
FEWEST_PROBES = 10  # an estimate from fewer is noise


class Answers(NamedTuple):
    """What a client is told about n images: logits [n,K] up to a constant a row, score [n], and the score `limit` [n]
    above which the image would be flagged."""

    logits: Floats
    score: Floats
    limit: Floats


Ask = Callable[[Pixels], Answers]


@dataclass(frozen=True)
class Found:
    """What an attack came back with.

    Attributes:
        images: uint8 [N,3,S,S]: the best iterate of each image, the image itself where nothing better was found.
        broken: bool [N]: whether it reaches the aim.
        queries: int64 [N]: queries spent on each.
    """

    images: Pixels
    broken: Bits
    queries: Counts


def margin(answers: Answers, labels: Counts) -> Floats:
    """The best other logit minus that of the right class [n]; positive where the answer is wrong."""
    rows = np.arange(len(labels))
    others = answers.logits.copy()
    others[rows, labels] = -np.inf
    return np.asarray(others.max(axis=1) - answers.logits[rows, labels])


def reached(answers: Answers, labels: Counts, aim: str) -> Bits:
    """Where the aim is reached [n]; a tie of two classes, which a client cannot tell apart, does not count."""
    wrong = np.asarray(margin(answers, labels) > 0)
    return np.asarray(wrong & (answers.score <= answers.limit)) if aim == "evasion" else wrong


def loss(answers: Answers, labels: Counts, aim: str) -> Floats:
    """What Square minimises [n]: less the margin; for `evasion` its positive part plus that of the excess of the score
    over the limit in log-odds, so that neither half is bought with what the other has already reached."""
    of_class = -margin(answers, labels)
    if aim == "class":
        return of_class
    excess = log_odds(answers.score) - log_odds(answers.limit)
    return np.asarray(np.maximum(of_class, 0) + np.maximum(excess, 0))


def log_odds(probability: Floats) -> Floats:
    """log(p / (1 - p)), finite also where six significant digits say 0 or 1."""
    p = np.clip(probability, 1e-12, 1 - 5e-7)
    return np.asarray(np.log(p) - np.log1p(-p))


def square(
    ask: Ask,
    images: Pixels,
    labels: Counts,
    aim: str,
    *,
    eps: int,
    queries: int,
    rng: np.random.Generator,
    share: float = 0.8,
) -> Found:
    """Square attack, L-infinity (Andriushchenko et al. 2020, arXiv 1912.00049, algorithm 1 and 2): random search whose
    proposals set a square of the image to the faces of the ball.

    The first query asks the image itself, the second vertical stripes; a proposal is kept where the loss does not
    rise. All images that stand are asked together. An image that is broken is left alone.

    Args:
        images: uint8 [N,3,S,S].
        labels: int64 [N], the right classes.
        eps: radius in levels of 8 bits.
        queries: at most so many for each image, 1 or more.
        share: of the image that the first squares cover; 0.8 is what AutoAttack takes (arXiv 2003.01690).
    """
    count, channels, size, _ = images.shape
    wide = images.astype(np.int16)
    faces = np.stack([np.clip(wide - eps, 0, 255), np.clip(wide + eps, 0, 255)]).astype(np.uint8)
    answers = ask(images)
    best, least = images.copy(), loss(answers, labels, aim)
    broken, spent = reached(answers, labels, aim), np.ones(count, np.int64)
    standing = np.flatnonzero(~broken)
    for turn in range(queries - 1):
        if not standing.size:
            break
        current, low, high = best[standing], faces[0][standing], faces[1][standing]
        if turn == 0:
            signs = rng.integers(0, 2, (len(standing), channels, 1, size), np.uint8).astype(bool)
            tries = np.where(signs, high, low)
        else:
            tries = _with_squares(current, low, high, _side(share, turn / queries, size), rng)
        answers = ask(tries)
        spent[standing] += 1
        lower = loss(answers, labels[standing], aim)
        won = reached(answers, labels[standing], aim)
        kept = won | (lower <= least[standing])
        best[standing[kept]], least[standing[kept]] = tries[kept], lower[kept]
        broken[standing] = won
        standing = standing[~won]
    return Found(best, broken, spent)


def _side(share: float, progress: float, size: int) -> int:
    """Side of the squares in pixels, when `progress` of the queries are spent."""
    halvings = int(np.searchsorted(SIDE_HALVINGS, progress * 10_000))
    return max(1, min(size, round(size * math.sqrt(share / 2**halvings))))


def _with_squares(current: Pixels, low: Pixels, high: Pixels, side: int, rng: np.random.Generator) -> Pixels:
    """A square of each image set to one face of the ball a channel; never the image that it was."""
    count, channels, size, _ = current.shape
    corner = rng.integers(0, size - side + 1, (2, count, 1))
    rows, columns = corner + np.arange(side)
    place = (
        np.arange(count)[:, None, None, None],
        np.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    )
    signs = rng.integers(0, 2, (count, channels, 1, 1), np.uint8).astype(bool)
    tries = current.copy()
    tries[place] = np.where(signs, high[place], low[place])
    same = (tries == current).all(axis=(1, 2, 3))
    signs[same] = ~signs[same]
    tries[place] = np.where(signs, high[place], low[place])
    return tries


def boundary(
    ask: Ask,
    images: Pixels,
    labels: Counts,
    aim: str,
    *,
    queries: int,
    rng: np.random.Generator,
    probes: int = 50,
    reach: int = 2,
) -> Found:
    """A decision-based attack that looks for the nearest image, L-infinity, that reaches the aim: HopSkipJump (Chen et
    al. 2020, arXiv 1904.02144) after the boundary attack (Brendel et al. 2018, arXiv 1712.04248), among 8-bit images.

    It sees whether the aim is reached and nothing else: class and verdict. It starts at the nearest of the other
    images that is answered with another class than the right one (and, for `evasion`, is not flagged), halves the
    radius to it, estimates the boundary's normal from random signs, steps along its sign and halves again; radii are
    whole levels. An image without such a start, or none that stands, spends one query. Two things differ from the
    paper, because values are whole levels: probes change every value by `reach` levels, and the lengths of a step are
    asked together.

    Args:
        images, labels, queries: as `square`; the attacked images are each other's starts.
        probes: random signs in the first round; their number grows with the root of the round.

    Returns:
        `broken` is true where any image that reaches the aim was found, at whatever distance (see `distances`).
    """
    count = len(images)
    answers = ask(images)
    broken, spent = reached(answers, labels, aim), np.ones(count, np.int64)
    starts = _starts(images, labels, answers, aim)
    rows, found = np.flatnonzero(~broken & (starts >= 0)), images.copy()
    broken[rows] = True
    groups = -(-len(rows) * probes * images[0].size // AT_ONCE)
    for group in np.array_split(rows, groups) if groups else []:
        walk = _walk(ask, images[group], labels[group], images[starts[group]], aim, queries - 1, rng, probes, reach)
        found[group], used = walk
        spent[group] += used
    return Found(found, broken, spent)


def _walk(
    ask: Ask,
    images: Pixels,
    labels: Counts,
    starts: Pixels,
    aim: str,
    queries: int,
    rng: np.random.Generator,
    probes: int,
    reach: int,
) -> tuple[Pixels, int]:
    """`boundary` for images that have a start: the nearest images that reach the aim, and queries spent on each."""

    def wins(tries: Pixels) -> Bits:
        """Whether tries [n,m,3,S,S] reach the aim of their image: bool [n,m]."""
        each = tries.shape[1]
        return reached(ask(tries.reshape(-1, *tries.shape[2:])), np.repeat(labels, each), aim).reshape(-1, each)

    if queries < SEARCH_STEPS:
        return starts, 0
    x = images.astype(np.int16)
    z = _nearer(wins, x, starts)
    left, turn, normal = queries - SEARCH_STEPS, 1, np.zeros(x.shape)
    while (signs := min(int(probes * turn**0.5), left - LINE_STEPS - SEARCH_STEPS)) >= FEWEST_PROBES:
        changes = rng.integers(0, 2, (len(x), signs, *x.shape[1:]), np.int8) * 2 - 1
        inside = wins(np.clip(z[:, None].astype(np.int16) + reach * changes, 0, 255).astype(np.uint8))
        weight = inside - np.mean(inside, axis=1, keepdims=True)
        normal = KEPT * normal + np.einsum("nm,nmchw->nchw", weight, changes)
        furthest = _distance(x, z) / turn**0.5
        lengths = np.maximum(1, furthest[:, None] / 2.0 ** np.arange(LINE_STEPS)).astype(np.int16)
        steps = z[:, None] + lengths[:, :, None, None, None] * np.sign(normal).astype(np.int16)[:, None]
        line = np.clip(steps, 0, 255).astype(np.uint8)
        won = wins(line)
        stepped = _where(won.any(axis=1), line[np.arange(len(x)), won.argmax(axis=1)], z)
        nearer = _nearer(wins, x, stepped)
        z = _where(_distance(x, nearer) <= _distance(x, z), nearer, z)
        left -= signs + LINE_STEPS + SEARCH_STEPS
        turn += 1
    return z, queries - left


def distances(images: Pixels, found: Pixels) -> tuple[Floats, Floats]:
    """L-infinity in levels and L2 of pixels in [0,1], each [N]."""
    difference = found.astype(np.float64) - images
    flat = np.abs(difference).reshape(len(images), -1)
    return flat.max(axis=1), np.asarray(np.linalg.norm(flat / 255, axis=1))


def _starts(images: Pixels, labels: Counts, answers: Answers, aim: str) -> Counts:
    """For each image the nearest (L2) of all that reaches its aim as it is; -1 where none does."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    square_norms = (flat**2).sum(axis=1)
    nearest = np.full(len(images), -1, np.int64)
    for n in range(len(images)):
        usable = reached(answers, np.full(len(images), labels[n]), aim)
        if usable.any():
            apart = np.where(usable, square_norms - 2 * flat @ flat[n], np.inf)
            nearest[n] = int(apart.argmin())
    return nearest


def _nearer(wins: Callable[[Pixels], Bits], x: Levels, z: Pixels) -> Pixels:
    """Images that reach the aim, z [n,3,S,S], clipped into the smallest ball around x that a bisection finds."""
    high = _distance(x, z)
    low = np.zeros_like(high)
    for _ in range(SEARCH_STEPS):
        middle = (low + high) // 2
        radius = middle[:, None, None, None]
        tries = np.clip(z, x - radius, x + radius).astype(np.uint8)
        won = wins(tries[:, None])[:, 0]
        z = _where(won, tries, z)
        high, low = np.where(won, middle, high), np.where(won, low, middle)
    return z


def _distance(x: Levels, z: Pixels) -> Levels:
    """L-infinity in levels [n]."""
    apart: Levels = np.abs(z.astype(np.int16) - x).max(axis=(1, 2, 3))
    return apart


def _where(chosen: npt.ArrayLike, these: Pixels, others: Pixels) -> Pixels:
    """Image by image: chosen bool [n]."""
    return np.where(np.reshape(chosen, (-1, 1, 1, 1)), these, others)

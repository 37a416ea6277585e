"""A domain of one's own: thresholds and ranges drawn from natural images, and what they flag on others.

Half of the images, by the hash of their bytes, set the ranges and thresholds; the other half says what they flag.
Each image counts as it is, as a JPEG of quality 75, and at half its size: images that arrive are re-encoded and
scaled on the way. A threshold is that of the kind which needs the highest, so that no kind is flagged more often than
the rate says.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from domain.ranges import pristine_ranges
from domain.shares import enough_for, least_for, wilson
from domain.statistics import STATISTICS, measure
from server.core.domains import RATE_POINTS, locate, read_domains
from server.core.images import Traits

NAME = "site"
AS_IT_IS, JPEG, HALF = "as it is", "jpeg", "half size"
KINDS = (AS_IT_IS, JPEG, HALF)
JPEG_QUALITY = 75
BALL = 8  # grey levels that an attack may move a pixel by; the ranges hold its corners, or attacks would leave them
LEAST = least_for(0.01)  # images of a half: the largest of fewer is no threshold for 1 %
BINS = 50


class SiteError(ValueError):
    """Nothing can be calibrated on these images."""


@dataclass(frozen=True)
class Seen:
    """What a model makes of one image in one of its `KINDS`: score, traits, and statistics in the ball's corner."""

    digest: str
    kind: str
    score: float
    traits: Traits
    corner: Mapping[str, float]

    @property
    def checks(self) -> bool:
        """Of the half that says what is flagged: a coin that the image's hash throws."""
        return int(self.digest[:8], 16) % 2 == 1


def alone(data: bytes) -> Iterator[tuple[str, bytes]]:
    """An image in the one kind in which it came."""
    yield AS_IT_IS, data


def variants(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(kind, encoded) of one image. Raises OSError where Pillow cannot read it."""
    yield AS_IT_IS, data
    with Image.open(io.BytesIO(data)) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    yield JPEG, _encoded(image, "JPEG", quality=JPEG_QUALITY)
    half = (max(8, image.width // 2), max(8, image.height // 2))
    yield HALF, _encoded(image.resize(half, Image.Resampling.BILINEAR), "PNG")


def corner(pixels: NDArray[np.uint8], digest: str) -> dict[str, float]:
    """Statistics of pixels [3,S,S] moved to a random corner of the ball, the same one for the same image."""
    signs = np.random.default_rng(int(digest[:16], 16)).choice(np.array([-BALL, BALL], np.int16), pixels.shape)
    return measure(np.clip(pixels.astype(np.int16) + signs, 0, 255).astype(np.uint8))


def usable(seen: Sequence[Seen]) -> list[Seen]:
    """Those whose file may have thresholds at all: palettes have none."""
    return [one for one in seen if one.traits.unusual is None]


def domain(seen: Sequence[Seen], contract: Mapping[str, Any]) -> dict[str, Any]:
    """The domain as JSON, without its rates, for a model with this contract.

    Raises:
        SiteError: too few images, or a contract without domains.
    """
    if contract["schema_version"] < 2:
        raise SiteError("the model's contract is of schema 1, without domains: export its checkpoint again")
    fitted = usable([one for one in seen if not one.checks])
    for half, images in (("calibrate on", fitted), ("check on", usable([one for one in seen if one.checks]))):
        count = len({one.digest for one in images})
        if count < LEAST:
            raise SiteError(
                f"{count} different images to {half}, and a threshold for 1 % needs {LEAST}: give at least 250 in all, "
                f"which know the rate roughly; {2 * enough_for(0.01)} know it within a factor of two"
            )
    fprs = {point: contract["thresholds"][point]["fpr"] for point in RATE_POINTS}
    scores = {kind: np.sort([one.score for one in fitted if one.kind == kind]) for kind in KINDS}
    thresholds = {point: {"score": max(map(quantile(fpr), scores.values())), "fpr": fpr} for point, fpr in fprs.items()}
    rows = np.array([[one.traits.statistics[name] for name in STATISTICS] for one in fitted])
    corners = np.array([[one.corner[name] for name in STATISTICS] for one in fitted])
    counts, edges = np.histogram(np.concatenate(list(scores.values())), BINS, (0.0, 1.0))
    return {
        "name": NAME,
        "about": "natural images of this site, also as JPEG and at half their size",
        "ranges": {name: list(ends) for name, ends in pristine_ranges(rows, [corners]).items()},
        "thresholds": thresholds,
        "images": len({one.digest for one in fitted}),
        "kinds": list(KINDS),
        "score_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        # Natural images alone cannot make one: that of the domain that most of them lay in before.
        "score_map": _usual(fitted, contract)["score_map"],
        "rates": {},
    }


def _usual(seen: Sequence[Seen], contract: Mapping[str, Any]) -> dict[str, Any]:
    """The domain that most of the images lie in."""
    domains = read_domains(contract["domains"])
    names = [locate(domains, one.traits)[0].name for one in seen]
    name = max(set(names), key=names.count)
    return next(part for part in contract["domains"] if part["name"] == name)


def by_kind(seen: Sequence[Seen]) -> dict[str, list[float]]:
    """The scores of all images, a kind."""
    return {kind: [one.score for one in seen if one.kind == kind] for kind in KINDS}


def usual_thresholds(seen: Sequence[Seen], contract: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The thresholds that a contract applies to most of the images."""
    return _usual(seen, contract)["thresholds"]  # type: ignore[no-any-return]


def quantile(fpr: float) -> Any:
    """Sorted scores -> the least of them that at most a share `fpr` of further ones exceeds, on average (conformal)."""
    return lambda ordered: float(ordered[min(len(ordered), math.ceil((len(ordered) + 1) * (1 - fpr))) - 1])


def uncertain(ordered: NDArray[np.float64], fpr: float) -> list[float]:
    """[low, high] of a threshold: the scores between which it lies for as many other images, nearly always."""
    _, low, high = wilson(fpr * len(ordered), len(ordered))
    return [quantile(high)(ordered), quantile(low)(ordered)]


def with_site(contract: Mapping[str, Any], site: Mapping[str, Any]) -> dict[str, Any]:
    """The contract with the domain in front of the others, in place of an earlier one of its name."""
    return {**contract, "domains": [site, *(d for d in contract["domains"] if d["name"] != NAME)]}


def flagged(seen: Sequence[Seen], contract: Mapping[str, Any]) -> dict[str, Any]:
    """What a contract says of images: how many, how many it speaks for, and the share that is flagged at each
    operating point as [share, low, high]."""
    domains = read_domains(contract["domains"])
    located = [locate(domains, one.traits) for one in seen]
    found: dict[str, Any] = {"images": len(seen), "calibrated": sum(why is None for _, why in located)}
    for point in RATE_POINTS:
        over = sum(
            one.score > getattr(applied.thresholds, point).score
            for one, (applied, _) in zip(seen, located, strict=True)
        )
        found[point] = wilson(over, len(seen))
    return found


def checked(seen: Sequence[Seen], kind: str) -> list[Seen]:
    """The half that says what is flagged, of one kind."""
    return [one for one in seen if one.checks and one.kind == kind]


def rates(found: Mapping[str, Any]) -> dict[str, Any]:
    """`flagged` in the form in which a contract has rates."""
    worst = max((JPEG, HALF), key=lambda kind: found[kind]["suspicious"][0])
    return {
        "fpr_pristine": {point: found[AS_IT_IS][point] for point in RATE_POINTS},
        "fpr_worst": {"kind": worst, "strength": 1, **{point: found[worst][point] for point in RATE_POINTS}},
    }


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()

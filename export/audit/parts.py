"""The parts of the audit: each a function of a model file and images that returns figures, as JSON holds them.

Shares are [value, low, high] with the 95 % Wilson interval.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from tqdm import tqdm

from domain.corruptions import CORRUPTIONS, STRENGTHS
from domain.shares import wilson

from . import black_box
from .image_sets import ImageSet
from .model_file import OUTSIDE, ModelFile, Served

RADII = (2, 4, 8, 16)  # levels of 8 bits

Part = dict[str, Any]


def golden(model: ModelFile) -> Part:
    """The contract's golden inputs through the file: largest difference from the golden outputs, and the tolerance."""
    outputs = model.run(model.golden.image)
    differences = {name: float(np.abs(outputs[name] - right).max()) for name, right in model.golden.outputs.items()}
    return {
        "images": len(model.golden.image),
        "holds": all(differences[name] <= allowed for name, allowed in model.golden.tolerance.items()),
        "differences": {name: value if np.isfinite(value) else None for name, value in differences.items()},
        "tolerance": dict(model.golden.tolerance),
        "onnxruntime": ort.__version__,
    }


def natural(model: ModelFile, images: ImageSet) -> Part:
    """Images that nobody attacked: what is flagged here is a false positive."""
    return judged(model, model.serve(images.images), images.labels)


def judged(model: ModelFile, served: Served, labels: npt.NDArray[np.int64] | None) -> Part:
    """Share flagged at both thresholds, share outside the domains (None where they have no ranges), accuracy where the
    classes are known."""
    names = {n: domain.name for n, domain in enumerate(model.domains)}
    numbers = served.domain.tolist()
    part: Part = {"images": len(numbers)}
    if labels is not None:
        part["accuracy"] = share(served.logits.argmax(axis=1) == labels)
    part["flagged"] = {
        "suspicious": share(served.score > served.suspicious),
        "adversarial": share(served.score > served.adversarial),
    }
    part["outside"] = share(served.domain == OUTSIDE) if model.has_ranges else None
    part["domains"] = {name: numbers.count(n) for n, name in names.items()}
    return part


def transferred(model: ModelFile, images: ImageSet) -> Part:
    """A T0 file: its adversarial images, the natural ones beside them, and the AUROC of the score between the two."""
    assert images.adversarial is not None
    natural, adversarial = model.serve(images.images), model.serve(images.adversarial)
    return {
        "about": images.about,
        **judged(model, adversarial, images.labels),
        "auroc": auroc(natural.score, adversarial.score),
        "natural": judged(model, natural, images.labels),
    }


def corrupted(model: ModelFile, images: ImageSet, name: str, seed: int) -> Part:
    """One corruption at every strength; what is flagged here is a false positive."""
    corruption = CORRUPTIONS[name]
    strengths = {
        str(strength): judged(model, model.serve(corruption.apply(images.images, strength, seed)), images.labels)
        for strength in STRENGTHS
    }
    return {"title": corruption.title, "group": corruption.group, "strengths": strengths}


def attacked(
    model: ModelFile, images: ImageSet, name: str, aim: str, eps: int | None, queries: int, rng: np.random.Generator
) -> Part:
    """A black-box attack: `reached` is the share of images on which it reaches its aim, errors without it included.

    Square (with `eps`) is judged at its end: accuracy and shares flagged are those of its images, reached or not. The
    boundary attack (without) looks for the nearest image at whatever distance, so `reached` is by radius. `successes`
    are the images with which either reaches the aim.
    """
    labels = images.labels
    assert labels is not None
    with tqdm(total=len(labels) * queries, desc=name, unit="query", leave=False) as bar:

        def ask(tries: npt.NDArray[np.uint8]) -> black_box.Answers:
            served = model.serve(tries)
            bar.update(len(tries))
            return black_box.Answers(served.logits, served.score, served.suspicious)

        if eps is None:
            found = black_box.boundary(ask, images.images, labels, aim, queries=queries, rng=rng)
        else:
            found = black_box.square(ask, images.images, labels, aim, eps=eps, queries=queries, rng=rng)
    levels, l2 = black_box.distances(images.images, found.images)
    served = model.serve(found.images)
    part: Part = {"images": len(labels), "aim": aim, "queries": queries, "asked": int(found.queries.sum())}
    if eps is None:
        part["reached"] = {str(radius): share(found.broken & (levels <= radius)) for radius in RADII}
    else:
        part |= {"eps": eps, "reached": share(found.broken), "median_queries": _median(found.queries[found.broken])}
        part |= judged(model, served, labels)
    part |= {"median_linf": _median(levels[found.broken]), "median_l2": _median(l2[found.broken])}
    if found.broken.any():
        part["successes"] = judged(model, served.of(found.broken), None)
    return part


def _median(values: npt.NDArray[Any]) -> float | None:
    return float(np.median(values)) if len(values) else None


def share(bits: npt.NDArray[np.bool_]) -> list[float]:
    """The share of true ones with its 95 % Wilson interval: [value, low, high]."""
    return [round(value, 6) for value in wilson(int(bits.sum()), len(bits))]


def auroc(natural: npt.NDArray[np.float64], adversarial: npt.NDArray[np.float64]) -> float:
    """Share of pairs in which the adversarial image scores higher; ties count half."""
    ranked = np.sort(natural)
    below = np.searchsorted(ranked, adversarial, "left") + np.searchsorted(ranked, adversarial, "right")
    return float(below.mean() / (2 * len(ranked)))

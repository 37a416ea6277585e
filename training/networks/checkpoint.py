"""Checkpoints: a file <-> a network and everything needed to rebuild, judge and export it.

A checkpoint is one `torch.save` of plain containers and tensors, so it loads with `weights_only=True` and
runs no code of whoever made it. Two kinds of network exist, `awnet` and `static`; the config inside rebuilds
either. Weights of published checkpoints may be stored in float16; they load as float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import files
from ..data.sets import Source
from .awnet import AWNet, AWNetConfig
from .baselines import StaticConfig, build_static
from .network import Network

FORMAT = 1


class CheckpointError(ValueError):
    """The file is not a checkpoint that this version understands."""


@dataclasses.dataclass(frozen=True)
class Domain:
    """Natural images that have thresholds of their own: which they are, and what the detector says of them.

    Attributes:
        name, about: what it is called, and one line for people.
        kinds: of images, "pristine" or names of `domain.corruptions`.
        images: how many images were scored.
        ranges: statistic of `domain.statistics` -> (lowest, highest) value inside.
        thresholds, histogram_edges, histogram_counts: as `Calibration`'s, of the images inside.
        map_scores, map_probabilities: P(attacked) at the prior `map_prior`, piecewise linear in the score, both rising.
        rates: false- and true-positive rates at the thresholds, [value, low, high] each.
    """

    name: str
    about: str
    kinds: list[str]
    images: int
    ranges: dict[str, tuple[float, float]]
    thresholds: dict[float, float]
    histogram_edges: list[float]
    histogram_counts: list[int]
    map_scores: list[float]
    map_probabilities: list[float]
    map_prior: float = 0.5
    rates: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Statistics of the detector on natural validation images; all scores are P_type[:, 0].

    Attributes:
        images: how many clean validation images were scored.
        thresholds: false-positive rate -> score; a clean image scores above it that often.
        histogram_edges: [B+1] ascending, the first 0 and the last 1.
        histogram_counts: [B] images per bin.
        omega_mean, omega_std: [sum of c_out] float32, per channel over those images.
        domains: in the order in which an image is tried on them; none in checkpoints that know pristine images only.
    """

    images: int
    thresholds: dict[float, float]
    histogram_edges: list[float]
    histogram_counts: list[int]
    omega_mean: Tensor
    omega_std: Tensor
    domains: list[Domain] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Checkpoint:
    """A loaded checkpoint; `network` is in evaluation mode, float32, on the requested device."""

    network: Network
    kind: str
    labels: list[str]
    recipe: dict[str, Any]
    metrics: dict[str, Any]
    calibration: Calibration | None
    provenance: dict[str, str]

    @property
    def source(self) -> Source:
        """The images that it was trained on: CIFAR-10 where it does not say."""
        return Source.of(self.recipe.get("data", {}), self.labels)

    @property
    def awnet(self) -> AWNet:
        """The network as an AW-Net; CheckpointError where it is a static one."""
        if not isinstance(self.network, AWNet):
            raise CheckpointError(f"this needs an AW-Net, and the checkpoint holds a {self.kind} network")
        return self.network


def pack(
    network: Network,
    *,
    labels: list[str],
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
    provenance: Mapping[str, str] | None = None,
    half: bool = False,
) -> dict[str, Any]:
    """The document that `save` writes. `half` stores matrices and filters in float16.

    Batch-norm statistics, biases and temperatures stay float32: they are few, and a small variance would
    leave float16's range.
    """
    config = network.config
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    if half:
        state = {k: v.half() if v.is_floating_point() and v.dim() > 1 else v for k, v in state.items()}
    return {
        "format": FORMAT,
        "kind": network.kind,
        "config": dataclasses.asdict(config),
        "state": state,
        "labels": list(labels),
        "recipe": dict(recipe),
        "metrics": dict(metrics or {}),
        "calibration": None if calibration is None else dataclasses.asdict(calibration),
        "provenance": dict(provenance or {}),
    }


def save(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document of `pack` atomically."""
    files.save(path, dict(document))


def read(path: Path) -> dict[str, Any]:
    """The raw document; FileNotFoundError or CheckpointError, each naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a damaged archive
        raise CheckpointError(
            f"{path} is not a readable checkpoint: no file of torch's, or a damaged one; a checkpoint is the best.pt "
            "that a training writes"
        ) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of format {FORMAT}")
    return document


def load(path: Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Rebuild the network of a checkpoint; see `read` for the errors."""
    document = read(path)
    if document["kind"] == "run":
        raise CheckpointError(f"{path} is a run to resume, not a network to use: take the best.pt beside it")
    build = BUILDERS.get(document["kind"])
    if build is None:
        raise CheckpointError(f"{path} holds a network of unknown kind {document['kind']!r}")
    try:
        network = build(document["config"])
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in document["state"].items()})
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit the network it names: {error}") from error
    calibration = document["calibration"]
    return Checkpoint(
        network=network.to(device).eval(),
        kind=document["kind"],
        labels=document["labels"],
        recipe=document["recipe"],
        metrics=document["metrics"],
        calibration=None if calibration is None else _calibration(calibration),
        provenance=document["provenance"],
    )


def _calibration(fields: dict[str, Any]) -> Calibration:
    domains = [
        Domain(**{**part, "ranges": {name: (low, high) for name, (low, high) in part["ranges"].items()}})
        for part in fields.get("domains", [])
    ]
    return Calibration(**{**fields, "domains": domains})


def _awnet(config: dict[str, Any]) -> AWNet:
    return AWNet(AWNetConfig(**{**config, "mean": tuple(config["mean"]), "std": tuple(config["std"])}))


BUILDERS: dict[str, Callable[[dict[str, Any]], Network]] = {
    "awnet": _awnet,
    "static": lambda config: build_static(StaticConfig(**config)),
}

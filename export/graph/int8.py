"""Convolutions in 8-bit integers, and the proof that the model still answers as the network does.

Only the classifying sub-network is quantised, without its stem, which is a three-hundredth of the work. The detector
stays in float32: quantised, it moves the scores of single images by tenths (`benchmarks/results/precisions.md`), and
beside a trunk of the paper's width it costs little. So scores, verdicts, omega and every figure of the detector are
those of the network, and thresholds stay valid; parity proves it with its usual limits. What changes is the logits,
and `judge` measures how much.

Weights have seven bits: then the sums of two products that AVX2 makes in 16 bits cannot overflow, and a file gives
the same answers on CPUs with VNNI and without.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor

from domain.corruptions import CORRUPTIONS, STRENGTHS

from . import parity
from .graph import MODES
from .source import AWNet

if TYPE_CHECKING:
    from .source import Split

RANGE_IMAGES = 256  # of the training split, whose activations set the ranges of 8 bits
NATURAL_IMAGES = 1000  # of the validation split; a fifth as many corrupted, a tenth attacked
BATCH = 32
# Least share of images whose class is the network's, by group, and how many of them more may be wrong.
LEAST_SAME = {"natural": 0.98, "corrupted": 0.96, "attacked": 0.96}
MOST_LOST = 0.005
# Of the class outputs. A rounding that falls to the other side on another CPU moves them; half of it at most here.
GOLDEN_TOLERANCE = 0.1

Array = npt.NDArray[Any]


class PrecisionError(RuntimeError):
    """The quantised model answers too differently; it must not be published."""


@dataclass(frozen=True)
class Judgement:
    """What 8 bits change. `same`: class output -> group -> share of images with the network's class.

    accuracy: of the network and of the model in mode auto, on natural images. spread: the largest difference of a class
    output between ONNX Runtime's integer kernels and the same model computed in float32, on attacked images.
    """

    images: Mapping[str, int]
    same: Mapping[str, Mapping[str, float]]
    accuracy: tuple[float, float]
    spread: float

    def __str__(self) -> str:
        groups = ", ".join(f"{count} {group}" for group, count in self.images.items())
        same = "; ".join(
            f"{name} " + ", ".join(f"{share:.2%} {group}" for group, share in shares.items())
            for name, shares in self.same.items()
        )
        before, after = self.accuracy
        return (
            f"int8 on {groups} images: same class as in float32: {same}; accuracy {before:.2%} -> {after:.2%}; "
            f"engines differ by up to {self.spread:.3f}"
        )


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime.quantization is untyped
    def __init__(self, images: Tensor) -> None:
        self._batches = iter(torch.split(images, BATCH))

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch.numpy()}


def trunk_convolutions(model: onnx.ModelProto) -> list[str]:
    """The convolutions that are quantised: those of every pass of the trunk, without the stem."""
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and node.name != "stem" and not node.name.startswith("extractor.")
    ]


def quantised(model: onnx.ModelProto, images: Tensor, convolutions: Sequence[str] | None = None) -> onnx.ModelProto:
    """The model of `graph.build(..., blocked=False)` with convolutions between QuantizeLinear and DequantizeLinear.

    Args:
        images: natural images uint8 [n,3,H,W], not of the validation or test split; their activations set the ranges.
        convolutions: names of nodes; `trunk_convolutions` where None.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, written = Path(folder) / "int8.onnx", Path(folder) / "float32.onnx"
        onnx.save(model, written)  # a model in memory would come back with its weights in a file
        quantize_static(
            written,
            path,
            _Batches(images[:RANGE_IMAGES]),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_quantize=list(trunk_convolutions(model) if convolutions is None else convolutions),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,  # with signed ones AVX2 is slower than in float32
            weight_type=QuantType.QInt8,
        )
        made = onnx.load(path)
    made.producer_name = model.producer_name
    del made.metadata_props[:], made.graph.value_info[:]
    return made


def judge(net: AWNet, model: onnx.ModelProto, validation: Split) -> Judgement:
    """How the quantised `model` of `net` answers on validation images: natural, corrupted, attacked.

    Corruptions are those of the training group, attacks those of parity, on the network itself.

    Raises:
        PrecisionError: a class differs too often, or too much accuracy is lost; all figures are told.
    """
    natural = validation.head(NATURAL_IMAGES)
    groups = {
        "natural": natural.images,
        "corrupted": corrupted(validation.images[-NATURAL_IMAGES // 5 :]),
        "attacked": parity.attacked(net, natural.images[: NATURAL_IMAGES // 10]),
    }
    names = [output.name for output in model.graph.output if output.name in MODES.values()]
    wanted = {group: parity.answers(net, images, names) for group, images in groups.items()}
    got = {group: answers(model, images) for group, images in groups.items()}
    same = {
        name: {group: float((wanted[group][name].argmax(1) == got[group][name].argmax(1)).mean()) for group in groups}
        for name in names
    }
    before, after = (
        float((found["natural"]["logits"].argmax(1) == natural.labels.numpy()).mean()) for found in (wanted, got)
    )
    plain = answers(model, groups["attacked"], optimised=False)
    spread = max(float(np.abs(plain[name] - got["attacked"][name]).max()) for name in names)
    found = Judgement({group: len(images) for group, images in groups.items()}, same, (before, after), spread)
    wrong = [
        f"{name} {share:.2%} on {group} images (at least {LEAST_SAME[group]:.0%})"
        for name, shares in same.items()
        for group, share in shares.items()
        if share < LEAST_SAME[group]
    ]
    if after < before - MOST_LOST:
        wrong.append(f"accuracy (at most {MOST_LOST:.1%} lost)")
    if wrong:
        raise PrecisionError(f"8 bits change too much, so nothing is published: {', '.join(wrong)}. {found}")
    return found


def golden(model: onnx.ModelProto, probes: Mapping[str, Tensor], count: int) -> Tensor:
    """The `count` images of each group on which engines agree best: uint8 [groups * count,3,H,W].

    Golden logits are compared on other CPUs. What may differ there is which way a number between two integers is
    rounded, and it is as close to the middle here: the integer kernels against the same nodes in float32.

    Raises:
        PrecisionError: on one of them engines differ by more than half of `GOLDEN_TOLERANCE`.
    """
    chosen = []
    for group, images in probes.items():
        ours, plain = (answers(model, images, optimised=optimised) for optimised in (True, False))
        apart = np.max([np.abs(ours[name] - plain[name]).max(1) for name in MODES.values() if name in ours], axis=0)
        best = np.sort(np.argsort(apart, kind="stable")[:count])
        if (worst := float(apart[best].max())) > GOLDEN_TOLERANCE / 2:
            raise PrecisionError(
                f"8 bits change too much, so nothing is published: engines differ by {worst:.3f} on each choice of "
                f"{count} golden images from {len(images)} {group} ones (at most {GOLDEN_TOLERANCE / 2})"
            )
        chosen.append(images[torch.from_numpy(best)])
    return torch.cat(chosen)


def answers(model: onnx.ModelProto, images: Tensor, *, optimised: bool = True) -> dict[str, Array]:
    """All outputs of the model for uint8 [n,3,H,W]; not `optimised`, its quantised nodes are computed in float32."""
    session = parity.session(model.SerializeToString(), optimised=optimised)
    names = [output.name for output in session.get_outputs()]
    parts = [session.run(names, {"image": batch.numpy()}) for batch in torch.split(images, BATCH)]
    return {name: np.concatenate([part[k] for part in parts]) for k, name in enumerate(names)}


def corrupted(images: Tensor) -> Tensor:
    """Every image under one kind of the training group at one strength, in turn."""
    kinds = [kind for kind in CORRUPTIONS.values() if kind.group == "training"]
    changed = [
        kinds[n % len(kinds)].apply(image[None], STRENGTHS[n % len(STRENGTHS)])
        for n, image in enumerate(images.cpu().numpy())
    ]
    return torch.from_numpy(np.concatenate(changed))

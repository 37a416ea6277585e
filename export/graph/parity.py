"""Proof before publication: onnxruntime and torch must give the same answers, on images chosen to make them differ.

The inputs are made by a seeded program, so the proof needs no data set: flat fields, noise, gradients,
textures, the drawings in `examples/` where there are any, and all of these attacked on the spot, rounded to the
8 bits that a server receives. Attacked inputs matter: they sit where P_type turns, and so do rounding errors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from PIL import Image
from torch import Tensor

from .graph import BRANCHES
from .source import AWNet, Budget, cw_inf, fgsm, pgd_sat, quantise

if TYPE_CHECKING:
    from .source import Split

# Largest absolute difference allowed between torch in float32 and onnxruntime.
TOLERANCE = {"logits": 1e-4, "p_type": 1e-5, "omega": 1e-4, "logits_adv": 1e-4, "logits_nat": 1e-4}
SEED = 17
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEST_IMAGES = 256  # of a data set given; the first eighth of them is attacked too
# Three steps of 4/255 are enough: the images need to be where P_type turns, not as bad as they can be.
ATTACKS = {
    "fgsm": (fgsm, Budget(steps=1)),
    "pgd_sat": (pgd_sat, Budget(steps=3, step=4 / 255)),
    "cw_inf": (cw_inf, Budget(steps=3, step=4 / 255)),
}

Array = npt.NDArray[Any]


class ParityError(RuntimeError):
    """The exported graph does not compute what the network computes; it must not be published."""


@dataclass(frozen=True)
class ParityReport:
    """What was compared; `worst` is the largest absolute difference of each output."""

    images: Mapping[str, int]
    worst: Mapping[str, float]

    def __str__(self) -> str:
        groups = ", ".join(f"{count} {group}" for group, count in self.images.items())
        worst = ", ".join(f"{name} {value:.1e} (limit {TOLERANCE[name]:.0e})" for name, value in self.worst.items())
        return f"parity on {groups}: {worst}"


def prove(
    net: AWNet, model: bytes, groups: Mapping[str, Tensor], limits: Mapping[str, float] = TOLERANCE
) -> ParityReport:
    """Compare `net` and every output of the serialised ONNX `model` on uint8 images [n,3,H,W], by group.

    Every group runs as one batch, in batches of 3 (with a shorter last one) and, its first images, one by one.

    Args:
        limits: largest difference by output; of an output that is not there only form and finiteness are held.

    Raises:
        ParityError: an output is further off than its limit, is not finite, or has another shape.
    """
    runtime = session(model)
    outputs = [output.name for output in runtime.get_outputs()]
    if not {"logits", "p_type", "omega"} <= set(outputs) <= set(TOLERANCE):
        raise ParityError(f"the model has the outputs {', '.join(outputs)}, which are not those of an AW-Net")
    worst = {name: 0.0 for name in outputs if name in limits}
    for group, images in groups.items():
        expected = answers(net, images, outputs)
        for size, count in ((len(images), len(images)), (3, min(len(images), 16)), (1, min(len(images), 8))):
            for start in range(0, count, size):
                part = slice(start, min(start + size, count))
                got = runtime.run(outputs, {"image": images[part].numpy()})
                for name, value in zip(outputs, got, strict=True):
                    error = _distance(expected[name][part], value, f"{name} ({group} images, batches of {size})")
                    if name in worst:
                        worst[name] = max(worst[name], error)
        wrong = [
            f"{name} by {error:.3g} (limit {limits[name]:.0e})" for name, error in worst.items() if error > limits[name]
        ]
        if wrong:
            raise ParityError(
                f"onnxruntime and torch differ on {group} images, so nothing is published: " + ", ".join(wrong)
            )
    return ParityReport({group: len(images) for group, images in groups.items()}, worst)


def answers(net: AWNet, images: Tensor, outputs: Collection[str]) -> dict[str, Array]:
    """What torch says in float32: images uint8 [n,3,H,W] -> those outputs of `graph.build` as float32 arrays."""
    parts: dict[str, list[Tensor]] = {name: [] for name in outputs}
    with torch.no_grad():
        for batch in torch.split(images, 64):
            x = batch.float() / 255
            signals = net.detect(x)
            for name, part in parts.items():
                if name == "p_type":
                    part.append(signals.p_type)
                elif name == "omega":
                    part.append(torch.cat(signals.omega, dim=1))
                else:
                    part.append(net.classify(x, signals, BRANCHES.get(name)))
    return {name: torch.cat(part).numpy() for name, part in parts.items()}


def probes(net: AWNet, examples: Path = EXAMPLES) -> dict[str, Tensor]:
    """`clean` and `attacked` images, uint8 [n,3,H,W]; the same for the same network on the same machine."""
    clean = torch.from_numpy(np.stack([*synthetic(net.config.image_size), *_drawings(net.config.image_size, examples)]))
    return {"clean": clean, "attacked": attacked(net, clean)}


def attacked(net: AWNet, images: Tensor) -> Tensor:
    """Each image under one attack of `ATTACKS`, in turn, at 8/255, away from what the network now says; uint8."""
    x = images.float() / 255
    x_adv = x.clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for k, (attack, budget) in enumerate(ATTACKS.values()):
            made = []
            for batch in torch.split(x[k :: len(ATTACKS)], 64):
                with torch.no_grad():
                    y = net(batch).argmax(1)
                made.append(quantise(attack(net, batch, y, budget)))
            x_adv[k :: len(ATTACKS)] = torch.cat(made)
    return (x_adv * 255).round().to(torch.uint8)


def test_images(net: AWNet, split: Split) -> dict[str, Tensor]:
    """Real test images, clean and attacked; ValueError where they have another size than the network's."""
    images = split.images[:TEST_IMAGES]
    if images.shape[-1] != net.config.image_size:
        raise ValueError(f"--data-dir holds images of {images.shape[-1]} px, the network takes {net.config.image_size}")
    return {"test": images, "attacked test": attacked(net, images[: max(1, len(images) // 8)])}


def synthetic(size: int) -> list[Array]:
    """Sixteen seeded pictures, uint8 [3,size,size]: flat, noise, gradients, textures."""
    rng = np.random.default_rng(SEED)
    y, x = np.mgrid[0:size, 0:size] / max(size - 1, 1)
    colours = rng.uniform(0, 1, (16, 2, 3, 1, 1))

    def blend(k: int, weight: Array) -> Array:
        """Between two colours, weight [H,W] in [0,1]."""
        low, high = colours[k]
        return np.asarray(low + (high - low) * weight[None])

    angle = rng.uniform(0, np.pi, 4)
    smooth = rng.uniform(0, 1, (3, 4, 4)).repeat(-(-size // 4), 1).repeat(-(-size // 4), 2)[:, :size, :size]
    pictures = [
        np.zeros((3, size, size)),
        np.ones((3, size, size)),
        rng.uniform(0, 1, (3, size, size)),
        rng.integers(0, 2, (3, size, size)).astype(float),
        0.5 + 0.1 * rng.standard_normal((3, size, size)),
        smooth,
        smooth + 0.05 * rng.standard_normal((3, size, size)),
        blend(7, x),
        blend(8, y),
        blend(9, np.hypot(x - 0.5, y - 0.5) / np.sqrt(0.5)),
        blend(10, (x + y) / 2),
        blend(11, ((x * 8).astype(int) + (y * 8).astype(int)) % 2),
        blend(12, 0.5 + 0.5 * np.sin(30 * (x * np.cos(angle[0]) + y * np.sin(angle[0])))),
        blend(13, 0.5 + 0.5 * np.sin(9 * x + 4 * np.sin(7 * y + angle[1]))),
        blend(14, (np.hypot(x - 0.4, y - 0.6) < 0.3).astype(float)),
        blend(15, 0.5 + 0.5 * np.sin(60 * np.hypot(x - angle[2] / 4, y - angle[3] / 4))),
    ]
    return [(np.clip(picture, 0, 1) * 255).round().astype(np.uint8) for picture in pictures]


def _drawings(size: int, examples: Path) -> list[Array]:
    """The project's example pictures, uint8 [3,size,size]."""
    drawings = []
    for path in sorted(examples.glob("*.png")):
        with Image.open(path) as image:
            picture = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        drawings.append(np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)))
    return drawings


def session(model: bytes, *, optimised: bool = True) -> ort.InferenceSession:
    """ONNX Runtime on the CPU, with as many threads as torch has; not `optimised`, each node as it is written."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _distance(expected: Array, got: Array, what: str) -> float:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise ParityError(f"{what} is {got.dtype} {got.shape}, not {expected.dtype} {expected.shape}")
    if not np.isfinite(got).all():
        raise ParityError(f"{what} is not finite: the model is not published")
    return float(np.abs(got - expected).max())

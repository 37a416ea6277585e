"""All that export takes from training: a checkpoint, the parts of its network, and what parity is proved with.

No other module here imports training, so this lists everything there that a change may break here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from training.attacks.ascent import Budget, quantise
from training.attacks.pgd import cw_inf, fgsm, pgd_sat
from training.awnet import AWNet, ConvMixBN, DynamicBlock, ResNet18Extractor, fold
from training.checkpoint import Calibration, Checkpoint, Domain, load
from training.network import ADVERSARIAL, NATURAL, Branch

if TYPE_CHECKING:
    from training.data import Split

__all__ = [
    "ADVERSARIAL",
    "NATURAL",
    "AWNet",
    "Branch",
    "Budget",
    "Calibration",
    "Checkpoint",
    "ConvMixBN",
    "Domain",
    "DynamicBlock",
    "ResNet18Extractor",
    "Split",
    "cifar10_test_images",
    "cw_inf",
    "fgsm",
    "fold",
    "load",
    "pgd_sat",
    "quantise",
    "training_and_validation",
]


def cifar10_test_images(data_dir: Path) -> Tensor:
    """The test images of CIFAR-10, uint8 [10000,3,32,32]; FileNotFoundError where `data_dir` does not hold them."""
    from training.data import load_cifar10  # torchvision: only who asks for real images needs it

    return load_cifar10(data_dir, download=False).test.images


def training_and_validation(checkpoint: Checkpoint, data_dir: Path) -> tuple[Split, Split]:
    """The splits of the data set that the checkpoint was trained on; errors as `training.data.load_images`."""
    from training.data import load_images

    images = load_images(checkpoint.recipe.get("data", {}).get("set", "cifar10"), data_dir)
    return images.train, images.validation

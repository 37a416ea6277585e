"""All that export takes from training: a checkpoint, the parts of its network, and what parity is proved with.

No other module here imports training, so this lists everything there that a change may break here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from training.attacks.ascent import Budget, quantise
from training.attacks.pgd import cw_inf, fgsm, pgd_sat
from training.networks.awnet import AWNet, ConvMixBN, DynamicBlock, ResNet18Extractor, fold
from training.networks.checkpoint import Calibration, Checkpoint, Domain, load
from training.networks.network import ADVERSARIAL, NATURAL, Branch

if TYPE_CHECKING:
    from training.data.images import ImageSet, Split

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
    "ImageSet",
    "ResNet18Extractor",
    "Split",
    "cw_inf",
    "fgsm",
    "fold",
    "images_of",
    "load",
    "pgd_sat",
    "quantise",
]


def images_of(checkpoint: Checkpoint, data_dir: Path) -> ImageSet:
    """The images that the checkpoint was trained on; errors as `training.data.sets.load_images`."""
    from training.data.sets import load_images  # torchvision: only who asks for real images needs it

    return load_images(checkpoint.source, data_dir)

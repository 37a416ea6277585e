"""Images from elsewhere come in the size of the network, and the same ones every time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_sample_images

from training.evaluation.pictures import PICTURES, photographs, scaled


def test_crops_of_photographs_are_their_pixels() -> None:
    """Each crop is found in one of the two photographs; none comes twice; a smaller limit takes the first ones."""
    crops = photographs(1000)
    assert crops.dtype == torch.uint8 and crops.shape == (520, 3, 32, 32)
    assert len({crop.numpy().tobytes() for crop in crops}) == 520
    assert torch.equal(photographs(7), crops[:7])
    temple, flower = (torch.from_numpy(p.copy()).permute(2, 0, 1) for p in load_sample_images().images)
    tiles = torch.cat(
        [p.unfold(1, 32, 32).unfold(2, 32, 32).permute(1, 2, 0, 3, 4).flatten(0, 1) for p in (temple, flower)]
    )
    assert {t.numpy().tobytes() for t in tiles} == {crop.numpy().tobytes() for crop in crops}


def test_a_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Nothing is downloaded to judge on it."""
    for name in ("cifar100", "tiny_imagenet"):
        with pytest.raises(FileNotFoundError, match=r"not (whole )?in"):
            PICTURES[name][1](tmp_path, 10, 32)


def test_larger_images_are_scaled_down() -> None:
    """To the size of the network; flat ones stay flat, and what fits is left alone."""
    flat = torch.full((2, 3, 64, 64), 9, dtype=torch.uint8)
    assert torch.equal(scaled(flat, 32), flat[:, :, :32, :32])
    assert scaled(flat, 64) is flat

"""Honest images are changed as their names say, and stay images."""

from __future__ import annotations

import pytest
import torch

from training.evaluation.corruptions import CORRUPTIONS, gaussian_noise, scaled, sign_noise


def gradient_images(n: int = 3) -> torch.Tensor:
    """Smooth pictures: a ramp of its own in every channel."""
    ramp = torch.linspace(20, 230, 32)
    image = torch.stack([ramp.expand(32, 32), ramp.expand(32, 32).T, ramp.flip(0).expand(32, 32)])
    return image.expand(n, 3, 32, 32).round().to(torch.uint8)


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_every_change_keeps_shape_type_and_picture(name: str) -> None:
    """uint8 of the same shape, and no value of a smooth picture moves by more than a few levels; the input is left."""
    images = gradient_images()
    before = images.clone()
    changed = CORRUPTIONS[name](images)
    assert changed.dtype == torch.uint8 and changed.shape == images.shape
    assert torch.equal(images, before)
    difference = (changed.int() - images.int()).abs()
    assert float(difference.double().mean()) <= 8
    assert torch.equal(changed, images) == (name == "unchanged")


def test_sign_noise_moves_every_value_by_eight_levels() -> None:
    """Plus or minus 8 each with a chance of one half; cut at the ends of the range."""
    moved = sign_noise(torch.full((4, 3, 32, 32), 100, dtype=torch.uint8)).int() - 100
    assert set(moved.unique().tolist()) == {-8, 8}
    assert abs(float(moved.double().mean())) < 0.5
    assert sign_noise(torch.full((1, 3, 8, 8), 252, dtype=torch.uint8)).max() == 255


def test_gaussian_noise_stays_in_the_ball() -> None:
    """Standard deviation about 4 levels, never over 8."""
    moved = gaussian_noise(torch.full((4, 3, 32, 32), 100, dtype=torch.uint8)).int() - 100
    assert int(moved.abs().max()) == 8
    assert float(moved.double().std()) == pytest.approx(4, rel=0.1)


def test_lower_quality_changes_more() -> None:
    """JPEG 75 loses more than JPEG 90."""
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    lost = [float((CORRUPTIONS[n](images).int() - images.int()).abs().double().mean()) for n in ("jpeg_90", "jpeg_75")]
    assert 0 < lost[0] < lost[1]


def test_scaling_keeps_a_flat_picture() -> None:
    """Up and down again changes nothing where there is nothing to blur."""
    flat = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    assert torch.equal(scaled(flat), flat)

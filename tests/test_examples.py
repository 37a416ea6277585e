"""The example images: made by the committed script, the size the model knows, each with a natural twin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples import attack
from examples.draw import CHOSEN, draw

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
EPS = 8  # levels of 255
IMAGES = sorted(EXAMPLES.glob("*.png"))
TWINS = [p for p in IMAGES if p.stem.endswith("-adversarial")]
CLEAN = [p for p in IMAGES if p not in TWINS]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, dtype=int)


@pytest.mark.parametrize("image", IMAGES, ids=lambda p: p.stem)
def test_an_example_is_a_small_rgb_png_without_metadata(image):
    """The server takes it as it is: nothing to resize, nothing lossy, nothing hidden in it."""
    with Image.open(image) as opened:
        assert (opened.format, opened.mode, opened.size) == ("PNG", "RGB", (32, 32))
        assert not opened.info
    assert image.stat().st_size < 4096


def test_there_are_at_least_six_examples_of_different_classes():
    """Enough to try the server with, and not six of one kind."""
    assert len({p.stem for p in CLEAN}) >= 6


@pytest.mark.parametrize("image", [p for p in CLEAN if p.stem != "chelsea"], ids=lambda p: p.stem)
def test_the_script_draws_the_committed_image_again(image):
    """`examples/draw.py` is where it comes from; another processor may round a pixel one or two levels differently."""
    again = np.asarray(draw(image.stem, CHOSEN[image.stem]), dtype=int)
    assert np.abs(again - pixels(image)).max() <= 2


@pytest.mark.parametrize("image", CLEAN, ids=lambda p: p.stem)
def test_a_twin_differs_by_at_most_eight_levels_and_does_differ(image):
    """A person sees the same image twice: the change stays within eps 8/255."""
    change = np.abs(pixels(image.with_name(f"{image.stem}-adversarial.png")) - pixels(image))
    assert 0 < change.max() <= EPS


def test_a_twin_is_made_that_fools_the_network_it_was_made_on():
    """`examples/attack.py` turns the answers of its surrogates, stays inside eps and is 8 bits exactly."""
    x = attack.read(CLEAN)
    torch.manual_seed(0)
    surrogates = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10)).eval() for _ in range(2)]
    y = torch.stack([s(x) for s in surrogates]).mean(0).argmax(1)
    x_adv = attack.twins(x, y, surrogates, "pgd_trades", steps=20)
    levels = x_adv * 255
    assert torch.equal(levels, levels.round())
    assert (levels - x * 255).abs().max() <= EPS + 1e-3
    fooled = torch.stack([s(x_adv) for s in surrogates]).mean(0).argmax(1) != y
    assert fooled.float().mean() > 0.8


def test_an_image_that_is_named_after_no_class_is_refused():
    """An attack needs the true class; guessing it from the surrogate would make a twin of the wrong thing."""
    assert attack.LABELS[attack.label(Path("chelsea.png"))] == "cat"
    with pytest.raises(ValueError, match="named after no class"):
        attack.label(Path("sofa.png"))

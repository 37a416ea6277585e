"""The example pictures: made by the committed script, the size the model knows, each with an honest twin."""

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
PICTURES = sorted(EXAMPLES.glob("*.png"))
TWINS = [p for p in PICTURES if p.stem.endswith("-adversarial")]
CLEAN = [p for p in PICTURES if p not in TWINS]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, dtype=int)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: p.stem)
def test_an_example_is_a_small_rgb_png_without_metadata(picture):
    """The server takes it as it is: nothing to resize, nothing lossy, nothing hidden in it."""
    with Image.open(picture) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))
        assert not image.info
    assert picture.stat().st_size < 4096


def test_there_are_at_least_six_examples_of_different_classes():
    """Enough to try the server with, and not six of one kind."""
    assert len({p.stem for p in CLEAN}) >= 6


@pytest.mark.parametrize("picture", [p for p in CLEAN if p.stem != "chelsea"], ids=lambda p: p.stem)
def test_the_script_draws_the_committed_picture_again(picture):
    """`examples/draw.py` is where it comes from; another processor may round a pixel one or two levels differently."""
    again = np.asarray(draw(picture.stem, CHOSEN[picture.stem]), dtype=int)
    assert np.abs(again - pixels(picture)).max() <= 2


@pytest.mark.parametrize("picture", CLEAN, ids=lambda p: p.stem)
def test_a_twin_differs_by_at_most_eight_levels_and_does_differ(picture):
    """A person sees the same picture twice: the change stays within eps 8/255."""
    change = np.abs(pixels(picture.with_name(f"{picture.stem}-adversarial.png")) - pixels(picture))
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


def test_a_picture_that_is_named_after_no_class_is_refused():
    """An attack needs the true class; guessing it from the surrogate would make a twin of the wrong thing."""
    assert attack.LABELS[attack.label(Path("chelsea.png"))] == "cat"
    with pytest.raises(ValueError, match="named after no class"):
        attack.label(Path("sofa.png"))

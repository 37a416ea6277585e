"""What random numbers in training promise: they belong to images, and they are random."""

from __future__ import annotations

import pytest
import torch

from training.core import rng
from training.core.rng import GLOBAL_RNG, KeyedRng
from training.data.batches import shuffled_batches
from training.data.images import Split


def test_the_hash_is_splitmix64() -> None:
    """The published generator's first numbers from the seed 1234567."""
    key, counter = torch.tensor([[1234567]]), torch.arange(1, 4)
    words = rng._scrambled(key + counter * rng._signed(rng.GOLDEN))[0]
    assert [int(w) & rng.MASK for w in words] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_numbers_belong_to_an_image_and_not_to_its_batch() -> None:
    """Another order, another batch, a part of it, another step: the image keeps its numbers; a step's own stay."""
    index, x = torch.tensor([7, 3, 44_000, 12]), torch.zeros(4, 3, 8, 8)
    whole = KeyedRng.of(1, 2, 5, index)
    for draw in (
        lambda c, z: c.normal(z, "start"),
        lambda c, z: c.uniform(z, -1, 1, "a"),
        lambda c, z: c.signs(z, "b"),
    ):
        numbers = draw(whole, x)
        assert torch.equal(draw(KeyedRng.of(1, 2, 9, index.flip(0)), x), numbers.flip(0))
        assert torch.equal(draw(whole[1:3], x[1:3]), numbers[1:3])
        assert not torch.equal(draw(KeyedRng.of(1, 3, 5, index), x), numbers)
        assert not torch.equal(draw(KeyedRng.of(2, 2, 5, index), x), numbers)
    assert whole.number(0, 1, "step") == KeyedRng.of(1, 2, 5, index[:1]).number(0, 1, "step")
    assert whole.number(0, 1, "step") != KeyedRng.of(1, 2, 6, index).number(0, 1, "step")


def test_numbers_are_what_they_are_called() -> None:
    """Moments, range and independence of 200 images' draws; within five standard errors."""
    x = torch.zeros(200, 3, 16, 16)
    keyed = KeyedRng.of(0, 0, 0, torch.arange(200))
    normal, uniform, signs = keyed.normal(x, "n"), keyed.uniform(x, -2, 2, "u"), keyed.signs(x, "s")
    error = 5 / x.numel() ** 0.5
    assert abs(normal.mean()) < error and abs(normal.std() - 1) < error and torch.isfinite(normal).all()
    assert abs((normal**3).mean()) < 4 * error and abs((normal**4).mean() - 3) < 10 * error
    assert abs(uniform.mean()) < 2 * error and -2 <= uniform.min() < -1.99 and 1.99 < uniform.max() < 2
    assert signs.abs().eq(1).all() and abs(signs.mean()) < error
    for other in (uniform, normal.roll(1, 0), normal.roll(1, 3), keyed.normal(x, "another purpose")):
        assert abs(torch.corrcoef(torch.stack([normal.flatten(), other.flatten()]))[0, 1]) < error
    counts = torch.tensor([KeyedRng.of(0, 0, i, torch.arange(1)).integer(2, 5, "c") for i in range(3000)]).bincount()
    assert counts[:2].sum() == 0 and (counts[2:] - 1000).abs().max() < 150


def test_the_other_source_is_torch_s_generator() -> None:
    """Evaluation and tests seed it as ever."""
    x = torch.zeros(2, 3)
    torch.manual_seed(3)
    drawn = (
        GLOBAL_RNG[1:].uniform(x, -1, 1, "whatever"),
        GLOBAL_RNG.normal(x, "whatever"),
        GLOBAL_RNG.integer(0, 100, "whatever"),
    )
    torch.manual_seed(3)
    expected = torch.empty(2, 3).uniform_(-1, 1), torch.randn(2, 3), int(torch.randint(0, 100, ()))
    assert torch.equal(drawn[0], expected[0]) and torch.equal(drawn[1], expected[1]) and drawn[2] == expected[2]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_an_epoch_in_several_processes_has_the_same_images_as_in_one(processes: int) -> None:
    """Every image once, the same crops, rank r a contiguous share of each batch; it can be entered at any batch."""
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    split = Split(images, torch.arange(50))
    whole = list(shuffled_batches(split, 16, seed=1, epoch=2))
    assert len(whole) == 3 and len(torch.cat([y for _, y, _ in whole]).unique()) == 48
    pieces = [list(shuffled_batches(split, 16, 1, 2, first=1, rank=r, world_size=processes)) for r in range(processes)]
    for number, (x, y, keyed) in enumerate(whole[1:]):
        assert torch.equal(torch.cat([piece[number][0] for piece in pieces]), x)
        assert torch.equal(torch.cat([piece[number][1] for piece in pieces]), y)
        assert torch.equal(torch.cat([piece[number][2].keys for piece in pieces]), keyed.keys)
        assert {piece[number][2].step for piece in pieces} == {keyed.step}

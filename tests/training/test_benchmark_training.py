"""The training benchmark compares what it says it compares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.model import training as benchmark
from benchmarks.model.training import OURS, PUBLISHED, VARIANTS, Size
from training.networks.awnet import AWNet, AWNetConfig
from training.trainer.adversary import Adversary

SIZE, CPU = Size(2, 4), torch.device("cpu")


class WeightGradients(TorchDispatchMode):
    """Counts the convolutions' backward passes that compute a gradient of the filters."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.convolution_backward:
            self.seen += bool(args[-1][1])
        return func(*args, **(kwargs or {}))


def test_every_variant_trains():
    """Each one that needs no compiler takes a step: the loss is finite, the filters move, the extractor stands."""
    for name, variant in VARIANTS.items():
        if variant.compiled:
            continue
        racer = benchmark.build(variant, SIZE, benchmark.random_images(8), 1, CPU)
        before = {key: value.clone() for key, value in racer.net.state_dict().items()}
        assert torch.isfinite(torch.tensor(racer.step())), name
        after = racer.net.state_dict()
        assert not torch.equal(before["stem.conv.weight"], after["stem.conv.weight"]), name
        assert torch.equal(before["extractor.stem.conv.weight"], after["extractor.stem.conv.weight"]), name


def test_both_loops_start_from_the_same_network_and_teachers():
    """What differs between two variants is how they compute, not what."""
    one, other = (benchmark.build(v, SIZE, benchmark.random_images(8), 1, CPU).net for v in (PUBLISHED, OURS))
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_the_published_attack_is_ours_in_its_own_words():
    """From the same noise, both walk to the same images: neither side gets an easier attack."""
    torch.manual_seed(0)
    net = AWNet(AWNetConfig(width=4)).eval()
    x, y = torch.rand(6, 3, 32, 32), torch.randint(0, 10, (6,))
    x = (25 + x * 205).round() / 255  # so far inside [0,1] that nothing is clamped, where alone the starts differ
    torch.manual_seed(1)
    theirs = benchmark.published_attack(net, x, y, 3, weight_gradients=False)
    torch.manual_seed(1)
    ours = Adversary(benchmark.Budget(benchmark.EPS, benchmark.STEP, 3)).perturb(net, x, y)
    assert (theirs - x).abs().max() <= benchmark.EPS + 1e-6
    # Ours ends on whole grey levels; a sign may turn where a gradient is nearly zero.
    assert ((ours - theirs).abs() < 0.51 / 255).float().mean() > 0.98


@pytest.mark.parametrize("weights", [False, True])
def test_the_published_attack_takes_the_gradient_of_the_image_only_unless_told_otherwise(weights):
    """No filter's gradient is computed in vain, and the variant that is named so does compute them."""
    net = AWNet(AWNetConfig(width=2)).eval()
    x, y = torch.rand(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)
    with WeightGradients() as counted:
        benchmark.published_attack(net, x, y, 1, weight_gradients=weights)
    assert (counted.seen > 0) == weights


def test_ours_computes_no_gradient_of_filters_in_the_attack():
    net = AWNet(AWNetConfig(width=2)).train()
    x, y = torch.rand(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)
    with WeightGradients() as counted:
        Adversary(benchmark.Budget(benchmark.EPS, benchmark.STEP, 2)).perturb(net, x, y)
    assert counted.seen == 0


def test_operations_are_those_of_the_convolutions():
    """A linear layer's by hand; and the attack's steps each add a forward and a backward to the image."""
    with benchmark.Counter() as counter:
        torch.nn.Linear(5, 7)(torch.rand(3, 5))
    assert counter.total == 2 * 3 * 5 * 7
    counts = [
        benchmark.operations(benchmark.build(OURS, SIZE, benchmark.random_images(8), steps, CPU)) for steps in (1, 2, 3)
    ]
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0


def test_pil_and_tensor_augmentation_give_the_same_kind_of_batch():
    """Both crop with 4 pixels of black padding and flip, and give float32 in [0,1] of whole grey levels."""
    white = benchmark.random_images(64)
    white.images.fill_(255)
    for pil in (True, False):
        x, y, _ = next(benchmark.batches(white, 64, pil))
        assert x.shape == (64, 3, 32, 32) and x.dtype == torch.float32 and y.shape == (64,)
        assert set(x.unique().tolist()) == {0.0, 1.0}
        assert not x[:, :, 4:-4, 4:-4].eq(0).any()


def test_the_interval_holds_the_median_and_is_a_point_without_noise():
    assert benchmark.interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    low, high = benchmark.interval([1.8, 2.0, 2.1, 2.2, 3.0])
    assert 1.8 <= low < 2.1 < high <= 3.0


@pytest.mark.parametrize("size", ["16", "16x1", "x8", "0x8", "16xmany"])
def test_a_wrong_size_is_told(size, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--sizes", size, "--no-write"])
    assert "WIDTHxBATCH" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--clock", "cpu", "--threads", "2"], ["--rounds", "0"], ["--device", "mps"]])
def test_options_that_cannot_be_are_refused(wrong, capsys):
    """Processor time of several threads is not the time a step takes, and so on."""
    with pytest.raises(SystemExit):
        benchmark.main([*wrong, "--no-write"])
    assert wrong[0] in capsys.readouterr().err


@pytest.mark.slow
def test_one_run_writes_figures_and_a_table(tmp_path: Path):
    """JSON and Markdown hold each variant with its speed, ratio, interval and share of the ceiling."""
    arguments = ["--sizes", "2x2", "--steps", "1", "--rounds", "2", "--threads", "1", "--variants", "ours"]
    assert benchmark.main([*arguments, "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "training.json").read_text())
    published, ours = document["runs"][0]["results"][0]["variants"]
    assert published["variant"] == "published" and published["over_published"] == 1
    assert len(ours["wall_seconds"]) == len(ours["cpu_seconds"]) == 2 and ours["images_per_second"] > 0
    assert ours["interval"][0] <= ours["over_published"] <= ours["interval"][1]
    assert 0 < ours["ceiling_fraction"] < 1 and ours["operations_per_image"] > 0
    table = (tmp_path / "training.md").read_text()
    assert "python -m benchmarks.model.training --sizes 2x2" in table and "\n| ours |" in table
    assert "Not run on a GPU" in table
    assert benchmark.main([*arguments, "--clock", "cpu", "--append", "--out", str(tmp_path)]) == 0
    first, second = json.loads((tmp_path / "training.json").read_text())["runs"]
    assert (first["clock"], second["clock"]) == ("wall", "cpu") and first == document["runs"][0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["training.json", "training.md"]

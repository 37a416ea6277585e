"""The numbers behind sec. 3, each against a slow computation by hand, and the figures drawn from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from training.attacks.ascent import Budget
from training.data.images import ImageSet, Split
from training.networks import checkpoint
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.baselines import StaticConfig, build_static
from training.reproduction import figures
from training.reproduction.filters import (
    convolutions,
    describe,
    filter_moments,
    gradient_norm,
    modulated_variance,
    spread,
)


def test_moments_are_those_of_each_filter() -> None:
    """Filter by filter over its c_in x k x k weights, the variance over their number."""
    layer = nn.Conv2d(3, 4, 3)
    means, variances = filter_moments(layer)
    for m in range(4):
        weights = layer.weight[m].flatten().tolist()
        mean = sum(weights) / 27
        assert means[m].item() == pytest.approx(mean, rel=1e-6, abs=1e-9)
        assert variances[m].item() == pytest.approx(sum((w - mean) ** 2 for w in weights) / 27, rel=1e-6)
    by_hand = spread({"means": [1.0, 3.0], "variances": [0.5, 1.5]})
    assert by_hand == {
        "standard_deviation_of_means": 1.0,
        "mean_variance": 1.0,
        "largest_mean": 3.0,
        "largest_variance": 1.5,
    }


def test_the_layers_are_the_trunk_s_in_forward_order() -> None:
    """An AW-Net's extractor is another network; first comes the stem, then the first block."""
    names = [name for name, _ in convolutions(AWNet(AWNetConfig(width=4)))]
    assert names[:3] == ["stem.conv", "blocks.0.conv1.conv", "blocks.0.conv2.conv"] and len(names) == 20
    assert next(name for name, _ in convolutions(build_static(StaticConfig("resnet18", 4)))) == "body.stem.conv"


def test_the_gradient_norm_is_the_dual_of_the_ball() -> None:
    """Eq. 3-5: eps |dL/dx|_1 is how much the linearised loss can grow inside the L-infinity ball; image by image."""
    net = build_static(StaticConfig("resnet18", 4)).double().eval()
    x, y = torch.rand(3, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 2])
    norms = []
    for n in range(3):
        z = x[n : n + 1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(z), y[n : n + 1]), z)
        norms.append(float(gradient.abs().sum()))
    assert gradient_norm(net, x, y) == pytest.approx(sum(norms) / 3, rel=1e-4)


@pytest.fixture
def net() -> AWNet:
    net = AWNet(AWNetConfig(width=4, beta=1.0)).eval()
    for head in net.signal_heads:
        nn.init.normal_(head.weight, std=0.5)
    return net


def test_the_variance_of_modulated_filters_is_that_of_the_filters_written_out(net: AWNet) -> None:
    """omega_m K_m of Eq. 13 formed for each image; the ratio is 1 where omega is."""
    x = torch.rand(3, 3, 32, 32)
    found = modulated_variance(net, x)
    signals = net.detect(x)
    for (name, unit), omega in list(zip(net.modulated(), signals.omega, strict=True))[:3]:
        filters = unit.conv.weight.detach().flatten(1)
        scaled = [(omega[n].detach()[:, None] * filters).var(1, correction=0).mean().item() for n in range(3)]
        expected = sum(scaled) / 3 / filters.var(1, correction=0).mean().item()
        assert found[name] == pytest.approx(expected, rel=1e-4)
    untouched = modulated_variance(AWNet(AWNetConfig(width=4)).eval(), x)
    assert list(untouched.values()) == pytest.approx([1.0] * 16)


def test_an_awnet_is_described_on_clean_and_on_adversarial_images(net: AWNet) -> None:
    """Both kinds, each convolution and the mean; a static network has a gradient norm alone."""
    x, y = torch.rand(4, 3, 32, 32), torch.arange(4)
    found = describe(net, x, y, Budget(steps=2))
    assert found["images"] == 4 and len(found["omega_variance"]) == 16
    values = [v["clean"] for v in found["omega_variance"].values()]
    assert found["omega_variance_mean"]["clean"] == pytest.approx(sum(values) / 16)
    assert found["omega_variance_mean"]["clean"] != found["omega_variance_mean"]["adversarial"]
    assert set(describe(build_static(StaticConfig("resnet18", 4)), x, y)) == {"images", "gradient_norm"}


@pytest.fixture
def spec(tmp_path: Path, net: AWNet) -> Path:
    """A specification of every figure, its networks and runs beside it."""
    for name, network in (("s", build_static(StaticConfig("resnet18", 4))), ("a", net)):
        checkpoint.save(tmp_path / f"{name}.pt", checkpoint.pack(network, labels=[], recipe={}))
    rows = [{"epoch": e, "nat": 1.0 / e, "adv": 2.0 / e, "w_nat": 0.5, "train_seconds": 9.0} for e in (1, 2, 3)]
    rows[1]["validation_w_robust"] = 55.5
    (tmp_path / "history.json").write_text(json.dumps({"name": "x", "epochs": rows}))
    text = "".join(f'["{n}"]\nnetworks = {{ standard = "s.pt", "AW-Net" = "a.pt" }}\n' for n in (1, 3, 4, 5, 6, 7))
    path = tmp_path / "figures.toml"
    path.write_text(text + '["8"]\nruns = { "TRADES" = "history.json" }\n')
    return path


@pytest.mark.parametrize("figure", figures.FIGURES)
def test_every_figure_is_a_picture_with_its_numbers(figure: str, spec: Path, tmp_path: Path) -> None:
    """PNG, SVG, JSON and Markdown from one command; the same numbers draw the same SVG; no path of this machine."""
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    argv = ["--figure", figure, "--spec", str(spec), "--out", str(out)]
    assert figures.main(argv) == 0
    assert (out / f"figure-{figure}.png").read_bytes()[:4] == b"\x89PNG"
    drawn = (out / f"figure-{figure}.svg").read_text()
    document = json.loads((out / f"figure-{figure}.json").read_text())
    assert str(tmp_path) not in json.dumps(document) + drawn
    table = (out / f"figure-{figure}.md").read_text()
    if figure == "8":
        assert document["numbers"]["TRADES"]["w_robust"] == [None, 55.5, None]
        assert document["numbers"]["TRADES"]["loss"] == [3.0, 1.5, 1.0] and "55.50" in table
    else:
        layers = document["numbers"]["AW-Net"]["layers"]
        assert [len(m["means"]) for m in layers.values()] == [4, 4] and "stem.conv" in table
    assert figures.main(argv) == 0 and (out / f"figure-{figure}.svg").read_text() == drawn


@pytest.mark.parametrize("values", [[-0.2, 0.1, 0.4], [0.3, 0.3], [0.5]])
def test_a_density_is_one_in_all_and_centred_on_its_values(values: list[float]) -> None:
    """Few filters, equal filters and a single one too."""
    at, height = figures.density(values, points=2001)
    assert np.trapezoid(height, at) == pytest.approx(1, abs=0.01)
    assert np.trapezoid(np.multiply(height, at), at) == pytest.approx(np.mean(values), abs=0.01)


def test_labels_that_begin_alike_share_a_row(spec: Path, tmp_path: Path) -> None:
    """Figure 7 shows three networks, standard and robust: six curves on the same axes cannot be told apart."""
    pytest.importorskip("matplotlib")
    spec.write_text('["7".networks]\n"A, standard" = "s.pt"\n"A, robust" = "a.pt"\n"B, standard" = "s.pt"\n')
    assert figures.main(["--figure", "7", "--spec", str(spec), "--out", str(tmp_path)]) == 0
    drawn = (tmp_path / "figure-7.svg").read_text()
    assert [drawn.count(f"<!-- {t}, convolution {n} -->") for t in "AB" for n in (1, 2)] == [1] * 4


def test_with_images_the_numbers_hold_the_claims_too(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradient norm for every network, omega for the AW-Net, on the first test images of its own set."""
    pytest.importorskip("matplotlib")
    part = Split(torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), torch.arange(6))
    monkeypatch.setattr(figures, "load_images", lambda name, data_dir: ImageSet(part, part, part, []))
    argv = ["--figure", "1", "--spec", str(spec), "--out", str(tmp_path), "--data-dir", "unused", "--images", "4"]
    assert figures.main(argv) == 0
    numbers = json.loads((tmp_path / "figure-1.json").read_text())["numbers"]
    assert numbers["standard"]["claims"]["images"] == 4
    assert set(numbers["AW-Net"]["claims"]["omega_variance_mean"]) == {"clean", "adversarial"}
    assert "input gradient" in (tmp_path / "figure-1.md").read_text()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('["3"]\nnetworks = { a = "none.pt" }', "none.pt"),
        ('["1"]\nnetworks = {}', '"3"'),
        ('["3"]\nruns = {}', "networks"),
    ],
)
def test_what_a_figure_lacks_is_said_in_a_line(
    text: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, the figure or the file by name, and nothing written."""
    (tmp_path / "f.toml").write_text(text)
    out = tmp_path / "out"
    assert figures.main(["--figure", "3", "--spec", str(tmp_path / "f.toml"), "--out", str(out)]) == 2
    assert word in capsys.readouterr().err and not out.exists()


def test_the_committed_specification_names_committed_checkpoints() -> None:
    """Figures 1 and 3 can be drawn from a fresh checkout."""
    path = Path(__file__).parents[3] / "training" / "reproduction" / "figures.toml"
    for figure in ("1", "3"):
        assert {"standard", "PGD-AT"} <= set(figures.read_spec(path, figure))

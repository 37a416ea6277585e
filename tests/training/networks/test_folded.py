"""The folded network is the network: its answers, and the gradients that attackers take from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.attacks.ascent import Budget, ascend, cross_entropy, normal_start, project, quantise
from training.attacks.evasion import selective
from training.networks.awnet import AWNet, AWNetConfig, SignalHead
from training.networks.folded import Folded, InParts, still
from training.networks.network import Branch, Signals
from training.trainer.adversary import Adversary

from ..attacks.toys import Lure

SWITCHES: list[dict[str, Any]] = [
    {},
    {"mixing": "bounded", "mixing_limit": 0.3, "mixing_temperature": 2.0},
    {"dynamic": False},
    {"mixbn": False},
    {"type_weighting": False},
    {"beta": 1.0},
    {"depth": 50},
    {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), "extractor_width": 4},
]


def trained(**options: Any) -> AWNet:
    """A network none of whose norms, heads or branches is neutral, in evaluation."""
    net = AWNet(AWNetConfig(width=8, **options)).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.5, 2)
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.3)
            if isinstance(part, SignalHead):
                part.weight.normal_(0, 0.05)
                part.bias.normal_(0, 0.3)
    return net.eval().requires_grad_(False)


def images(n: int) -> tuple[Tensor, Tensor]:
    """8-bit images as a training has them, and labels."""
    x = torch.randint(0, 256, (n, 3, 32, 32)).float() / 255
    return x.contiguous(memory_format=torch.channels_last), torch.arange(n) % 10


def gradient(loss: Tensor, z: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss.float().sum(), z)
    return found


def near(found: Tensor, expected: Tensor) -> None:
    """Within 1e-5, of the largest where that is over 1."""
    assert (found - expected).detach().abs().max() < 1e-5 * expected.detach().abs().max().clamp(min=1)


def same_signs(one: Tensor, other: Tensor) -> float:
    return float((one.sign() == other.sign()).float().mean())


@pytest.mark.parametrize("options", SWITCHES, ids=lambda options: ",".join(map(str, options)) or "paper")
def test_it_answers_as_the_network_does(options: dict[str, Any]) -> None:
    """Logits of all branches, type logits and omega within 1e-5; the sign of the gradient on 99.9 % of the pixels."""
    net, (x, y) = trained(**options), images(8)
    folded = Folded(net)
    branches: tuple[Branch | None, ...] = ("adv", "nat", None)
    for branch in branches:
        z, w = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
        expected, found = net(z, branch), folded(w, branch)
        near(found, expected)
        assert same_signs(gradient(cross_entropy(found, y), w), gradient(cross_entropy(expected, y), z)) > 0.999
    z, w = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    expected_signals, signals = net.detect(z), folded.detect(w)
    near(signals.type_logits, expected_signals.type_logits)
    near(torch.cat(signals.omega, 1), torch.cat(expected_signals.omega, 1))
    assert same_signs(gradient(signals.type_logits, w), gradient(expected_signals.type_logits, z)) > 0.999
    # Under the network's own signals too, as an attacker who holds those of the clean image has them.
    near(folded.classify(x, expected_signals), net.classify(x, expected_signals))


@pytest.mark.parametrize("mixing", ["norms", "bounded"])
def test_images_of_one_forward_are_told_apart_by_their_branch(mixing: str) -> None:
    """Each part's logits are what its branch alone would say of it, whatever the order of the parts."""
    net, (x, _) = trained(mixing=mixing), images(9)
    folded = Folded(net)
    parts: list[tuple[slice, Branch | None]] = [
        (slice(0, 2), None),
        (slice(2, 4), "nat"),
        (slice(4, 7), None),
        (slice(7, 9), "adv"),
    ]
    found = folded.classify_parts(x, folded.detect(x), parts)
    for rows, branch in parts:
        near(found[rows], net(x[rows], branch))


def test_each_image_has_weights_of_its_own() -> None:
    """`mixed` takes a row of weights an image: half of both norms is the network at P(natural) = 0.5."""
    net, (x, _) = trained(), images(3)
    folded, signals = Folded(net), net.detect(x)
    half = Signals(torch.zeros(3, 2), signals.omega)
    mix = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])
    found = folded.mixed(x, torch.cat(signals.omega, 1), mix)
    expected = (net.classify(x, half), net.classify(x, signals, "adv"), net.classify(x, signals, "nat"))
    for i, logits in enumerate(expected):
        near(found[i], logits[i])


def test_in_bfloat16_it_is_as_near_as_the_network_is() -> None:
    """Both round differently; neither is further from float32 than twice the other."""
    net, (x, _) = trained(beta=1.0), images(16)
    with torch.autocast("cpu", torch.bfloat16):
        folded, plain = Folded(net)(x), net(x)
    assert folded.dtype == plain.dtype == torch.bfloat16
    exact = net(x)
    assert (folded - exact).abs().mean() < 2 * (plain - exact).abs().mean() < 0.02


def test_an_extractor_of_another_kind_is_called_as_it_is() -> None:
    """Only the ResNet-18's norms are known to fold into its filters."""

    class Mean(nn.Module):
        feature_dim = 3

        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=(2, 3))

    net, (x, _) = AWNet(AWNetConfig(width=4), extractor=Mean()).eval(), images(2)
    for head in net.signal_heads:
        nn.init.normal_(head.weight)
    near(Folded(net)(x), net(x))


def test_a_network_in_training_does_not_fold() -> None:
    with pytest.raises(ValueError, match="evaluation"):
        Folded(trained().train())


def test_a_network_of_another_class_stands_still_as_it_is() -> None:
    """Its parts are answered one after the other, by its own methods."""
    net, x = Lure(), images(4)[0]
    model = still(net)
    assert isinstance(model, InParts) and isinstance(still(trained()), Folded)
    parts: list[tuple[slice, Branch | None]] = [(slice(0, 1), None), (slice(1, 4), "adv")]
    assert torch.equal(model.classify_parts(x, model.detect(x), parts), net(x))


def literally(adversary: Adversary, net: AWNet, x: Tensor, y: Tensor, shares: tuple[int, int, int]) -> Tensor:
    """What each attacker of `Adversary` does, one after the other: `shares` are where the second to fourth begin."""
    start, (first, second, third) = normal_start(x), shares
    radius = adversary.evading_radii[int(torch.randint(0, len(adversary.evading_radii), ()))]

    def walk(rows: slice, model: Any) -> Tensor:
        return ascend(lambda z: cross_entropy(model(z), y[rows]), x[rows], start[rows], adversary.budget)

    def forced(z: Tensor) -> Tensor:
        seen = z if adversary.adv_branch_sees_detector else z.detach()
        return net.classify(z, net.detect(seen), "adv")

    def evading(z: Tensor) -> Tensor:
        signals = net.detect(z)
        log_odds = signals.type_logits[:, 0] - signals.type_logits[:, 1]
        return selective(net.classify(z, signals.detach(), "nat"), log_odds, y[third:])

    budget = Budget(radius * adversary.budget.eps, radius * adversary.budget.step, adversary.budget.steps)
    begin = project(start[third:], x[third:], budget.eps)
    made = [
        walk(slice(0, first), forced),
        walk(slice(first, second), lambda z: net.classify(z, net.detect(z.detach()))),
        walk(slice(second, third), net),
        ascend(evading, x[third:], begin, budget),
    ]
    return quantise(torch.cat(made))


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("sees", [True, False])
@pytest.mark.parametrize("mixing", ["norms", "bounded"])
def test_attackers_of_one_forward_find_what_each_finds_alone(mixing: str, sees: bool, folded: bool) -> None:
    """Same random numbers, same images: but where rounding turns a sign, on one pixel in a thousand at most."""
    net, (x, y) = trained(mixing=mixing), images(16)
    adversary = Adversary(
        Budget(steps=2),
        adv_branch_share=0.25,
        adv_branch_sees_detector=sees,
        detector_ignored_share=0.5,
        evading_share=0.25,
        evading_radii=(0.25, 0.5),
        folded=folded,
    )
    torch.manual_seed(7)
    expected = literally(adversary, net, x, y, (4, 8, 12))
    torch.manual_seed(7)
    found = adversary.perturb(net, x, y)
    for rows in (slice(0, 4), slice(4, 8), slice(8, 12), slice(12, 16)):
        assert (found[rows] != expected[rows]).float().mean() < 1e-3
        assert (found[rows] != x[rows]).float().mean() > 0.5


def test_divergences_are_ascended_in_one_forward_too() -> None:
    """TRADES' and RSLAD's target stays with its image."""
    net, (x, y) = trained(), images(8)
    target = F.softmax(net(x.flip(0)), dim=1)
    found = []
    for folded in (True, False):
        torch.manual_seed(7)
        adversary = Adversary(Budget(steps=2), adv_branch_share=0.5, evading_share=0.25, folded=folded)
        found.append(adversary.perturb(net, x, y, target))
    assert (found[0] != found[1]).float().mean() < 1e-3

"""Each equation of AW-Net against a slow, literal implementation of the printed one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.networks.awnet import (
    AWNet,
    AWNetConfig,
    ConvMixBN,
    DynamicBlock,
    Modulate,
    SignalHead,
    TypeHead,
    bounded_mixture,
)
from training.networks.network import ADVERSARIAL, NATURAL

EXACT = {"rtol": 1e-11, "atol": 1e-11}  # float64, a few hundred additions


def shake(module: nn.Module) -> None:
    """Random parameters and batch-norm statistics, so that nothing is hidden by a neutral value."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
                part.weight.uniform_(0.5, 2)
                part.bias.normal_()
            if isinstance(part, nn.Linear):
                part.weight.normal_(0, 0.3)
                part.bias.normal_(0, 0.3)


def unit(**changes: int | bool) -> ConvMixBN:
    module = ConvMixBN(**{"c_in": 3, "c_out": 5, "kernel": 3, "stride": 1, "mixbn": True, **changes}).double()
    shake(module)
    return module


def literal_convolution(conv: nn.Conv2d, x: Tensor, omega: Tensor) -> Tensor:
    """Eq. 13-14, one sample and one filter at a time."""
    samples = []
    for n in range(len(x)):
        filters = torch.cat([omega[n, m] * conv.weight[m : m + 1] for m in range(conv.out_channels)])  # Eq. 13
        samples.append(F.conv2d(x[n : n + 1], filters, stride=conv.stride, padding=conv.padding))  # Eq. 14
    return torch.cat(samples)


def literal_bn(norm: nn.BatchNorm2d, pi: Tensor) -> Tensor:
    """A batch norm in evaluation, channel by channel."""
    out = torch.empty_like(pi)
    for c in range(pi.shape[1]):
        scaled = (pi[:, c] - norm.running_mean[c]) / torch.sqrt(norm.running_var[c] + norm.eps)
        out[:, c] = norm.weight[c] * scaled + norm.bias[c]
    return out


def literal_mixbn(module: ConvMixBN, x: Tensor, omega: Tensor, p_natural: Tensor) -> Tensor:
    """Eq. 16 of the convolution of Eq. 13-14."""
    pi = literal_convolution(module.conv, x, omega)
    p = p_natural[:, None, None, None]
    return (1 - p) * literal_bn(module.adv, pi) + p * literal_bn(module.nat, pi)


def p_type(n: int) -> Tensor:
    natural = torch.rand(n, dtype=torch.float64)
    return torch.stack([1 - natural, natural], dim=1)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 2)])
def test_filters_are_scaled_sample_by_sample(kernel: int, stride: int) -> None:
    """Eq. 13-14: sample n is convolved with its own filters omega[n, m] * K_m."""
    module = unit(kernel=kernel, stride=stride).eval()
    x, omega = torch.randn(4, 3, 6, 6).double(), torch.rand(4, 5).double() * 2
    expected = literal_bn(module.nat, literal_convolution(module.conv, x, omega))
    torch.testing.assert_close(module(x, omega, "nat"), expected, **EXACT)


def test_evaluation_weights_both_batch_norms_by_p_type() -> None:
    """Eq. 16, P_type being P(natural), the second column; each sample has its own."""
    module = unit().eval()
    x, omega, p = torch.randn(4, 3, 6, 6).double(), torch.rand(4, 5).double() * 2, p_type(4)
    torch.testing.assert_close(module(x, omega, p), literal_mixbn(module, x, omega, p[:, NATURAL]), **EXACT)
    certain = torch.tensor([[1.0, 0.0]]).double().expand(4, 2)
    torch.testing.assert_close(module(x, omega, certain), module(x, omega, "adv"), **EXACT)


@pytest.mark.parametrize("branch", ["adv", "nat"])
def test_training_selects_the_batch_norm_of_the_known_type(branch: str) -> None:
    """Eq. 15: batch statistics of this branch's own norm, whose running statistics alone move."""
    module = unit().train()
    norms = {"adv": module.adv, "nat": module.nat}
    mine, other = norms.pop(branch), norms.popitem()[1]
    before, untouched = mine.running_mean.clone(), other.running_mean.clone()
    x, omega = torch.randn(4, 3, 6, 6).double(), torch.rand(4, 5).double() * 2
    out = module(x, omega, branch)
    pi = literal_convolution(module.conv, x, omega)
    for c in range(5):
        normed = (pi[:, c] - pi[:, c].mean()) / torch.sqrt(pi[:, c].var(correction=0) + mine.eps)
        torch.testing.assert_close(out[:, c], mine.weight[c] * normed + mine.bias[c], rtol=1e-9, atol=1e-9)
    assert not torch.equal(mine.running_mean, before)
    assert torch.equal(other.running_mean, untouched)


def test_training_refuses_to_weight_by_p_type() -> None:
    """Eq. 15 selects by the known type; weighting by a prediction in training is a mistake and says so."""
    with pytest.raises(ValueError, match="branch='adv' or 'nat'"):
        unit().train()(torch.randn(2, 3, 6, 6).double(), None, p_type(2))


@pytest.mark.parametrize(("c_out", "stride"), [(3, 1), (5, 2)])
def test_a_block_is_two_mixed_convolutions_and_a_static_shortcut(c_out: int, stride: int) -> None:
    """Eq. 17-18 with an identity shortcut, and with a convolved one that omega does not touch."""
    block = DynamicBlock(3, c_out, stride, mixbn=True).double().eval()
    shake(block)
    x, p = torch.randn(4, 3, 6, 6).double(), p_type(4)
    omega1, omega2 = torch.rand(2, 4, c_out).double() * 2
    inner = F.relu(literal_mixbn(block.conv1, x, omega1, p[:, NATURAL]))
    outer = literal_mixbn(block.conv2, inner, omega2, p[:, NATURAL])
    ones = torch.ones(4, c_out).double()
    shortcut = x if c_out == 3 else literal_mixbn(block.shortcut, x, ones, p[:, NATURAL])
    torch.testing.assert_close(block(x, (omega1, omega2), p), F.relu(outer + shortcut), **EXACT)


@pytest.mark.parametrize(("c_in", "stride"), [(8, 1), (3, 2)])
def test_a_bottleneck_is_three_mixed_convolutions(c_in: int, stride: int) -> None:
    """The block of ResNet-50: 1x1, 3x3 with the stride, 1x1 to four times the channels, each with its own omega."""
    block = DynamicBlock(c_in, 2, stride, mixbn=True, bottleneck=True).double().eval()
    shake(block)
    x, p = torch.randn(4, c_in, 6, 6).double(), p_type(4)
    omega = [torch.rand(4, c).double() * 2 for c in (2, 2, 8)]
    h = F.relu(literal_mixbn(block.conv1, x, omega[0], p[:, NATURAL]))
    h = F.relu(literal_mixbn(block.conv2, h, omega[1], p[:, NATURAL]))
    h = literal_mixbn(block.conv3, h, omega[2], p[:, NATURAL])
    assert [tuple(unit.conv.kernel_size) for _, unit in block.modulated()] == [(1, 1), (3, 3), (1, 1)]
    assert block.conv2.conv.stride == (stride, stride) and block.conv1.conv.stride == (1, 1)
    skip = x if c_in == 8 else literal_mixbn(block.shortcut, x, torch.ones(4, 8).double(), p[:, NATURAL])
    torch.testing.assert_close(block(x, omega, p), F.relu(h + skip), **EXACT)


def test_depth_50_has_three_signals_a_block() -> None:
    """Sec. 5.1: ResNet-34 and ResNet-50 can be the trunk: 48 heads, and a ResNet-50 with two norms a convolution."""
    with torch.device("meta"):
        net = AWNet(AWNetConfig(depth=50))
    assert len(net.signal_heads) == len(net.modulated()) == 48
    assert [name for name, _ in net.modulated()[:4]] == [
        f"blocks.{b}.conv{c}" for b, c in ((0, 1), (0, 2), (0, 3), (1, 1))
    ]
    trunk = sum(p.numel() for part in (net.stem, net.blocks, net.classifier) for p in part.parameters())
    norms = sum(m.num_features for m in net.blocks.modules() if isinstance(m, nn.BatchNorm2d)) + 2 * 64
    assert trunk == 23_520_842 + norms  # a second weight and bias for each channel of the static network's norms
    small = AWNet(AWNetConfig(depth=50, width=4)).eval()
    assert small(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_the_type_head_is_a_softmax_of_tempered_logits() -> None:
    """Eq. 20: softmax(W psi + b), columns adversarial and natural; the temperature divides the logits."""
    head = TypeHead(6)
    shake(head)
    head.temperature.fill_(2.0)
    psi = torch.randn(3, 6)
    for n in range(3):
        z = [sum(w * v for w, v in zip(head.weight[k].tolist(), psi[n].tolist(), strict=True)) for k in (0, 1)]
        z = [(value + head.bias[k].item()) / 2 for k, value in enumerate(z)]
        expected = torch.tensor(z).softmax(0)
        torch.testing.assert_close(head(psi)[n].softmax(0), expected, rtol=1e-5, atol=1e-6)
    assert (ADVERSARIAL, NATURAL) == (0, 1)


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_signal_heads_follow_equation_21(beta: float) -> None:
    """Eq. 21: omega = (tanh(W psi + b) + 1)^beta, hence between 0 and 2^beta."""
    head = SignalHead(6, 5, beta).double()
    shake(head)
    psi = torch.randn(7, 6).double() * 3
    omega = head(psi)
    for n in range(7):
        for m in range(5):
            expected = (torch.tanh((head.weight[m] * psi[n]).sum() + head.bias[m]) + 1) ** beta
            torch.testing.assert_close(omega[n, m], expected, **EXACT)
    assert float(omega.detach().min()) >= 0 and float(omega.detach().max()) <= 2**beta


def test_an_untrained_signal_head_leaves_its_filters_alone() -> None:
    """At the start of training omega is exactly 1, so a pretrained trunk keeps its function."""
    assert torch.equal(SignalHead(6, 5, 4.0)(torch.randn(3, 6)), torch.ones(3, 5))


def test_the_default_network_has_24323340_parameters() -> None:
    """ResNet-18 with MixBN, extractor, 16 heads with bias and type head; the paper's 26.32 M fits no layout tried."""
    with torch.device("meta"):
        net = AWNet()
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
    assert count["extractor"] == 11_168_832
    assert count["signal_heads"] == 1_969_920
    assert count["type_head"] == 1_026
    assert count["stem"] + count["blocks"] + count["classifier"] == 11_183_562
    assert sum(count.values()) == 24_323_340


@pytest.fixture
def net() -> AWNet:
    """Width 4, every part random; in evaluation mode."""
    net = AWNet(AWNetConfig(width=4, beta=4.0)).eval()
    shake(net)
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):  # 17 layers deep, gains around 1 keep the activations in range
                norm.weight.uniform_(0.3, 0.9)
                norm.running_mean.normal_(0, 0.1)
        for head in net.signal_heads:
            head.weight.mul_(0.2)
    return net


def test_the_whole_network_equals_its_parts_in_the_printed_order(net: AWNet) -> None:
    """Stem, eight blocks with their own two signals each, pooling, classifier; MixBN everywhere in the trunk."""
    net = net.double()
    x = torch.rand(3, 3, 32, 32).double()
    signals = net.detect(x)
    p = signals.p_type.double()[:, NATURAL]
    ones = torch.ones(3, 4).double()
    h = F.relu(literal_mixbn(net.stem, x, ones, p))
    for i, block in enumerate(net.blocks):
        inner = F.relu(literal_mixbn(block.conv1, h, signals.omega[2 * i], p))
        outer = literal_mixbn(block.conv2, inner, signals.omega[2 * i + 1], p)
        width = outer.shape[1]
        skip = h if block.shortcut is None else literal_mixbn(block.shortcut, h, torch.ones(3, width).double(), p)
        h = F.relu(outer + skip)
    expected = F.linear(h.mean((2, 3)), net.classifier.weight, net.classifier.bias)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)  # P_type itself is float32


def test_a_sample_does_not_depend_on_its_batch(net: AWNet) -> None:
    """In evaluation every image is answered as if it had come alone."""
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(net(x), torch.cat([net(x[n : n + 1]) for n in range(3)]), rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_image_through_the_frozen_extractor(net: AWNet) -> None:
    """A white-box attacker differentiates through the detector, although none of its weights gets a gradient."""
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    signals = net.detect(x)
    for output in (signals.type_logits, signals.omega[0], signals.omega[-1]):
        (gradient,) = torch.autograd.grad(output[:, 0].sum(), x, retain_graph=True)
        assert float(gradient.abs().amax()) > 0
    net.train()
    net(x, "adv").sum().backward()
    assert all(p.grad is None for p in net.extractor.parameters())
    assert all(p.grad is not None for p in net.signal_heads.parameters())


def test_detached_signals_keep_their_values_and_lose_their_gradient(net: AWNet) -> None:
    """What threat level T1 cuts: the same logits, but no way into the detector."""
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    signals = net.detect(x)
    detached = signals.detach()
    assert torch.equal(net.classify(x, detached), net.classify(x, signals))
    assert not detached.type_logits.requires_grad and not any(o.requires_grad for o in detached.omega)


@pytest.mark.parametrize("training", [False, True])
def test_a_block_passes_gradcheck_in_float64(training: bool) -> None:
    """Autograd against finite differences, with respect to image, both omegas and P_type."""
    block = DynamicBlock(2, 3, 2, mixbn=True).double().train(training)
    shake(block)
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.track_running_stats = True
            norm.momentum = 0.0  # finite differences call it often: the running statistics must stand still
    x = torch.randn(2, 2, 4, 4).double().requires_grad_()
    omega1, omega2 = (
        (torch.rand(2, 3).double() + 0.5).requires_grad_(),
        (torch.rand(2, 3).double() + 0.5).requires_grad_(),
    )
    if training:
        assert torch.autograd.gradcheck(lambda a, b, c: block(a, (b, c), "adv"), (x, omega1, omega2))
    else:
        p = p_type(2).requires_grad_()
        assert torch.autograd.gradcheck(lambda a, b, c, d: block(a, (b, c), d), (x, omega1, omega2, p))


def test_training_mode_needs_a_branch_and_evaluation_does_not(net: AWNet) -> None:
    """Eq. 15 cannot guess the type of a training image; Eq. 16 predicts it."""
    x = torch.rand(2, 3, 32, 32)
    assert net(x).shape == (2, 10)
    net.train()
    with pytest.raises(ValueError, match="must be named"):
        net(x)
    with pytest.raises(ValueError, match="branch must be one of"):
        net(x, "natural")  # type: ignore[arg-type]


def test_a_frozen_extractor_ignores_the_batch_it_sees(net: AWNet) -> None:
    """Its batch norms stay in evaluation mode while the trunk trains, or batch statistics would leak the type."""
    x = torch.rand(4, 3, 32, 32)
    before = {k: v.clone() for k, v in net.extractor.state_dict().items()}
    psi = net.extractor(x)
    net.train()
    net(x, "nat")
    assert net.blocks[0].conv1.nat.training
    assert torch.equal(net.extractor(x), psi)
    assert all(torch.equal(v, before[k]) for k, v in net.extractor.state_dict().items())


def test_an_extractor_that_is_trained_does_get_gradients() -> None:
    """extractor_frozen=False is the other reading: weights learn and batch norms follow the batch."""
    net = AWNet(AWNetConfig(width=4, extractor_frozen=False)).train()
    net.detect(torch.rand(2, 3, 32, 32)).type_logits[:, 0].sum().backward()
    assert all(p.grad is not None for p in net.extractor.parameters())
    assert net.extractor.stem.nat.training


def rebuilt(net: AWNet, **changes: bool) -> AWNet:
    """The same weights under an ablation."""
    other = AWNet(dataclasses.replace(net.config, **changes)).eval()
    other.load_state_dict(net.state_dict(), strict=False)
    return other


def test_without_dynamic_filters_omega_has_no_effect(net: AWNet) -> None:
    """`dynamic=False` is omega = 1 everywhere, the type weighting still at work."""
    x = torch.rand(2, 3, 32, 32)
    signals = net.detect(x)
    neutral = signals._replace(omega=tuple(torch.ones_like(o) for o in signals.omega))
    static = rebuilt(net, dynamic=False)
    torch.testing.assert_close(static(x), net.classify(x, neutral))
    assert not torch.allclose(static(x), net(x))


def test_without_mixbn_one_batch_norm_serves_both_types(net: AWNet) -> None:
    """`mixbn=False` has no BN_adv at all, and both branches give the natural one's answer."""
    x = torch.rand(2, 3, 32, 32)
    single = rebuilt(net, mixbn=False)
    assert all(m.adv is None for m in single.modules() if isinstance(m, ConvMixBN))
    torch.testing.assert_close(single(x), net(x, "nat"))
    torch.testing.assert_close(single(x, "adv"), net(x, "nat"))


def test_without_type_weighting_the_adversarial_norm_answers(net: AWNet) -> None:
    """`type_weighting=False` (Table 3's row without the type head) is BN_adv only, omega still at work."""
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(rebuilt(net, type_weighting=False)(x), net(x, "adv"))
    assert not torch.allclose(net(x, "adv"), net(x, "nat"))


def test_bounded_mixing_weights_the_probabilities_of_the_branches(net: AWNet) -> None:
    net = net.double()
    net.config = dataclasses.replace(net.config, mixing="bounded", mixing_limit=0.3, mixing_temperature=2.5)
    x = torch.rand(4, 3, 32, 32).double()
    a = 0.3 * net.detect(x).p_type[:, NATURAL : NATURAL + 1].double()
    expected = (1 - a) * F.softmax(2.5 * net(x, "adv"), dim=1) + a * F.softmax(net(x, "nat"), dim=1)
    torch.testing.assert_close(net(x).exp(), expected, rtol=1e-6, atol=1e-6)  # P_type is a float32


def test_under_bounded_mixing_nothing_turns_a_class_of_which_the_adversarial_branch_is_certain() -> None:
    torch.manual_seed(0)
    limit, temperature = 0.4, 1.5
    adv = 3 * torch.randn(5000, 10)
    two = F.softmax(temperature * adv, dim=1).topk(2).values
    certain = two[:, 0] - two[:, 1] > limit / (1 - limit)
    assert 0.1 < certain.float().mean() < 0.9
    turned = torch.zeros(5000, dtype=torch.bool)
    for other in range(10):  # the natural branch and the detector both do their worst
        nat = torch.full((5000, 10), -60.0)
        nat[:, other] = 60
        types = torch.tensor([[-60.0, 60.0]]).expand(5000, 2)
        turned |= bounded_mixture(adv, nat, types, limit, temperature).argmax(1) != adv.argmax(1)
    assert not (turned & certain).any()
    assert (turned & ~certain).any()


def test_bounded_mixing_is_finite_where_the_detector_is_certain() -> None:
    logits = torch.tensor([[200.0, -200.0], [0.0, 0.0]])
    for types in (torch.tensor([[-500.0, 500.0]]), torch.tensor([[500.0, -500.0]])):
        assert bounded_mixture(logits, -logits, types.expand(2, 2), 0.45, 4.0).isfinite().all()


def test_any_extractor_with_a_feature_size_fits() -> None:
    """The extractor is pluggable: heads take its feature_dim."""

    class Mean(nn.Module):
        feature_dim = 3

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    net = AWNet(AWNetConfig(width=4), extractor=Mean()).eval()
    assert net.type_head.in_features == 3
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_normalisation_happens_inside_and_reaches_the_detector() -> None:
    """mean and std of the configuration act on trunk and extractor alike; pixels stay in [0, 1] outside."""
    plain = AWNet(AWNetConfig(width=4)).eval()
    shifted = AWNet(AWNetConfig(width=4, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))).eval()
    shifted.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 32, 32)
    normal = (x - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
    torch.testing.assert_close(shifted(x), plain(normal), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shifted.detect(x).type_logits, plain.detect(normal).type_logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"depth": 19},
            {"width": 0},
            {"beta": 0.0},
            {"extractor": "none"},
            {"std": (1.0, 0.0, 1.0)},
            {"num_classes": 0},
        ),
        *(
            {"mixing": "outputs"},
            {"mixing": "bounded", "mixbn": False},
            {"mixing_limit": 0.5},
            {"mixing_temperature": 0.0},
        ),
    ],
)
def test_an_impossible_configuration_is_refused(wrong: dict[str, object]) -> None:
    """A wrong value is a ValueError that names the field, before any weight exists."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AWNetConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [False, True], ids=["a shift each", "one shift for all"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_modulation_has_the_numbers_of_addcmul(dtype, layout, shared):
    """Value and the three gradients, bit for bit, in the same memory layout: it is faster and nothing else."""
    pi = torch.randn(3, 16, 6, 5).to(dtype).contiguous(memory_format=layout).requires_grad_()
    scale = torch.randn(3, 16, 1, 1).to(dtype).requires_grad_()
    shift = torch.randn(1 if shared else 3, 16, 1, 1).to(dtype).requires_grad_()
    gradient = torch.randn(3, 16, 6, 5).to(dtype).contiguous(memory_format=layout)
    results = []
    for out in (torch.addcmul(shift, pi, scale), Modulate.apply(pi, scale, shift)):
        results.append([out, *torch.autograd.grad(out, (pi, scale, shift), gradient)])
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found) and expected.stride() == found.stride()


def test_modulation_may_be_differentiated_twice():
    """Its gradients, and theirs, against finite differences."""
    sizes = ((2, 3, 4, 4), (2, 3, 1, 1), (1, 3, 1, 1))
    inputs = tuple(torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes)
    assert torch.autograd.gradcheck(Modulate.apply, inputs)
    assert torch.autograd.gradgradcheck(Modulate.apply, inputs)

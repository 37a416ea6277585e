"""The static networks have the sizes and shapes of the literature, and RepVGG's two forms are one function."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from training.data.sets import load_cifar10
from training.networks import checkpoint
from training.networks.baselines import (
    ARCHITECTURES,
    RESNET_BLOCKS,
    StaticConfig,
    StaticNet,
    build_static,
    reparameterised,
)
from training.networks.pretrained import load_pretrained
from training.networks.rdi import RdiResNet, entropy


def parameters(arch: str, num_classes: int = 10) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_static(StaticConfig(arch, num_classes=num_classes)).parameters())


@pytest.mark.parametrize(
    ("arch", "classes", "millions", "source"),
    [
        ("resnet18", 10, 11.17, "11.17 M, the usual CIFAR variant of He et al. 2016"),
        ("resnet34", 10, 21.28, "21.28 M, the same"),
        ("resnet50", 10, 23.52, "23.52 M, the same; 23.5 M is the body of the ImageNet network"),
        ("resnet20", 10, 0.27, "He et al. 2016, table 6"),
        ("resnet56", 10, 0.85, "He et al. 2016, table 6"),
        ("wrn28_10", 10, 36.48, "36.5 M: Zagoruyko and Komodakis 2016, table 4"),
        ("wrn34_8", 10, 29.55, "29.51 M: table 1 of the paper"),
        ("wrn34_10", 10, 46.16, "46.2 M: Zhang et al. 2019 and those who compare with it"),
        ("wrn70_16", 10, 266.80, "267 M: Gowal et al. 2020"),
        (
            "vgg16_bn",
            10,
            33.65,
            "torchvision's convolutions, 14.72 M, and a head of 512-4096-4096-10; the paper: 32.21 M",
        ),
        ("repvgg_a2", 1000, 28.21, "28.21 M in training: Ding et al. 2021 and their code"),
        ("repvgg_a2_fused", 1000, 25.50, "25.49 M deployed: Ding et al. 2021, table 4"),
        ("mobilenet_v2", 1000, 3.50, "3,504,872: torchvision's network for ImageNet; 3.4 M in Sandler et al. 2018"),
    ],
)
def test_full_width_has_the_published_size(arch: str, classes: int, millions: float, source: str) -> None:
    """Counts to ten thousand; strides and image sizes change none of them."""
    assert parameters(arch, classes) / 1e6 == pytest.approx(millions, abs=0.006), source


def test_the_body_of_resnet50_is_torchvision_s() -> None:
    """Stem and classifier are CIFAR's; block by block the parameters are those of the ImageNet network."""
    from torchvision.models import resnet50

    with torch.device("meta"):
        theirs = resnet50()
        ours = build_static(StaticConfig("resnet50")).body
    blocks = [block for k in range(1, 5) for block in getattr(theirs, f"layer{k}")]
    assert len(blocks) == len(ours.blocks) == sum(RESNET_BLOCKS[50]) == 16
    for mine, other in zip(ours.blocks, blocks, strict=True):
        assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in other.parameters())
        assert [c.stride for c in mine.modules() if isinstance(c, nn.Conv2d)] == [
            c.stride for c in other.modules() if isinstance(c, nn.Conv2d)
        ]


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_network_answers_both_image_sizes_and_trains(arch: str) -> None:
    """Narrow: [N, K] logits for 32x32 and 64x64 pixels, a gradient for every parameter, no leak in a batch."""
    torch.manual_seed(0)
    net = build_static(StaticConfig(arch, width=8, num_classes=7))
    net.train()
    loss = sum(z.logsumexp(1).sum() for z in net.exits(torch.rand(4, 3, 32, 32)))
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    assert all(p.grad is not None for p in net.parameters())
    net.eval()
    with torch.no_grad():
        for size in (32, 64):
            assert net(torch.rand(2, 3, size, size)).shape == (2, 7)
        x = torch.rand(3, 3, 32, 32)
        torch.testing.assert_close(net(x)[1:2], net(x[1:2]), rtol=1e-4, atol=1e-4)  # no image depends on its batch


def test_the_feature_maps_shrink_as_is_usual_for_32x32_images() -> None:
    """4x4 at the end of the four-stage networks, 8x8 for WideResNets and narrow ResNets, 2x2 before VGG's last pool."""
    sides: dict[str, int] = {}
    for arch in ARCHITECTURES:
        net, seen = build_static(StaticConfig(arch, width=8)).eval(), list[int]()
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.shape[-1]))
        with torch.no_grad():
            net(torch.rand(1, 3, 32, 32))
        sides[arch] = seen[-1]
    assert {a: s for a, s in sides.items() if s != 4} == {
        **{
            a: 8
            for a in ("resnet20", "resnet56", "rdi_resnet38", "wrn22_6", "wrn28_10", "wrn34_8", "wrn34_10", "wrn70_16")
        },
        **{a: 2 for a in ("vgg11_bn", "vgg16_bn")},
    }


def test_width_0_means_full_width_and_a_wrong_name_says_what_there_is() -> None:
    """A recipe may leave the width out; `width` is that of the first stage, 16 times the factor for a WideResNet."""
    assert StaticConfig("wrn34_8").width == 128 and StaticConfig("resnet56").width == 16
    assert StaticConfig("mobilenet_v2").width == 32 and StaticConfig().width == 64
    with pytest.raises(ValueError, match="wrn34_10"):
        StaticConfig("wideresnet")
    with pytest.raises(ValueError, match="at least 1"):
        StaticConfig("resnet18", width=-1)


@pytest.fixture
def repvgg() -> StaticNet:
    """Width 6, in float64, with batch norms that all matter."""
    torch.manual_seed(0)
    net = build_static(StaticConfig("repvgg_a2", 6, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))).double().eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(norm.weight, 0.7, 0.3)
            nn.init.normal_(norm.bias, 0, 0.3)
    return net


def test_the_deployed_repvgg_computes_what_the_trained_one_computes(repvgg: StaticNet, tmp_path: Path) -> None:
    """In float64 to eleven digits, block by block; the deployed form has 3x3 convolutions and nothing else."""
    other = reparameterised(repvgg)
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        h = repvgg.normalise(x)
        for mine, theirs in zip(repvgg.body.blocks, other.body.blocks, strict=True):
            torch.testing.assert_close(theirs(h), mine(h), rtol=1e-11, atol=1e-11)
            h = mine(h)
        torch.testing.assert_close(other(x), repvgg(x), rtol=1e-10, atol=1e-10)
    kinds = {type(m) for m in other.body.blocks.modules()} - {nn.ModuleList, nn.Sequential}
    assert kinds == {nn.Conv2d, nn.ReLU}
    assert {m.kernel_size for m in other.modules() if isinstance(m, nn.Conv2d)} == {(3, 3)}
    checkpoint.save(tmp_path / "r.pt", checkpoint.pack(other, labels=[], recipe={}))
    loaded = checkpoint.load(tmp_path / "r.pt").network
    torch.testing.assert_close(loaded(x.float()), repvgg(x).float(), rtol=1e-3, atol=1e-3)


def test_only_a_repvgg_can_be_reparameterised(repvgg: StaticNet) -> None:
    """Anything else, its own deployed form included, is refused by name."""
    for net in (build_static(StaticConfig("resnet18", 4)), reparameterised(repvgg)):
        with pytest.raises(ValueError, match=net.config.arch):
            reparameterised(net)


@pytest.fixture
def rdi() -> StaticNet:
    torch.manual_seed(0)
    net = build_static(StaticConfig("rdi_resnet38", 4)).eval()
    with torch.no_grad():
        for head in net.modules():
            if isinstance(head, nn.Linear):
                head.weight.mul_(8)  # exits that differ in how sure they are
    return net


def test_rdi_resnet38_has_six_exits_and_a_last_one(rdi: StaticNet) -> None:
    """Hu et al. 2020: 38 layers on the longest way, an exit after the second and the fifth block of each stage."""
    body = rdi.body
    assert isinstance(body, RdiResNet) and rdi.multi_exit
    assert list(body.branches) == ["1", "4", "7", "10", "13", "16"] and len(body.blocks) == 18
    assert 1 + 2 * len(body.blocks) + 1 == 38
    x = torch.rand(3, 3, 32, 32)
    assert [tuple(z.shape) for z in rdi.exits(x)] == [(3, 10)] * 7
    torch.testing.assert_close(rdi.train()(x).shape, torch.Size([3, 10]))
    rdi.eval()
    torch.testing.assert_close(rdi(x), rdi.exits(x)[-1])  # thresholds of zero: nobody leaves early


def test_an_image_leaves_by_the_first_exit_that_is_sure(rdi: StaticNet) -> None:
    """Image by image: the first exit with an entropy under its threshold answers, else the last."""
    assert isinstance(rdi.body, RdiResNet)
    x = torch.rand(24, 3, 32, 32) * torch.linspace(0.1, 3, 24)[:, None, None, None]
    rdi.body.entropy.copy_(torch.stack([entropy(z).quantile(0.2) for z in rdi.exits(x)[:-1]]).detach())
    logits = rdi.exits(x)
    answer, ways = rdi(x), set()
    for n in range(len(x)):
        for i, z in enumerate(logits):
            p = z[n].softmax(0)
            if i == 6 or -(p * p.log()).sum() <= rdi.body.entropy[i]:
                torch.testing.assert_close(answer[n], z[n])
                ways.add(i)
                break
    assert len(ways) > 2


def test_exits_are_set_so_that_each_gets_its_share(rdi: StaticNet, tmp_path: Path) -> None:
    """A seventh of the validation images leaves by each; the thresholds travel in the checkpoint."""
    x = torch.rand(140, 3, 32, 32)
    rdi.set_exits(x)
    assert isinstance(rdi.body, RdiResNet)
    with torch.no_grad():
        counts = rdi.body.leaves(rdi.exits(x)).bincount(minlength=7)
    assert counts.sum() == 140 and counts.min() >= 17 and counts.max() <= 23
    checkpoint.save(tmp_path / "r.pt", checkpoint.pack(rdi, labels=[], recipe={}))
    loaded = checkpoint.load(tmp_path / "r.pt").network
    assert torch.equal(loaded.body.entropy, rdi.body.entropy)


@pytest.mark.slow
def test_the_others_resnet56_reaches_its_published_accuracy() -> None:
    """93.39 % on the 10,000 test images, ImageNet normalisation inside the network; needs the weights and CIFAR-10."""
    data_dir = os.environ.get("AWNET_DATA_DIR")
    if data_dir is None:
        pytest.skip("needs CIFAR-10: set AWNET_DATA_DIR to the folder of cifar-10-batches-py")
    weights = Path(os.environ.get("AWNET_RESNET56", Path(data_dir) / "resnet56-cifar10.th"))
    if not weights.is_file():
        pytest.skip(f"no weights at {weights}: set AWNET_RESNET56 to the file of the CIFAR-10 ResNet-56")
    net = load_pretrained("resnet56", weights).to(memory_format=torch.channels_last)
    test, right = load_cifar10(Path(data_dir), download=False).test, 0
    with torch.inference_mode():
        for x, y in test.batches(500):
            right += int((net(x).argmax(1) == y).sum())
    assert right / len(test) == pytest.approx(0.9339, abs=0.0005)

"""Static networks: the paper's baselines, teachers and surrogates, by name and width.

All take pixels in [0, 1], [N, 3, H, W], and return logits [N, K]. Strides are those of 32x32 images, as is usual:
the last feature map is 4x4 for 32x32 pixels (8x8 for 64x64), WideResNets and the narrow CIFAR ResNets 8x8. So is
the full width of each, unless its table entry says otherwise.

`RdiResNet` is not quite static: it has seven exits, and an image leaves by the first one that is sure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.models import MobileNetV2
from torchvision.models.vgg import make_layers

from .network import Network
from .rdi import RdiResNet
from .repvgg import RepVGG, RepVGGBlock
from .residual import BasicBlock, Bottleneck, ConvBN, ResNet, WideResNet

RESNET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


@dataclass(frozen=True)
class StaticConfig:
    """A static network: `arch` in `ARCHITECTURES`, `width` channels in its first stage (0: the full width).

    mean and std are the per-channel normalisation inside the network (none by default).
    """

    arch: str = "resnet18"
    width: int = 0
    num_classes: int = 10
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch must be one of {sorted(ARCHITECTURES)}, not {self.arch!r}")
        if self.width == 0:
            object.__setattr__(self, "width", ARCHITECTURES[self.arch].width)
        if self.width < 1 or self.num_classes < 1:
            raise ValueError("width and num_classes must be at least 1")


class StaticNet(Network):
    """A classifier with its normalisation inside; `body` maps normalised pixels to logits."""

    kind = "static"
    config: StaticConfig
    mean: Tensor
    std: Tensor

    def __init__(self, config: StaticConfig, body: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self.body = body
        self.multi_exit = isinstance(body, RdiResNet)

    def normalise(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1] to what the first convolution sees."""
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(self.normalise(x))
        return logits

    def exits(self, x: Tensor) -> list[Tensor]:
        x = self.normalise(x)
        return self.body.exits(x) if isinstance(self.body, RdiResNet) else [self.body(x)]

    def set_exits(self, x: Tensor) -> None:
        if isinstance(self.body, RdiResNet):
            self.body.set_exits(self.normalise(x))


def vgg11_bn(width: int, num_classes: int) -> nn.Module:
    """VGG-11 with batch norm and one linear layer, `width` channels in the first convolution (64 in the original)."""
    layers: list[nn.Module] = []
    c_in = 3
    for c in (1, "M", 2, "M", 4, 4, "M", 8, 8, "M", 8, 8):
        if c == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [ConvBN(c_in, int(c) * width, 3), nn.ReLU()]
            c_in = int(c) * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, num_classes))


def vgg16_bn(width: int, num_classes: int) -> nn.Module:
    """VGG-16 with batch norm: torchvision's convolutions, and the original head of two hidden layers of 64 * width.

    The head reads the last map's average (1x1 for 32x32 images) instead of 7x7 places. At full width that is
    33.65 M parameters, near the paper's 32.21 M; the common variant with one linear layer has 14.73 M.
    """
    plan: list[str | int] = []
    for stage, count in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
        plan += [stage * width] * count + ["M"]
    hidden = 64 * width
    return nn.Sequential(
        make_layers(plan, batch_norm=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        *(nn.Linear(8 * width, hidden), nn.ReLU(), nn.Dropout()),
        *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout()),
        nn.Linear(hidden, num_classes),
    )


def mobilenet_v2(width: int, num_classes: int) -> nn.Module:
    """torchvision's MobileNetV2 with stride 1 in the stem and in the second stage; `width` channels in the stem (32).

    Channels are multiples of 8, as in torchvision; the last convolution never has fewer than 1,280.
    """
    plan = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    net: nn.Module = MobileNetV2(num_classes, width / 32, [list(row) for row in plan])
    stem = net.get_submodule("features.0.0")
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (1, 1)
    return net


def reparameterised(net: StaticNet) -> StaticNet:
    """The deployed form of a RepVGG, a network of its own (`<arch>_fused`) that computes the same in evaluation.

    Raises:
        ValueError: `net` is no RepVGG in its training form.
    """
    if not isinstance(net.body, RepVGG) or f"{net.config.arch}_fused" not in ARCHITECTURES:
        raise ValueError(f"only a RepVGG in its training form has another one, not {net.config.arch}")
    other = build_static(replace(net.config, arch=f"{net.config.arch}_fused")).to(net.body.classifier.weight)
    assert isinstance(other.body, RepVGG)
    other.body.classifier.load_state_dict(net.body.classifier.state_dict())
    with torch.no_grad():
        for mine, theirs in zip(net.body.blocks, other.body.blocks, strict=True):
            assert isinstance(mine, RepVGGBlock)
            for name, value in zip(("weight", "bias"), mine.fused(), strict=True):
                theirs.get_parameter(f"0.{name}").copy_(value)
    return other.train(net.training)


@dataclass(frozen=True)
class Architecture:
    """How to build one from (width, number of classes), and its full width: channels of the first stage."""

    width: int
    build: Callable[[int, int], nn.Module]


def _resnet(depth: int) -> Architecture:
    block = Bottleneck if depth >= 50 else BasicBlock
    return Architecture(64, lambda width, classes: ResNet(RESNET_BLOCKS[depth], width, classes, block=block))


def _narrow(count: int) -> Architecture:
    """The 6n+2-layer ResNets of He et al. for CIFAR-10."""
    return Architecture(16, lambda width, classes: ResNet((count,) * 3, width, classes, projection="pad"))


def _wide(depth: int, factor: int) -> Architecture:
    return Architecture(16 * factor, lambda width, classes: WideResNet(depth, factor, width, classes))


def _repvgg(fused: bool) -> Architecture:
    return Architecture(96, lambda width, classes: RepVGG(width, classes, 1.5, 2.75, fused))


ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": _resnet(18),
    "resnet34": _resnet(34),
    "resnet50": _resnet(50),
    "resnet20": _narrow(3),
    "resnet56": _narrow(9),
    "wrn22_6": _wide(22, 6),
    "wrn28_10": _wide(28, 10),
    "wrn34_8": _wide(34, 8),
    "wrn34_10": _wide(34, 10),
    "wrn70_16": _wide(70, 16),
    "vgg11_bn": Architecture(64, vgg11_bn),
    "vgg16_bn": Architecture(64, vgg16_bn),
    "repvgg_a2": _repvgg(fused=False),
    "repvgg_a2_fused": _repvgg(fused=True),
    "mobilenet_v2": Architecture(32, mobilenet_v2),
    "rdi_resnet38": Architecture(16, lambda width, classes: RdiResNet(6, width, classes)),
}


def build_static(config: StaticConfig) -> StaticNet:
    """The network that `config` names, freshly initialised."""
    return StaticNet(config, ARCHITECTURES[config.arch].build(config.width, config.num_classes))

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
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import MobileNetV2
from torchvision.models.vgg import make_layers

from ..core.hardware import Conv2d
from .network import Network

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


class ConvBN(nn.Module):
    """Convolution without bias, then batch norm."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; `projection` is 'conv' or 'pad' (CIFAR option A: no parameters)."""

    expansion = 1

    def __init__(self, c_in: int, c_out: int, stride: int, projection: str = "conv") -> None:
        super().__init__()
        self.conv1 = ConvBN(c_in, c_out, 3, stride)
        self.conv2 = ConvBN(c_out, c_out, 3)
        self.stride, self.extra = stride, c_out - c_in
        same = stride == 1 and c_in == c_out
        self.shortcut = ConvBN(c_in, c_out, 1, stride) if projection == "conv" and not same else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu(self.conv1(x)))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.extra or self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return F.relu(out + x)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions, the last to four times `c`, and a convolved shortcut."""

    expansion = 4

    def __init__(self, c_in: int, c: int, stride: int, projection: str = "conv") -> None:
        super().__init__()
        self.conv1 = ConvBN(c_in, c, 1)
        self.conv2 = ConvBN(c, c, 3, stride)
        self.conv3 = ConvBN(c, 4 * c, 1)
        same = stride == 1 and c_in == 4 * c
        self.shortcut = None if same else ConvBN(c_in, 4 * c, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    """CIFAR ResNet (He et al. 2016): 3x3 stem, stages of blocks that double the width, global average pool."""

    def __init__(
        self,
        blocks: tuple[int, ...],
        width: int,
        num_classes: int,
        projection: str = "conv",
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
    ) -> None:
        super().__init__()
        self.stem = ConvBN(3, width, 3)
        self.blocks, c_in = nn.ModuleList(), width
        for stage, count in enumerate(blocks):
            for i in range(count):
                stride = 2 if stage and i == 0 else 1
                self.blocks.append(block(c_in, width << stage, stride, projection))
                c_in = block.expansion * (width << stage)
        self.classifier = nn.Linear(c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x))
        for block in self.blocks:
            h = block(h)
        logits: Tensor = self.classifier(h.mean(dim=(2, 3)))
        return logits


class PreActBlock(nn.Module):
    """Batch norm and ReLU before each 3x3 convolution; where the shape changes the shortcut starts after the first."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(c_in), nn.BatchNorm2d(c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        same = stride == 1 and c_in == c_out
        self.shortcut = None if same else Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        out: Tensor = self.conv2(F.relu(self.norm2(self.conv1(h))))
        return out + (x if self.shortcut is None else self.shortcut(h))


class WideResNet(nn.Module):
    """WRN-depth-factor (Zagoruyko and Komodakis 2016) without dropout: `width` is 16 * factor, the stem has 16."""

    def __init__(self, depth: int, factor: int, width: int, num_classes: int) -> None:
        super().__init__()
        c_in = max(1, width // factor)
        self.stem = nn.Conv2d(3, c_in, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList()
        for stage in range(3):
            for i in range((depth - 4) // 6):
                self.blocks.append(PreActBlock(c_in, width << stage, 2 if stage and i == 0 else 1))
                c_in = width << stage
        self.norm = nn.BatchNorm2d(c_in)
        self.classifier = nn.Linear(c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        logits: Tensor = self.classifier(F.relu(self.norm(h)).mean(dim=(2, 3)))
        return logits


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


class RepVGGBlock(nn.Module):
    """A 3x3 and a 1x1 convolution and, where the shape allows, the identity, each with its batch norm; sum; ReLU."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv3 = ConvBN(c_in, c_out, 3, stride)
        self.conv1 = ConvBN(c_in, c_out, 1, stride)
        self.identity = nn.BatchNorm2d(c_in) if c_in == c_out and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv3(x) + self.conv1(x)
        return F.relu(out if self.identity is None else out + self.identity(x))

    def fused(self) -> tuple[Tensor, Tensor]:
        """(weight [c_out,c_in,3,3], bias [c_out]) of the one convolution that the block is in evaluation, float64.

        A 1x1 filter is a 3x3 filter that is zero around its middle, the identity is the 1x1 filter of the unit
        matrix, and a batch norm in evaluation scales filters and shifts (Ding et al. 2021, sec. 3.3).
        """
        c_out, c_in = self.conv3.conv.weight.shape[:2]
        branches = [
            (self.conv3.conv.weight, self.conv3.norm),
            (F.pad(self.conv1.conv.weight, (1,) * 4), self.conv1.norm),
        ]
        if self.identity is not None:
            unit = torch.eye(c_out, c_in, device=self.conv3.conv.weight.device)[:, :, None, None]
            branches.append((F.pad(unit, (1,) * 4), self.identity))
        weight, bias = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for filters, norm in branches:
            assert norm.running_mean is not None and norm.running_var is not None
            scale = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
            weight = weight + filters.double() * scale[:, None, None, None]
            bias = bias + norm.bias.double() - norm.running_mean.double() * scale
        return weight, bias


class RepVGG(nn.Module):
    """RepVGG (Ding et al. 2021), type A: stages of 1, 2, 4, 14 and 1 blocks; `fused` builds the one that is deployed.

    `width` is that of the second stage (64 a = 96 for A2); the first has min(64, 64 a) channels, the others 2, 4
    and 8 b/a times as many. Strides are 1, 1, 2, 2, 2 instead of five times 2: our choice for 32x32 images.
    """

    def __init__(self, width: int, num_classes: int, a: float, b: float, fused: bool) -> None:
        super().__init__()
        first, last = round(width * min(1, 1 / a)), round(8 * width * b / a)
        self.blocks, c_in = nn.ModuleList(), 3
        for count, c, stride in ((1, first, 1), (2, width, 1), (4, 2 * width, 2), (14, 4 * width, 2), (1, last, 2)):
            for i in range(count):
                s = stride if i == 0 else 1
                plain = nn.Sequential(nn.Conv2d(c_in, c, 3, s, padding=1), nn.ReLU()) if fused else None
                self.blocks.append(plain or RepVGGBlock(c_in, c, s))
                c_in = c
        self.classifier = nn.Linear(c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


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


class RdiResNet(nn.Module):
    """RDI-ResNet-38 (Hu et al. 2020, "Triple Wins"): a CIFAR ResNet with an exit after blocks 2 and 5 of each stage.

    In evaluation an image leaves by the first exit whose softmax has an entropy of at most `entropy` (nats, one
    value an exit; `set_exits` chooses them), otherwise by the last one. What it would meet later is still
    computed, because a batch holds images of all kinds; `leaves` says where each image left.
    In training `forward` returns the last exit's logits; objectives ask for all of them, through `exits`.
    """

    entropy: Tensor

    def __init__(self, count: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = ConvBN(3, width, 3)
        self.blocks, self.branches, c_in = nn.ModuleList(), nn.ModuleDict(), width
        for stage in range(3):
            c = width << stage
            for i in range(count):
                if i in (count // 4, 3 * count // 4):
                    self.branches[str(len(self.blocks))] = self.branch(stage, width, num_classes)
                self.blocks.append(BasicBlock(c_in, c, 2 if stage and i == 0 else 1))
                c_in = c
        self.classifier = nn.Linear(c_in, num_classes)
        self.register_buffer("entropy", torch.zeros(len(self.branches)))

    @staticmethod
    def branch(stage: int, width: int, num_classes: int) -> nn.Sequential:
        """One exit: the deeper its stage, the less stands between the features and the classifier."""
        layers: list[nn.Module] = []
        if stage == 0:
            layers += [nn.MaxPool2d(2), ConvBN(width, 4 * width, 5), nn.ReLU()]
            layers += [nn.MaxPool2d(2), ConvBN(4 * width, 2 * width, 3)]
        elif stage == 1:
            layers += [nn.MaxPool2d(2), BasicBlock(2 * width, 2 * width, 1)]
        channels = (4 if stage == 2 else 2) * width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))

    def exits(self, x: Tensor) -> list[Tensor]:
        """Logits of all seven exits, each [N, K]."""
        h, out = F.relu(self.stem(x)), []
        for i, block in enumerate(self.blocks):
            h = block(h)
            if str(i) in self.branches:
                out.append(self.branches[str(i)](h))
        return [*out, self.classifier(h.mean(dim=(2, 3)))]

    def leaves(self, logits: list[Tensor]) -> Tensor:
        """Index [N] of the exit by which each image leaves."""
        sure = torch.stack(
            [entropy(z) <= limit for z, limit in zip(logits[:-1], self.entropy, strict=True)]
            + [torch.ones(len(logits[0]), dtype=torch.bool, device=logits[0].device)]
        )
        return sure.int().argmax(0)

    @torch.no_grad()
    def set_exits(self, x: Tensor) -> None:
        """Thresholds by which an equal number of the images x [N, 3, H, W], normalised, leaves by each exit."""
        logits = self.exits(x)
        left = torch.arange(len(x), device=x.device)
        for i, z in enumerate(logits[:-1]):
            values = entropy(z[left])
            self.entropy[i] = values.quantile(1 / (len(logits) - i)) if len(values) else 0.0
            left = left[values > self.entropy[i]]

    def forward(self, x: Tensor) -> Tensor:
        logits = self.exits(x)
        if self.training:
            return logits[-1]
        chosen = self.leaves(logits)
        return torch.stack(logits)[chosen, torch.arange(len(x), device=x.device)]


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax of logits [N, K], in nats, [N]."""
    log_p = F.log_softmax(logits.float(), dim=1)
    return -(log_p.exp() * log_p).sum(1)


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

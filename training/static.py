"""Static networks: the paper's baselines, teachers and surrogates, by name and width.

All take pixels in [0, 1], [N, 3, H, W], and return logits [N, K].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESNET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


@dataclass(frozen=True)
class StaticConfig:
    """A static network: `arch` in `ARCHITECTURES`, `width` channels in its first stage.

    mean and std are the per-channel normalisation inside the network (none by default).
    """

    arch: str = "resnet18"
    width: int = 64
    num_classes: int = 10
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch must be one of {sorted(ARCHITECTURES)}, not {self.arch!r}")
        if self.width < 1 or self.num_classes < 1:
            raise ValueError("width and num_classes must be at least 1")


class StaticNet(nn.Module):
    """A classifier with its normalisation inside; `body` maps normalised pixels to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: StaticConfig, body: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body((x - self.mean) / self.std)
        return logits


class ConvBN(nn.Module):
    """Convolution without bias, then batch norm."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; `projection` is 'conv' or 'pad' (CIFAR option A: no parameters)."""

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


class ResNet(nn.Module):
    """CIFAR ResNet: 3x3 stem, stages of basic blocks that double the width, global average pool."""

    def __init__(self, blocks: tuple[int, ...], width: int, num_classes: int, projection: str = "conv") -> None:
        super().__init__()
        self.stem = ConvBN(3, width, 3)
        self.blocks, c_in = nn.ModuleList(), width
        for stage, count in enumerate(blocks):
            for i in range(count):
                stride = 2 if stage and i == 0 else 1
                self.blocks.append(BasicBlock(c_in, width << stage, stride, projection))
                c_in = width << stage
        self.classifier = nn.Linear(c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x))
        for block in self.blocks:
            h = block(h)
        logits: Tensor = self.classifier(h.mean(dim=(2, 3)))
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


ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet18": lambda width, classes: ResNet(RESNET_BLOCKS[18], width, classes),
    "resnet34": lambda width, classes: ResNet(RESNET_BLOCKS[34], width, classes),
    "resnet20": lambda width, classes: ResNet((3, 3, 3), width, classes, projection="pad"),
    "resnet56": lambda width, classes: ResNet((9, 9, 9), width, classes, projection="pad"),
    "vgg11_bn": vgg11_bn,
}


def build_static(config: StaticConfig) -> StaticNet:
    """The network that `config` names, freshly initialised."""
    return StaticNet(config, ARCHITECTURES[config.arch](config.width, config.num_classes))

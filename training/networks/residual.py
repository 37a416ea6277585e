"""Residual networks of the baselines: ResNets with basic and bottleneck blocks, and WideResNets."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.hardware import Conv2d


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

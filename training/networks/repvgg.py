"""RepVGG: three branches a block in training, one convolution when deployed (Ding et al. 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .residual import ConvBN


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

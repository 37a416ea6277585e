"""RDI-ResNet-38: exits that an image takes as soon as one is sure (Hu et al. 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .residual import BasicBlock, ConvBN


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

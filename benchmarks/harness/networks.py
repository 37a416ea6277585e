"""Random AW-Nets: what training makes in hours, made at once, for what needs no trained one."""

from __future__ import annotations

import torch
from torch import nn

from training.networks.awnet import AWNet


def randomised(net: AWNet) -> AWNet:
    """`net`, in evaluation, with heads and batch norms that all matter, from torch's random numbers as they stand."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
        for head in net.signal_heads:
            head.weight.normal_(0, 0.1)
            head.bias.normal_(0, 0.1)
        net.type_head.weight.normal_(0, 1)
    return net.eval()

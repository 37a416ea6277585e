"""The paper's claims about filters (sec. 3), as numbers: their means and variances, input gradients, omega times K.

A filter is K_m of Eq. 12: the weights [c_in, k, k] that make one output channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.ascent import Budget, cross_entropy
from ..attacks.pgd import pgd_trades
from ..networks.awnet import AWNet
from ..networks.network import Network


def convolutions(net: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """(name, layer) of every convolution but the extractor's, in the order in which they were made."""
    return [
        (name, layer)
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Conv2d) and not name.startswith("extractor.")
    ]


def filter_moments(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Mean and variance of each filter's weights, each [c_out]; the variance is that of the weights there are (1/n)."""
    weights = layer.weight.detach().flatten(1).double()
    return weights.mean(1), weights.var(1, correction=0)


def moments_of(net: nn.Module, layers: int | None = None) -> dict[str, dict[str, list[float]]]:
    """layer -> {"means": [...], "variances": [...]} of the first `layers` convolutions (all where it is None)."""
    found = {}
    for name, layer in convolutions(net)[:layers]:
        means, variances = filter_moments(layer)
        found[name] = {"means": means.tolist(), "variances": variances.tolist()}
    return found


def spread(moments: dict[str, list[float]]) -> dict[str, float]:
    """What sec. 3.1 calls rough or smooth: how far the filters' means lie apart, how large their variances are."""
    means, variances = torch.tensor(moments["means"]), torch.tensor(moments["variances"])
    return {
        "standard_deviation_of_means": float(means.std(correction=0)),
        "mean_variance": float(variances.mean()),
        "largest_mean": float(means.abs().max()),
        "largest_variance": float(variances.max()),
    }


def gradient_norm(net: Network, x: Tensor, y: Tensor) -> float:
    """Mean over images of |dL/dx|_1, the regulariser of Eq. 5: L1 is the dual of L-infinity. x [N,3,H,W] in [0,1]."""
    z = x.detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(cross_entropy(net(z), y).sum(), z)
    return float(gradient.flatten(1).abs().sum(1).mean())


def modulated_variance(net: AWNet, x: Tensor) -> dict[str, float]:
    """Per modulated convolution the variance of the filters omega * K (Eq. 13) over that of K: mean over filters and x.

    Sec. 4.2 expects it smaller for adversarial than for clean images.
    """
    with torch.no_grad():
        omega = net.detect(x).omega
    found = {}
    for (name, unit), o in zip(net.modulated(), omega, strict=True):
        _, variances = filter_moments(unit.conv)
        scaled = o.double().square() * variances  # var(omega K) = omega^2 var(K)
        found[name] = float(scaled.mean() / variances.mean())
    return found


def describe(net: Network, x: Tensor, y: Tensor, budget: Budget | None = None) -> dict[str, Any]:
    """The gradient norm on x, and for an AW-Net the variance of omega * K on x and on its PGD examples (T2)."""
    net.eval()
    found: dict[str, Any] = {"images": len(x), "gradient_norm": gradient_norm(net, x, y)}
    if isinstance(net, AWNet):
        x_adv = pgd_trades(net, x, y, budget or Budget())
        clean, adversarial = modulated_variance(net, x), modulated_variance(net, x_adv)
        found["omega_variance"] = {name: {"clean": clean[name], "adversarial": adversarial[name]} for name in clean}
        found["omega_variance_mean"] = {
            kind: sum(v.values()) / len(v) for kind, v in (("clean", clean), ("adversarial", adversarial))
        }
    return found

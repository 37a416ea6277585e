"""AutoAttack by the package pyautoattack."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from .ascent import Budget, Model, project, quantise, whole_levels


def autoattack(model: Model, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """AutoAttack, standard version (Croce and Hein 2020), by the package pyautoattack: APGD-CE, APGD-T, FAB-T, Square.

    Each of its attacks sees the network behind a rounding to 8 bits, whose gradient is that of the identity: what it
    accepts is what a file can hold, and the result is 8-bit. x are 8-bit images; eps is rounded down to whole levels.

    It is the standard one with 100 `budget.steps`; another number takes as many iterations, and 50 times as many
    queries for Square. At most nine target classes, fewer where there are fewer classes (four at least). Images
    that resist come back as they are. The step size is not used.
    """
    return _run(model, x, y, budget)


def square(model: Model, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """AutoAttack's Square alone (Andriushchenko et al., arXiv 1912.00049), a black box that sees logits.

    As `autoattack`, with 50 queries an image for each of `budget.steps`.
    """
    return _run(model, x, y, budget, ["square"])


def _run(model: Model, x: Tensor, y: Tensor, budget: Budget, attacks: list[str] | None = None) -> Tensor:
    """Some of the attacks, by their names in the package, or all of them."""
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise ValueError("AutoAttack needs the package pyautoattack: pip install pyautoattack") from error
    eps = whole_levels(budget.eps)
    with torch.no_grad():
        targets = min(9, model(x[:1]).shape[1] - 1)
    if targets < 3:
        raise ValueError("AutoAttack needs four classes at least: its DLR loss compares the four highest logits")
    seed = int(torch.randint(2**31, ()))
    attack = AutoAttack(
        _Module(model),
        attacks=attacks,
        eps=eps,
        norm="Linf",
        seed=seed,
        version="custom" if attacks else "standard",
        device=x.device,
    )
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = budget.steps
    attack.square.n_queries = 50 * budget.steps
    state = torch.get_rng_state()  # it seeds the global generator anew for each of its attacks
    weights = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    try:
        for p in weights:  # FAB calls backward(), which would leave gradients in them
            p.requires_grad_(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x_adv, _ = attack.run_standard_evaluation(x.contiguous(), y, batch_size=len(x))
    finally:
        for p in weights:
            p.requires_grad_(True)
        torch.set_rng_state(state)
    return quantise(project(x_adv.detach(), x, eps))


class _Module(nn.Module):
    """Any model as a module, which is what AutoAttack takes, behind 8-bit rounding that its gradient ignores."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = [model]  # in a list, so that its parameters are not registered here

    def forward(self, x: Tensor) -> Tensor:
        return self.model[0](quantise(x.detach()) + (x - x.detach()))

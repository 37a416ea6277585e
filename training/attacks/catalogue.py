"""The attacks by their names, each with its budget."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .ascent import Budget, Model
from .autoattack import autoattack, square
from .pgd import adaptive, cw_inf, fgsm, pgd_restarts, pgd_sat, pgd_trades

Attack = Callable[[Model, Tensor, Tensor, Budget], Tensor]

# name -> (attack, its budget: the paper's in sec. 5.3 for the first four and the adaptive one)
ATTACKS: dict[str, tuple[Attack, Budget]] = {
    "fgsm": (fgsm, Budget(steps=1, step=8 / 255)),
    "pgd_sat": (pgd_sat, Budget(steps=20)),
    "pgd_trades": (pgd_trades, Budget(steps=20)),
    "cw_inf": (cw_inf, Budget(steps=30)),
    "adaptive": (adaptive, Budget(steps=20)),
    "pgd_restarts": (pgd_restarts, Budget(steps=50, restarts=10)),
    "autoattack": (autoattack, Budget(steps=100)),
    "square": (square, Budget(steps=20)),
}

"""Which balancers a plan may have; without the simulation, which the options do not need."""

from __future__ import annotations

from typing import Literal, get_args

Balancer = Literal["least", "round-robin", "random", "two"]
BALANCERS: tuple[Balancer, ...] = get_args(Balancer)

"""When requests of an open loop are sent: by a clock of their own, whether or not earlier ones are answered."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal, get_args

Arrivals = Literal["poisson", "constant", "bursts"]
KINDS: tuple[Arrivals, ...] = get_args(Arrivals)
BURST_SECONDS = 1.0  # between two bursts


def arrivals(kind: Arrivals, rate: float, seconds: float, seed: int = 0) -> Iterator[float]:
    """Seconds after the start, ascending and below `seconds`.

    Args:
        kind: `constant`: evenly spaced. `poisson`: independent of each other, as those of many clients are.
            `bursts`: all of a second's at its beginning.
        rate: requests a second on average, above 0.
    """
    if kind == "poisson":
        random_numbers = random.Random(seed)  # noqa: S311, a load and no secret
        now = random_numbers.expovariate(rate)
        while now < seconds:
            yield now
            now += random_numbers.expovariate(rate)
        return
    place = 0
    while (now := place / rate) < seconds:
        yield now if kind == "constant" else now // BURST_SECONDS * BURST_SECONDS
        place += 1

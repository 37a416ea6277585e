"""What becomes of attacks on /predict behind the query guard: every attacker of `attackers` on several images."""

from __future__ import annotations

import http.client
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from export.audit.black_box import Counts, Pixels

from ..harness.exchange import exposition
from ..harness.processes import Server
from .attackers import EPS, Attacker, Client, attack, cropped, noisy, shifted, waved
from .honest_traffic import png

LIMIT = 64
PAUSES = 2.0  # seconds that a server remembers in the row about pauses


class Attacked(NamedTuple):
    """Images [N,3,S,S] with their classes [N]; those of `chosen` are attacked, from the starts beside them."""

    images: Pixels
    labels: Counts
    chosen: list[int]
    starts: list[int]
    queries: int


class Row(NamedTuple):
    """An attack in one variant against one state of the guard.

    `how`: see `Attacker`; `settings`: of the server; `part`: of the most queries.
    """

    kind: str
    about: str = "plain"
    guard: str = "flag"
    how: Mapping[str, Any] = {}
    settings: Mapping[str, Any] = {}
    part: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.about}, {self.guard}"


def table(others: Pixels, seconds: float) -> list[Row]:
    """Every row; `others` are images to hide among, `seconds` the time of an attack that is slowed down."""
    paused = {"query_guard_seconds": PAUSES}
    each = [
        Row(""),
        Row("", "noise of 3 levels", how={"variant": noisy}, part=0.3),
        Row("", "16 addresses", how={"addresses": 16}, part=0.3),
        Row("", "crops", how={"variant": cropped}, part=0.3),
        Row("", guard="slow", how={"seconds": seconds}),
        Row("", "4 addresses", how={"addresses": 4}, part=0.4),
        Row("", "4 addresses", "slow", {"seconds": seconds, "addresses": 4}),
        Row("", "shifts by a pixel", how={"variant": shifted}, part=0.4),
        Row("", "a pause after 60", how={"pause": (60, PAUSES + 0.5)}, settings=paused, part=0.15),
        Row("", "waves", how={"variant": waved}, part=0.15),
        Row("", "an other image between", how={"others": others}, part=0.15),
        Row("", "2 workers, a connection a query", how={"keep": False}, settings={"workers": 2}, part=0.25),
    ]
    rows = [row._replace(kind=kind) for row in each for kind in ("square", "boundary")]
    rows.insert(2, Row("estimated", "probes of one level", part=0.5))
    return rows


def attacks(
    scratch: Path, images: Pixels, labels: Counts, most: int, queries: int, seconds: float, only: str = ""
) -> Iterator[Any]:
    """Every row of the table, each on a server of its own.

    Args:
        most: images that are attacked, of those that are answered right.
        queries: of each attack on an image; seconds: of one that is slowed down.
        only: rows in whose name this stands.
    """
    attacked: Attacked | None = None
    for row in table(images[5000:], seconds):
        if only not in row.name:
            continue
        with Server(scratch, query_guard=row.guard, **row.settings) as server:
            server.wait_ready(180)
            attacked = attacked or Attacked(images, labels, *_chosen(server, images[:100], labels, most), queries)
            yield measured(server, row, attacked)


def _chosen(server: Server, images: Pixels, labels: Counts, most: int) -> tuple[list[int], list[int]]:
    """Images that are answered right, and to each one that is answered with another class than its own."""
    client, classes = Client(server.port), []
    for image in images:
        _, document, _ = client.ask(png(image))
        classes.append(document["results"][0]["predictions"][0]["class_id"])
    client.close()
    chosen = [n for n, found in enumerate(classes) if found == labels[n]][:most]
    return chosen, [next(m for m, found in enumerate(classes) if found != labels[n]) for n in chosen]


def measured(server: Server, row: Row, attacked: Attacked) -> dict[str, Any]:
    """One row: its attack on all chosen images, several side by side."""
    images, labels, chosen = attacked.images, attacked.labels, attacked.chosen
    before, queries = _events(server), round(attacked.queries * row.part)
    attackers = [Attacker(server.port, images[n], int(labels[n]), **row.how) for n in chosen]

    def run(place: int) -> None:
        n = chosen[place]
        attack(row.kind, attackers[place], images[n], int(labels[n]), images[attacked.starts[place]], queries, place)

    with ThreadPoolExecutor(len(chosen) if row.guard == "slow" or row.settings else 6) as pool:
        list(tqdm(pool.map(run, range(len(chosen))), row.name, len(chosen), leave=False))
    asked = sum(one.asked for one in attackers)
    long = [one for one in attackers if one.asked > LIMIT or one.found_at]
    return {
        "name": row.name,
        "attack": row.kind,
        "variant": row.about,
        "guard": row.guard,
        "images": len(attackers),
        "queries": queries,
        "asked": [one.asked for one in attackers],
        "found_at": [one.found_at for one in attackers],
        "succeeded": sum(one.nearest <= EPS for one in attackers),
        "median_nearest": _median(one.nearest for one in attackers if one.nearest < math.inf),
        "long_enough": len(long),
        "found": sum(one.found_at is not None for one in long),
        "flagged": sum(one.flagged for one in attackers) / asked,
        "refused": sum(one.refused for one in attackers),
        "events_of_all": _events(server) - before,
    }


def _events(server: Server) -> int:
    """Times that all clients together were told of."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, 120)
    connection.request("GET", "/metrics")
    samples = exposition(connection.getresponse().read())
    connection.close()
    return int(samples['awnet_query_guard_events_total{who="all"}'])


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(statistics.median(found)) if found else None

"""Attackers of /predict who know of the query guard or not, one attack on one image each, and what became of them.

Attacks are those of `export.audit.black_box`: Square with probabilities, the boundary attack with classes alone, with
8-bit images in PNG files. Clients are addresses of 127.0.0.0/8.
"""

from __future__ import annotations

import http.client
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from export.audit.black_box import Answers, Counts, Pixels, boundary, distances, square

from .harness.exchange import exposition
from .harness.processes import Server
from .honest_traffic import png

EPS = 8  # levels
LIMIT = 64
PAUSES = 2.0  # seconds that a server remembers in the row about pauses
_addresses = count(1)

Variant = Callable[[Pixels, np.random.Generator], Pixels]


class Client:
    """One client: an address of its own, one connection, what it was told."""

    def __init__(self, port: int, keep: bool = True) -> None:
        self._number = next(_addresses)
        self._port, self._keep = port, keep
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, *images: bytes, query: str = "") -> tuple[int, dict[str, Any], int]:
        """Status, document and Retry-After of one request."""
        if self._connection is None:
            source = f"127.1.{self._number // 250}.{self._number % 250 + 1}"
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, 120, source_address=(source, 0))
        head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        body = b"".join(head + image + b"\r\n" for image in images) + b"--b--\r\n"
        self._connection.request("POST", f"/predict{query}", body, {"Content-Type": "multipart/form-data; boundary=b"})
        answer = self._connection.getresponse()
        document = json.loads(answer.read())
        if not self._keep:
            self.close()
        return answer.status, document, int(answer.headers.get("Retry-After", 0))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def plain(image: Pixels, rng: np.random.Generator) -> Pixels:
    return image


def noisy(image: Pixels, rng: np.random.Generator) -> Pixels:
    return np.clip(np.rint(image + rng.normal(0, 3, image.shape)), 0, 255).astype(np.uint8)


def shifted(image: Pixels, rng: np.random.Generator) -> Pixels:
    """By up to a pixel both ways."""
    down, right = rng.integers(0, 3, 2)
    size = image.shape[1]
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    return padded[:, down : down + size, right : right + size]


def cropped(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A window of 29 to 31 pixels anywhere in it, scaled up again."""
    size, side = image.shape[1], int(rng.integers(29, 32))
    top, left = rng.integers(0, size - side + 1, 2)
    window = Image.fromarray(image[:, top : top + side, left : left + side].transpose(1, 2, 0))
    return np.asarray(window.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def waved(image: Pixels, rng: np.random.Generator) -> Pixels:
    """With waves of low frequency in every place of the perceptual hash, 8 levels of all together at most."""
    places = (np.arange(image.shape[1]) + 0.5) / image.shape[1]
    waves = np.cos(np.pi * np.arange(8)[:, None] * places)
    change = waves.T @ rng.choice([-1.0, 1.0], (8, 8)) @ waves
    return np.clip(np.rint(image + EPS * change / np.abs(change).max()), 0, 255).astype(np.uint8)


class TimeUpError(Exception):
    """The attacker's time is over, or nothing is answered any more."""


class Attacker:
    """Asks for one attack on one image, as an attacker who changes each query and what comes from where.

    Attributes:
        asked: queries that were answered.
        found_at: the query with which the server first said that it repeats itself; None where it did not.
        flagged: queries of which it said so.
        nearest: L-infinity distance in levels of the nearest image, before it was disguised, that got a wrong class.
    """

    def __init__(
        self,
        port: int,
        image: Pixels,
        label: int,
        variant: Variant = plain,
        addresses: int = 1,
        others: Pixels | None = None,
        pause: tuple[int, float] | None = None,
        seconds: float = math.inf,
        keep: bool = True,
    ) -> None:
        self._clients = [Client(port, keep) for _ in range(addresses)]
        self._image, self._label, self._variant = image, label, variant
        self._others, self._pause = others, pause
        self._rng = np.random.default_rng(label)
        self._until = time.monotonic() + seconds
        self.asked = self.flagged = self.refused = 0
        self.found_at: int | None = None
        self.nearest = math.inf

    def __call__(self, tries: Pixels) -> Answers:
        answers = [self._one(image) for image in tries]
        logits, score, limit = (np.array(part) for part in zip(*answers, strict=True))
        return Answers(logits, score, limit)

    def _one(self, image: Pixels) -> tuple[list[float], float, float]:
        if self._pause and self.asked and self.asked % self._pause[0] == 0:
            time.sleep(self._pause[1])
        client = self._clients[self.asked % len(self._clients)]
        if self._others is not None:
            for other in self._rng.integers(0, len(self._others), 1):
                client.ask(png(self._others[other]))
        document = self._answer(client, png(self._variant(image, self._rng)))
        self.asked += 1
        result = document["results"][0]
        if result.get("query_guard", {}).get("repeated"):
            self.flagged += 1
            self.found_at = self.found_at or self.asked
        logits = [0.0] * len(result["predictions"])
        for named in result["predictions"]:
            logits[named["class_id"]] = math.log(max(named["probability"], 1e-30))
        if int(np.argmax(logits)) != self._label:
            self.nearest = min(self.nearest, float(distances(self._image[None], image[None])[0][0]))
        told = result["adversarial"]
        return logits, told["score"], told["thresholds"]["suspicious"]

    def _answer(self, client: Client, file: bytes) -> dict[str, Any]:
        """The answer, whenever it comes; who is refused comes again as told."""
        while True:
            if time.monotonic() > self._until:
                raise TimeUpError
            status, document, retry_after = client.ask(file, query="?top_k=10")
            if status == 200:
                return document
            assert status == 429, document
            self.refused += 1
            self.found_at = self.found_at or self.asked + 1
            if time.monotonic() + retry_after > self._until:
                raise TimeUpError
            time.sleep(retry_after)

    def close(self) -> None:
        for client in self._clients:
            client.close()


def attack(kind: str, attacker: Attacker, image: Pixels, label: int, start: Pixels, queries: int, seed: int) -> None:
    """Run it to its end, or to the end of the attacker's time."""
    rng = np.random.default_rng(seed)
    try:
        if kind == "square":
            square(attacker, image[None], np.array([label]), "class", eps=EPS, queries=queries, rng=rng)
        else:
            # Of the second image every class is wrong, so that it is a start and nothing else.
            pair, labels = np.stack([image, start]), np.array([label, label])
            boundary(attacker, pair, labels, "class", queries=queries, rng=rng)
    except TimeUpError:
        pass
    finally:
        attacker.close()


class Attacked(NamedTuple):
    """Images [N,3,S,S] with their classes [N]; those of `chosen` are attacked, from the starts beside them."""

    images: Pixels
    labels: Counts
    chosen: list[int]
    starts: list[int]
    queries: int


class Row(NamedTuple):
    """An attack in one variant against one state of the guard.

    `how`: see `Attacker`; `settings`: of the server; `longer`: times as many queries.
    """

    kind: str
    about: str = "plain"
    guard: str = "flag"
    how: Mapping[str, Any] = {}
    settings: Mapping[str, Any] = {}
    longer: int = 1

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.about}, {self.guard}"


def table(others: Pixels, seconds: float) -> list[Row]:
    """Every row; `others` are images to hide among, `seconds` the time of an attack that is slowed down."""
    rows = []
    for kind in ("square", "boundary"):
        rows += [
            Row(kind),
            Row(kind, guard="off", longer=3),
            Row(kind, "noise of 3 levels", how={"variant": noisy}),
            Row(kind, "shifts by a pixel", how={"variant": shifted}, longer=3),
            Row(kind, "crops", how={"variant": cropped}, longer=3),
            Row(kind, "waves", how={"variant": waved}),
            Row(kind, "an other image between", how={"others": others}),
            Row(kind, "4 addresses", how={"addresses": 4}, longer=3),
            Row(kind, "16 addresses", how={"addresses": 16}, longer=3),
            Row(kind, guard="slow", how={"seconds": seconds}, longer=3),
            Row(kind, "4 addresses", "slow", {"seconds": seconds, "addresses": 4}, longer=3),
            Row(kind, "a pause after 60", how={"pause": (60, PAUSES + 0.5)}, settings={"query_guard_seconds": PAUSES}),
            Row(kind, "2 workers, a connection a query", how={"keep": False}, settings={"workers": 2}, longer=2),
        ]
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
    given: Attacked | None = None
    for row in table(images[5000:], seconds):
        if only not in row.name:
            continue
        with Server(scratch, query_guard=row.guard, **row.settings) as server:
            server.wait_ready(180)
            given = given or Attacked(images, labels, *_chosen(server, images[:100], labels, most), queries)
            yield measured(server, row, given)


def _chosen(server: Server, images: Pixels, labels: Counts, most: int) -> tuple[list[int], list[int]]:
    """Images that are answered right, and to each one that is answered with another class than its own."""
    client, classes = Client(server.port), []
    for image in images:
        _, document, _ = client.ask(png(image))
        classes.append(document["results"][0]["predictions"][0]["class_id"])
    client.close()
    chosen = [n for n, found in enumerate(classes) if found == labels[n]][:most]
    return chosen, [next(m for m, found in enumerate(classes) if found != labels[n]) for n in chosen]


def measured(server: Server, row: Row, given: Attacked) -> dict[str, Any]:
    """One row: its attack on all chosen images, several side by side."""
    images, labels, chosen = given.images, given.labels, given.chosen
    before, queries = _events(server), given.queries * row.longer
    attackers = [Attacker(server.port, images[n], int(labels[n]), **row.how) for n in chosen]

    def run(place: int) -> None:
        n = chosen[place]
        attack(row.kind, attackers[place], images[n], int(labels[n]), images[given.starts[place]], queries, place)

    with ThreadPoolExecutor(len(chosen) if row.guard == "slow" else 2) as pool:
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
        "succeeded": sum(one.nearest <= EPS for one in attackers),
        "median_nearest": _median(one.nearest for one in attackers if one.nearest < math.inf),
        "asked": asked,
        "median_asked": _median(one.asked for one in attackers),
        "long_enough": len(long),
        "found": sum(one.found_at is not None for one in long),
        "median_found_at": _median(one.found_at for one in long if one.found_at),
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

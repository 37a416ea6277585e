"""Attackers of /predict who know of the query guard or not, one attack on one image each.

Attacks are those of `export.audit.black_box`, Square with probabilities and the boundary attack with classes alone, and
`estimated`, which hides in what the guard takes for noise; all with 8-bit images in PNG files. Clients are addresses
of 127.0.0.0/8.
"""

from __future__ import annotations

import http.client
import json
import math
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Protocol

import numpy as np
from PIL import Image

from export.audit.black_box import Answers, Levels, Pixels, boundary, distances, margin, square

from .honest_traffic import png

EPS = 8  # levels
TOGETHER = 16  # images in a request, where an attack asks about several at once
PROBES = 24  # of an estimated gradient, and as many of the opposite sign
_addresses = count(1)

Variant = Callable[[Pixels, np.random.Generator], Pixels]


class Client:
    """One client: an address of its own, one connection, what it was told."""

    def __init__(self, port: int, keep: bool = True, headers: Mapping[str, str] | None = None) -> None:
        self._headers = {**(headers or {}), "Content-Type": "multipart/form-data; boundary=b"}
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
        self._connection.request("POST", f"/predict{query}", body, self._headers)
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
    padded: Pixels = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
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


class Asked(Protocol):
    """Who is asked by an attack."""

    def __call__(self, tries: Pixels) -> Answers: ...

    def close(self) -> None: ...


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
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._clients = [Client(port, keep, headers) for _ in range(addresses)]
        self._image, self._label, self._variant = image, label, variant
        self._others, self._pause = others, pause
        self._rng = np.random.default_rng(label)
        self._until = time.monotonic() + seconds
        self.asked = self.flagged = self.refused = 0
        self.found_at: int | None = None
        self.nearest = math.inf

    def __call__(self, tries: Pixels) -> Answers:
        alone = self._pause or self._others is not None or len(self._clients) > 1 or self._until < math.inf
        each = 1 if alone else TOGETHER
        answers = [one for at in range(0, len(tries), each) for one in self._some(tries[at : at + each])]
        logits, score, limit = (np.array(part) for part in zip(*answers, strict=True))
        return Answers(logits, score, limit)

    def _some(self, images: Pixels) -> list[tuple[list[float], float, float]]:
        """What one request says of these."""
        if self._pause and self.asked and self.asked % self._pause[0] == 0:
            time.sleep(self._pause[1])
        client = self._clients[self.asked % len(self._clients)]
        if self._others is not None:
            client.ask(png(self._others[self._rng.integers(len(self._others))]))
        document = self._answer(client, [png(self._variant(image, self._rng)) for image in images])
        return [self._signals(image, result) for image, result in zip(images, document["results"], strict=True)]

    def _signals(self, image: Pixels, result: dict[str, Any]) -> tuple[list[float], float, float]:
        self.asked += 1
        if result.get("query_guard", {}).get("repeated"):
            self.flagged += 1
            self.found_at = self.found_at or self.asked
        logits = [0.0] * len(result["predictions"])
        for named in result["predictions"]:
            logits[named["class_id"]] = math.log(max(named["probability"], 1e-30))
        if int(np.argmax(logits)) != self._label:
            self.nearest = min(self.nearest, float(distances(self._image[None], image[None])[0][0]))
        judgement = result["adversarial"]
        return logits, judgement["score"], judgement["thresholds"]["suspicious"]

    def _answer(self, client: Client, files: list[bytes]) -> dict[str, Any]:
        """The answer, whenever it comes; who is refused comes again as told."""
        while True:
            if time.monotonic() > self._until:
                raise TimeUpError
            status, document, retry_after = client.ask(*files, query="?top_k=10")
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


def estimated(
    ask: Callable[[Pixels], Answers], image: Pixels, label: int, queries: int, rng: np.random.Generator
) -> None:
    """Descend the margin by gradients estimated from probes (Ilyas et al. 2018, arXiv 1804.08598). Each probe changes
    half of the values by one level, as the noise of a camera does; so do steps.

    It stops where the class is wrong, or after `queries`.
    """
    labels, wide = np.array([label]), image.astype(np.int16)
    current, gradient = wide, np.zeros(image.shape)
    for _ in range(queries // (2 * PROBES + 1)):
        if margin(ask(_bytes(current)[None]), labels)[0] > 0:
            break
        changes = rng.choice([-1, 0, 0, 1], (PROBES, *image.shape)).astype(np.int16)
        probes = _bytes(np.concatenate([current + changes, current - changes]))
        margins = margin(ask(probes), np.repeat(labels, 2 * PROBES))
        gradient = 0.8 * gradient + np.einsum("n,nchw->chw", margins[:PROBES] - margins[PROBES:], changes)
        steps = np.sign(gradient) * (np.abs(gradient) >= np.median(np.abs(gradient)))
        current = np.clip(current + steps, wide - EPS, wide + EPS).clip(0, 255).astype(np.int16)


def _bytes(images: Levels) -> Pixels:
    return images.clip(0, 255).astype(np.uint8)


def attack(kind: str, attacker: Asked, image: Pixels, label: int, start: Pixels, queries: int, seed: int) -> None:
    """Run it to its end, or to the end of the attacker's time."""
    rng = np.random.default_rng(seed)
    try:
        if kind == "square":
            square(attacker, image[None], np.array([label]), "class", eps=EPS, queries=queries, rng=rng)
        elif kind == "estimated":
            estimated(attacker, image, label, queries, rng)
        else:
            # Of the second image every class is wrong, so that it is a start and nothing else.
            pair, labels = np.stack([image, start]), np.array([label, label])
            boundary(attacker, pair, labels, "class", queries=queries, rng=rng)
    except TimeUpError:
        pass
    finally:
        attacker.close()

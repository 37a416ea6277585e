"""Steady load from callers that check every answer.

A caller counts as failed whatever is not a whole answer of status 200 with the values that the same image got before
the fault: a wrong answer is worse than none and is counted apart.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from .exchange import Link, exchange, post, read_answer

TOLERANCE = 1e-3  # of a score; the model's own golden tolerance is of this order


def noise_png(side: int, seed: int) -> bytes:
    """A PNG of noise: 3 kB at 32 pixels, 20 kB at 96."""
    pixels = np.clip(np.random.default_rng(seed).normal(128, 30, (side, side, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def drawing() -> bytes:
    """A PNG that is quick to send and slow to decode: 12 kB, 1.9 million pixels."""
    across, down = np.meshgrid(np.arange(1600), np.arange(1200))
    pixels = np.stack([across // 8 % 256, down // 8 % 256, (across + down) // 16 % 256], axis=2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# Small ones fit haproxy's buffer and can be sent to the other replica again; the large ones cannot.
IMAGES = (noise_png(32, 0), noise_png(32, 1), noise_png(96, 2))


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: seconds on `time.monotonic`, and 'ok', 'wrong', a status, or an error's name."""

    begun: float
    ended: float
    outcome: str
    version: str = ""


@dataclass
class Load:
    """Steady traffic to one port: callers that keep their connection and callers that open one for each request.

    Attributes:
        samples: every request that has ended.
        flying: requests that have begun and not ended.
    """

    port: int
    keeping: int = 4
    opening: int = 4
    pause: float = 0.02
    images: Sequence[bytes] = IMAGES
    seconds: float = 20.0
    samples: list[Sample] = field(default_factory=list)
    flying: int = 0
    expected: dict[int, tuple[str, float]] = field(default_factory=dict)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _ending: bool = False

    async def learn(self) -> None:
        """Ask each image once, before any fault: these are the right answers."""
        for which, data in enumerate(self.images):
            status, body = await exchange(self.port, post(data, keep=False), self.seconds)
            if status != 200:
                raise RuntimeError(f"status {status} before any fault: {body[:300]!r}")
            self.expected[which] = _read(body)[:2]

    def begin(self) -> None:
        self._tasks = [
            asyncio.create_task(self._call(number, keep=number < self.keeping))
            for number in range(self.keeping + self.opening)
        ]

    async def end(self) -> None:
        """Let every caller finish its request."""
        self._ending = True
        await asyncio.gather(*self._tasks)

    def counts(self, since: float = 0.0) -> Counter[str]:
        return Counter(sample.outcome for sample in self.samples if sample.begun >= since)

    def failed(self, since: float = 0.0) -> int:
        return sum(count for outcome, count in self.counts(since).items() if outcome != "ok")

    async def _call(self, number: int, keep: bool) -> None:
        link: Link | None = None
        turn = number
        await asyncio.sleep(self.pause * number / (self.keeping + self.opening))
        while not self._ending:
            link = await self.once(turn % len(self.images), keep, link)
            turn += 1
            await asyncio.sleep(self.pause)
        if link is not None:
            link[1].close()

    async def once(self, which: int, keep: bool = False, link: Link | None = None) -> Link | None:
        """One request, over `link` if there is one; the connection, if it may be used again."""
        begun = time.monotonic()
        outcome, version, closes = "ok", "", True
        self.flying += 1
        try:
            async with asyncio.timeout(self.seconds):
                if link is not None and link[0].at_eof():  # closed since the last answer: clients open another one
                    link[1].close()
                    link = None
                if link is None:
                    link = await asyncio.open_connection("127.0.0.1", self.port)
                link[1].write(post(self.images[which], keep))
                status, body, closes = await read_answer(link[0])
            outcome, version = self._judge(which, status, body)
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            outcome = type(error).__name__
        finally:
            self.flying -= 1
        self.samples.append(Sample(begun, time.monotonic(), outcome, version))
        if link is not None and (closes or not keep):
            link[1].close()
            return None
        return link

    def _judge(self, which: int, status: int, body: bytes) -> tuple[str, str]:
        if status != 200:
            return str(status), ""
        label, score, version = _read(body)
        right = self.expected.get(which, (label, score))
        return ("ok" if label == right[0] and abs(score - right[1]) <= TOLERANCE else "wrong"), version


def _read(body: bytes) -> tuple[str, float, str]:
    document = json.loads(body)
    result = document["results"][0]
    return result["predictions"][0]["label"], float(result["adversarial"]["score"]), str(document["model"]["version"])


@asynccontextmanager
async def loaded(port: int, **options: Any) -> AsyncIterator[Load]:
    """A `Load` that has learnt the right answers and runs for the length of the block."""
    load = Load(port, **options)
    await load.learn()
    load.begin()
    try:
        yield load
    finally:
        await load.end()


def quantile(values: Sequence[float], share: float) -> float:
    """The sample below which `share` of all lie; nan for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

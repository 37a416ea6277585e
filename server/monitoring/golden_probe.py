"""Sends golden probes: golden images of the contract, through the real path while serving.

The self-test at load compares values. A golden probe is sent under load and as a client would send it: an encoded file
that is decoded, queued, run and given a verdict. It is not counted among the clients' verdicts.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core import clock
from ..core.contract import Contract, Golden
from ..core.engine import Model, Signals, Terms
from ..core.images import EncodedImage, ImageInput, Limits
from ..core.modes import LOGITS, Mode
from ..core.verdict import Verdict, golden_verdicts, verdict_on
from ..errors import AWNetError
from .detection import Monitor, ProbeResult

log = logging.getLogger("awnet")


class GoldenProbe(NamedTuple):
    """A golden image as a file, and what the right answer is.

    Attributes:
        score, expected: the score and the verdict; `tolerance` is the largest difference of the score.
        row: of the image among the contract's golden ones.
    """

    png: bytes
    score: float
    expected: Verdict
    tolerance: float
    row: int

    def result_of(self, score: float, verdict: Verdict) -> ProbeResult:
        """A score within the tolerance is right even where a threshold lies between."""
        near = abs(score - self.score) <= self.tolerance
        return "right" if near or verdict == self.expected else "wrong"

    def right_class(self, logits: NDArray[np.float32], golden: Golden, mode: Mode) -> bool:
        """Whether logits [K] say the class that `mode` has to; within the tolerance any class is right."""
        output = LOGITS[mode]
        want = golden.outputs[output][self.row]
        near = np.abs(logits - want).max() <= golden.tolerance[output]
        return bool(near or logits.argmax() == want.argmax())


def golden_probes(contract: Contract) -> list[GoldenProbe]:
    """The golden images as PNG files, clean and adversarial in turn where there are both."""
    golden, made = contract.golden, []
    expectations = zip(golden.image, golden.outputs["p_type"], golden_verdicts(contract), strict=True)
    for row, (pixels, p_type, expected) in enumerate(expectations):
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, "PNG")
        made.append(GoldenProbe(buffer.getvalue(), float(p_type[0]), expected, golden.tolerance["p_type"], row))
    clean = [probe for probe in made if probe.expected == "clean"]
    other = [probe for probe in made if probe.expected != "clean"]
    turns = max(len(clean), len(other))
    pairs = [
        (clean[n % len(clean) :][:1] if clean else []) + (other[n % len(other) :][:1] if other else [])
        for n in range(turns)
    ]
    return [probe for pair in pairs for probe in pair]


class Answering(Protocol):
    """A version that answers users, held for as long as the probe needs it, and the mode that it answers in."""

    @property
    def model(self) -> Model: ...

    @property
    def mode(self) -> Mode: ...

    async def infer(self, images: Sequence[ImageInput], terms: Terms) -> Signals: ...


@dataclass
class GoldenProbes:
    """Sends golden images now and then, through decoding, queue and engine, as a user's image would go.

    Args:
        monitor: where the outcome goes; nothing reaches the counters of users' verdicts.
        leases: of the versions that answer users at this moment, each in one of its modes by the number of the turn.
        limits: of images, as for users.
        every: seconds between two images of a version, over 0.
        missed: called with the version, its mode and the right verdict where an answer was wrong.
    """

    monitor: Monitor
    leases: Callable[[int], Iterable[AbstractContextManager[Answering]]]
    limits: Limits = field(default_factory=Limits)
    every: float = 10.0
    missed: Callable[[Model, Mode, Verdict], None] | None = None
    _sets: dict[str, list[GoldenProbe]] = field(default_factory=dict)
    _turn: int = 0

    async def run(self) -> None:
        """For ever; cancel it to stop."""
        while True:
            await asyncio.sleep(self.every)
            try:
                await self.once()
            except Exception:
                log.exception("a golden probe failed in an unforeseen way; the next one will be sent all the same")

    async def once(self) -> None:
        """One golden image for each version, in one of its modes."""
        served = set()
        for lease in self.leases(self._turn):
            with lease as answering:
                model = answering.model
                served.add(model.sha256)
                if model.sha256 not in self._sets:
                    self._sets[model.sha256] = golden_probes(model.contract)
                chosen = self._sets[model.sha256]
                # Every image in every mode before any comes again.
                await self._send(answering, chosen[self._turn // len(model.contract.modes) % len(chosen)])
        self._sets = {sha256: chosen for sha256, chosen in self._sets.items() if sha256 in served}
        self._turn += 1

    async def _send(self, answering: Answering, probe: GoldenProbe) -> None:
        image = EncodedImage(probe.png, self.limits)
        result: ProbeResult = "wrong"
        try:
            # A probe gives way to clients, and has its answer before the next one is sent.
            terms = Terms(deadline=clock.now() + self.every, priority="low")
            signals = await answering.infer([image], terms)
            if signals.finite():
                score, promise = float(signals.p_type[0, 0]), answering.model.contract
                if probe.right_class(signals.logits[0], promise.golden, answering.mode):
                    result = probe.result_of(score, verdict_on(score, image.traits, promise.domains))
        except AWNetError as error:
            log.warning("golden probe: %s", error.detail)
            result = "failed"
        if result == "wrong":
            log.error(
                "golden probe: %s version %d did not answer a golden image as it must in mode %s (%s)",
                answering.model.name,
                answering.model.version,
                answering.mode,
                probe.expected,
            )
            if self.missed is not None:
                self.missed(answering.model, answering.mode, probe.expected)
        self.monitor.of(answering.model).golden_probe(probe.expected, result)

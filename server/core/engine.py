"""The interface of an inference engine, its answer, and the golden self-test that holds for every engine.

An engine opens versions of models. Each open version is a `Runner` that answers on its own until it is closed, so that
a new version can be warmed and tested while the old one serves. `engines.onnxruntime` runs models in this process,
`engines.triton` in NVIDIA Triton; `versions.rollout` chooses the runner of each request.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import AWNetError, SelfTestFailed, UnknownMode
from . import clock
from .contract import Contract
from .images import ImageInput, PixelArray
from .modes import LOGITS, Mode
from .trace import Trace

Priority = Literal["normal", "low"]
Leisure = Callable[[], bool]  # whether nobody waits for what is done in the background
PRIORITIES: tuple[Priority, ...] = ("normal", "low")

OUTPUTS = ("logits", "p_type", "omega")  # in the order of `Outputs`
Outputs = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]  # [N,K], [N,2], [N,C], see `Signals`


def outputs_of(mode: Mode) -> tuple[str, ...]:
    """The outputs of the model that `Outputs` holds in this mode."""
    return (LOGITS[mode], *OUTPUTS[1:])


@dataclass(frozen=True, slots=True)
class Model:
    """Name, version, file and contract of an open version. `sha256` is that of `model.onnx`, hexadecimal."""

    name: str
    version: int
    sha256: str
    contract: Contract

    def mode(self, name: str) -> Mode:
        """The mode `name`. Raises UnknownMode, which names those that this version has."""
        for mode in self.contract.modes:
            if mode == name:
                return mode
        known = ", ".join(self.contract.modes)
        raise UnknownMode(f"version {self.version} of {self.name} has no mode {name[:40]!r}; there are {known}")


class Terms(NamedTuple):
    """Deadline and priority of one request.

    Attributes:
        deadline: on `clock.now`, after which no answer is needed. Infinite where there is none.
        priority: 'low' runs when no 'normal' image waits.
        admitted: its images have waited in a line before the engine's, and were decoded: a full queue takes them in.
        background: run beside the queue of an engine in this process, on a thread that leaves the cores to others.
        trace: that it belongs to, handed on to an engine elsewhere.
    """

    deadline: float = float("inf")
    priority: Priority = "normal"
    admitted: bool = False
    background: bool = False
    trace: Trace | None = None

    def remaining(self) -> float:
        """Seconds until the deadline; negative past it."""
        return self.deadline - clock.now()


class Execution(NamedTuple):
    """One execution of a model; all requests that took part in it have the same one.

    Attributes:
        started: on `time.monotonic`.
        images: of all these requests together.
        batch: its number in this process, from 1; 0 where it ran elsewhere.
        span_id: that the engine elsewhere was given as the caller's, see `Trace.headers`.
    """

    started: float
    seconds: float
    images: int
    batch: int = 0
    span_id: str | None = None


class Timeline(NamedTuple):
    """When a request came to the engine, its images were decoded and its executions ran, on `time.monotonic`."""

    arrived: float
    decode_started: float
    decode_ended: float
    executions: Sequence[Execution]


class Signals(NamedTuple):
    """The answer to a request of N images, rows in their order.

    logits [N,K] of the mode that was asked for, p_type [N,2] = (P(adversarial), P(natural)), omega [N,C], all float32.
    Of the seconds, `decode` is the work on all images of the request, `inference` the executions that they took part
    in, `queue` the rest. `cached`: no engine was asked now, see `answer_cache`; then all three are 0.
    """

    logits: NDArray[np.float32]
    p_type: NDArray[np.float32]
    omega: NDArray[np.float32]
    decode_seconds: float
    queue_seconds: float
    inference_seconds: float
    timeline: Timeline | None = None
    cached: bool = False

    def finite(self) -> bool:
        """False where a value is NaN or infinite: such an answer is a fault, not a verdict."""
        return all(map(_finite, (self.logits, self.p_type, self.omega)))

    def behind(self, decoded: float, queued: float) -> Signals:
        """The same after so many more seconds of decoding and of waiting for it."""
        decode, queue = self.decode_seconds + decoded, self.queue_seconds + queued
        return Signals(*self[:3], decode, queue, *self[5:])


def _finite(values: NDArray[np.float32]) -> bool:
    # A sum of squares is not finite where one value is not, and is had in a fifth of the time. It may also be too large
    # itself.
    return math.isfinite(np.vdot(values, values)) or bool(np.isfinite(values).all())


class Runner(Protocol):
    """One opened version of a model."""

    @property
    def model(self) -> Model: ...

    async def warm(self) -> None:
        """Run every mode in every batch size that it will ever run in, so that no request pays for a first time.

        Raises EngineFault.
        """

    async def infer(self, images: Sequence[ImageInput], terms: Terms = ..., mode: Mode = ...) -> Signals:
        """Answer one request in one of the version's modes; decoding happens here too, off the event loop.

        Raises:
            QueueFull: no room; nothing has been done.
            DeadlineExceeded: the answer would come too late, or did.
            RequestError: an image cannot be decoded.
            EngineUnavailable: the engine cannot be reached; nothing has been done.
            EngineFault: the model failed.
        """

    async def close(self) -> None:
        """Answer what was accepted, then free the model."""


class Engine(Protocol):
    """Runs models."""

    async def start(self) -> None:
        """Prepare to open models; loads none. Raises a StartupError."""

    async def catalogue(self) -> Mapping[str, tuple[int, ...]]:
        """Names of models and the versions that could be opened, ascending. Raises a StartupError."""

    async def fingerprint(self) -> object:
        """Changes whenever the catalogue or a file behind it does; cheap enough to poll every second."""

    async def open(self, name: str, version: int, leisure: Leisure | None = None) -> Runner:
        """Check and load one version; not yet warmed or proven.

        Args:
            leisure: requests are answered meanwhile, and neither this nor `Runner.warm` takes cores from them; asked
                before each step, as it may end.

        Raises:
            ModelNotFound, ManifestError, ContractError: why this version cannot be served.
        """

    def waiting(self) -> int:
        """Images that were accepted and not yet answered, over all versions."""

    def up(self) -> bool:
        """Whether requests can be executed right now (a circuit breaker may be open)."""

    async def close(self) -> None:
        """Free everything; runners were closed before."""


async def self_test(runner: Runner, terms: Terms | None = None) -> None:
    """Run the contract's golden inputs through `runner` in each mode and compare values, together and one by one.

    One by one as well, because an engine may run a lone image in another way than a batch.

    Raises:
        SelfTestFailed: a value is off by more than its tolerance, not finite, or missing.
    """
    contract = runner.model.contract
    golden, rows = contract.golden, len(contract.golden.image)
    parts = [(0, rows), *((row, 1) for row in range(rows))]
    for mode, (first, count) in itertools.product(contract.modes, parts):
        try:
            images = [PixelArray(image) for image in golden.image[first : first + count]]
            signals = await runner.infer(images, terms or Terms(), mode)
        except AWNetError as error:
            raise SelfTestFailed(f"the engine failed on the golden inputs: {error.detail}") from error
        for name, output in zip(OUTPUTS, outputs_of(mode), strict=True):
            got, want = getattr(signals, name), golden.outputs[output][first : first + count]
            if got.shape != want.shape:
                raise SelfTestFailed(f"golden {output}: shape {list(got.shape)}, expected {list(want.shape)}")
            worst = float(np.abs(got - want).max())
            if not worst <= golden.tolerance[output]:  # written so that NaN fails
                raise SelfTestFailed(f"golden {output}: off by {worst:.3g}, tolerance {golden.tolerance[output]:.3g}")

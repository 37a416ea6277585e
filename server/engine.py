"""What an engine is: four methods, and what they return. `embedded` is one; another process may be one too.

The golden self-test lives here because it must hold for whichever engine is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from server.contract import Contract
from server.errors import AWNetError, SelfTestFailed
from server.images import Picture, Pixels


@dataclass(frozen=True, slots=True)
class Model:
    """Which model answers. `sha256` is that of `model.onnx`, hexadecimal."""

    name: str
    version: str
    sha256: str
    contract: Contract


@dataclass(frozen=True, slots=True)
class Signals:
    """The answer to a request of N pictures, rows in their order.

    logits [N,K], p_type [N,2] = (P(adversarial), P(natural)), omega [N,C], all float32. Of the seconds, `decode` is
    the work on all pictures of the request, `inference` the executions that they took part in, `queue` the rest.
    """

    logits: NDArray[np.float32]
    p_type: NDArray[np.float32]
    omega: NDArray[np.float32]
    decode_seconds: float
    queue_seconds: float
    inference_seconds: float

    def finite(self) -> bool:
        """False where a value is NaN or infinite: such an answer is a fault, not a verdict."""
        return bool(np.isfinite(self.logits).all() and np.isfinite(self.p_type).all() and np.isfinite(self.omega).all())


class Engine(Protocol):
    """Runs a model on pictures."""

    async def start(self) -> Model:
        """Load the model. Raises an `errors.StartupError`."""

    async def infer(self, pictures: Sequence[Picture]) -> Signals:
        """Answer one request; decoding happens here too, off the event loop.

        Raises:
            QueueFull: no room; nothing has been done.
            RequestError: a picture cannot be decoded.
            EngineFault: the model failed.
        """

    def waiting(self) -> int:
        """Images that were accepted and are not answered."""

    async def close(self) -> None:
        """Answer what was accepted, then stop."""


async def self_test(engine: Engine, model: Model) -> None:
    """Run the contract's golden inputs through `engine` and compare values, together and one by one.

    One by one as well, because an engine may run a lone image in another way than a batch.

    Raises:
        SelfTestFailed: a value is off by more than its tolerance, not finite, or missing.
    """
    golden = model.contract.golden
    rows = len(golden.image)
    for first, count in [(0, rows), *((row, 1) for row in range(rows))]:
        try:
            signals = await engine.infer([Pixels(image) for image in golden.image[first : first + count]])
        except AWNetError as error:
            raise SelfTestFailed(f"the engine failed on the golden inputs: {error.detail}") from error
        for name, expected in golden.outputs.items():
            got, want = getattr(signals, name), expected[first : first + count]
            if got.shape != want.shape:
                raise SelfTestFailed(f"golden {name}: shape {list(got.shape)}, expected {list(want.shape)}")
            worst = float(np.abs(got - want).max())
            if not worst <= golden.tolerance[name]:  # written so that NaN fails
                raise SelfTestFailed(f"golden {name}: off by {worst:.3g}, tolerance {golden.tolerance[name]:.3g}")

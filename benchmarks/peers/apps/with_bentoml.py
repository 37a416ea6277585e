"""BentoML: one service with a batchable API, whose dispatcher sizes batches by what it measures.

Documented at docs.bentoml.com: "Adaptive batching" (batchable, max_batch_size, max_latency_ms), "Parallelize requests
handling" (workers), "Define input and output types" (images by form).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml
from onnx_model import BATCH, PROCESSES, Model

TARGET_MS = int(os.environ.get("PEER_TARGET_MS", "100"))
WHOLE = BATCH > 1


@bentoml.service(workers=PROCESSES, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class AWNet:
    def __init__(self) -> None:
        self.model = Model()

    if WHOLE:

        @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=TARGET_MS)
        def predict(self, image: list[Path]) -> list[dict[str, Any]]:
            return self.model.answers([path.read_bytes() for path in image])

    else:

        @bentoml.api
        def predict(self, image: Path) -> dict[str, Any]:  # type: ignore[no-redef]
            (answer,) = self.model.answers([image.read_bytes()])
            return answer

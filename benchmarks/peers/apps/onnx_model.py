"""What every app does with an upload: PNG, RGB, uint8 pixels, one session of ONNX Runtime, class and score.

The apps run in environments of their own, this folder first on their path, and know nothing else of ours. Their
settings come from the environment: PEER_MODEL, the file; PEER_THREADS, of a session (0: ONNX Runtime's
choice); PEER_PROCESSES, that run the model; PEER_BATCH, most images at once; PEER_WAIT_MS, for more.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

PROCESSES = int(os.environ.get("PEER_PROCESSES", "1"))
BATCH = int(os.environ.get("PEER_BATCH", "1"))
WAIT_MS = float(os.environ.get("PEER_WAIT_MS", "0"))


class Model:
    """The model file in one session, whose threads do not spin between runs unless it has the default number."""

    def __init__(self) -> None:
        options, threads = ort.SessionOptions(), int(os.environ.get("PEER_THREADS", "1"))
        if threads:
            options.intra_op_num_threads = threads
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = os.environ["PEER_MODEL"]
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._size = self._session.get_inputs()[0].shape[2]

    def decode(self, data: bytes) -> Any:
        """Pixels of an encoded image, uint8 [3, size, size]."""
        image: Image.Image = Image.open(io.BytesIO(data)).convert("RGB")
        if image.size != (self._size, self._size):
            image = image.resize((self._size, self._size), Image.Resampling.BILINEAR)
        return np.asarray(image).transpose(2, 0, 1)

    def run(self, rows: Any) -> tuple[Any, Any]:
        """Class, int64 [N], and P(adversarial), float32 [N], of uint8 [N, 3, size, size]."""
        logits, p_type = self._session.run(["logits", "p_type"], {"image": rows})
        return logits.argmax(axis=1), p_type[:, 0]

    def answers(self, images: Sequence[bytes]) -> list[dict[str, Any]]:
        """What is answered about each encoded image."""
        classes, scores = self.run(np.stack([self.decode(image) for image in images]))
        return [{"class_id": int(k), "score": float(score)} for k, score in zip(classes, scores, strict=True)]

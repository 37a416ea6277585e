"""Triton's Python backend with the same work as the other apps: encoded images in, class and score out.

Documented at docs.nvidia.com/deeplearning/triton-inference-server: "Python Backend" (execute gets what was batched),
"Batchers" (dynamic_batching), "Binary Tensor Data Extension" (BYTES in the body).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # only Triton has it
from onnx_model import Model


class TritonPythonModel:
    """One instance; Triton calls the methods by name."""

    def initialize(self, args: dict[str, str]) -> None:
        self.model = Model()

    def execute(self, requests: list[Any]) -> list[Any]:
        images = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy()[0, 0] for request in requests]
        classes, scores = self.model.run(np.stack([self.model.decode(image) for image in images]))
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor("class_id", classes[at : at + 1, None]),
                    pb_utils.Tensor("score", scores[at : at + 1, None]),
                ]
            )
            for at in range(len(requests))
        ]

"""The `model.py` of Triton's Python backend: runs the `model.onnx` beside it in ONNX Runtime.

`export.triton_python` copies this file into every version folder; it runs inside Triton, needs numpy and onnxruntime
there and nothing of ours. Tensors and batching are those of Triton's own onnxruntime backend.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # only Triton has it


class TritonPythonModel:
    """One instance of one version; Triton calls the methods by name, one call at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model. Raises RuntimeError, which Triton logs and answers with 'not ready'."""
        if int(np.__version__.split(".")[0]) >= 2:
            # This backend hands tensors over in numpy 1's layout: under numpy 2 the model would load, report ready
            # and answer with empty tensors.
            raise RuntimeError(f"this Python backend needs numpy < 2 and found {np.__version__}: pip install 'numpy<2'")
        config = json.loads(args["model_config"])
        version = args["model_version"]
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        with open(os.path.join(args["model_repository"], version, "model.onnx"), "rb") as f:
            data = f.read()
        found, promised = hashlib.sha256(data).hexdigest(), parameters.get(f"sha256.{version}")
        if found != promised:
            raise RuntimeError(f"model.onnx of version {version} has SHA-256 {found}, config.pbtxt says {promised}")
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", "1"))
        options.inter_op_num_threads = 1
        # Between two batches the cores belong to others: to the front end's decoding, for one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self._input = config["input"][0]["name"]
        self._outputs = [output["name"] for output in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer what Triton gathered in one execution: each request's rows, in the order of the requests."""
        try:
            images = [pb_utils.get_input_tensor_by_name(request, self._input).as_numpy() for request in requests]
            batch = images[0] if len(images) == 1 else np.concatenate(images)
            outputs = self._session.run(self._outputs, {self._input: batch})
        except Exception as error:  # one fault of any kind must be an error answer, not the end of the process
            pb_utils.Logger.log_error(f"the model failed on {len(requests)} requests: {error}")
            fault = pb_utils.TritonError("the model failed on this request")
            return [pb_utils.InferenceResponse(output_tensors=[], error=fault) for _ in requests]
        responses, first = [], 0
        for image, request in zip(images, requests, strict=True):
            last, wanted = first + len(image), request.requested_output_names()
            tensors = [
                pb_utils.Tensor(name, np.ascontiguousarray(rows[first:last]))
                for name, rows in zip(self._outputs, outputs, strict=True)
                if name in wanted
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
            first = last
        return responses

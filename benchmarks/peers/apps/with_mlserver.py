"""MLServer: a custom runtime that takes encoded images as BYTES of the Open Inference Protocol, base64 in JSON.

Documented at docs.seldon.ai/mlserver: "Custom Inference Runtimes", "Adaptive Batching" (max_batch_size,
max_batch_time), "Parallel Inference" (parallel_workers), "Content Types" (base64). It has no
binary tensors over REST. Its settings are written into the folder that `mlserver start` is given:
`python with_mlserver.py PORT GRPC_PORT METRICS_PORT FOLDER`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnx_model import BATCH, PROCESSES, WAIT_MS, Model


class AWNet(MLModel):
    async def load(self) -> bool:
        self.model = Model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = Base64Codec.decode_input(payload.inputs[0])
        classes, scores = self.model.run(np.stack([self.model.decode(image) for image in images]))
        outputs = [NumpyCodec.encode_output(n, v[:, None]) for n, v in (("class_id", classes), ("score", scores))]
        return InferenceResponse(model_name=self.name, outputs=outputs)


def write_settings(port: int, grpc_port: int, metrics_port: int, folder: Path) -> None:
    server = {"host": "127.0.0.1", "http_port": port, "grpc_port": grpc_port, "metrics_port": metrics_port}
    # One process: the model runs in the server's own. Two: in workers beside it.
    server |= {"parallel_workers": PROCESSES if PROCESSES > 1 else 0, "debug": False}
    model = {"name": "awnet", "implementation": "with_mlserver.AWNet"}
    if BATCH > 1:
        model |= {"max_batch_size": BATCH, "max_batch_time": WAIT_MS / 1000}
    (folder / "awnet").mkdir()
    (folder / "settings.json").write_text(json.dumps(server), "utf-8")
    (folder / "awnet/model-settings.json").write_text(json.dumps(model), "utf-8")


if __name__ == "__main__":
    write_settings(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
    program = str(Path(sys.executable).with_name("mlserver"))
    os.execv(program, [program, "start", sys.argv[4]])

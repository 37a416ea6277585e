"""LitServe: decode, batch, predict and unbatch as its LitAPI names them.

Documented at lightning.ai/docs/litserve: "Batching" (max_batch_size, batch_timeout), "LitServer" (workers_per_device,
fast_queue), "Request format" (files by form).
"""

from __future__ import annotations

import os
import sys
from typing import Any

import litserve as ls
import numpy as np
from onnx_model import BATCH, PROCESSES, WAIT_MS, Model


class AWNet(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Model()

    def decode_request(self, request):  # no annotation: LitServe makes its endpoint of them
        return self.model.decode(request["image"].file.read())

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, rows: Any) -> Any:
        return list(zip(*self.model.run(rows if rows.ndim == 4 else rows[None]), strict=True))

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output):
        class_id, score = output if isinstance(output, tuple) else output[0]
        return {"class_id": int(class_id), "score": float(score)}


if __name__ == "__main__":
    api = AWNet(max_batch_size=BATCH, batch_timeout=WAIT_MS / 1000)
    server = ls.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=PROCESSES,
        fast_queue=os.environ.get("PEER_FAST_QUEUE") == "1",
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="warning",
        generate_client_file=False,
        num_api_servers=1,
    )

"""Ray Serve: a deployment with dynamic request batching, and its replicas.

Documented at docs.ray.io: "Dynamic Request Batching" (serve.batch), "Performance Tuning"
(RAY_SERVE_THROUGHPUT_OPTIMIZED, set by the caller), "Set Up FastAPI and HTTP" (the raw request, without
FastAPI in between).
"""

from __future__ import annotations

import sys
import time
from typing import Any

import ray
from onnx_model import BATCH, PROCESSES, WAIT_MS, Model
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse


@serve.deployment(num_replicas=PROCESSES, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.5})
class AWNet:
    def __init__(self) -> None:
        self.model = Model()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_MS / 1000)
    async def answers(self, images: list[bytes]) -> list[dict[str, Any]]:
        return self.model.answers(images)

    async def __call__(self, request: Request) -> JSONResponse:
        return JSONResponse(await self.answers(await request.body()))


if __name__ == "__main__":
    ray.init("local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1]), "access_log": False})
    serve.run(AWNet.bind(), route_prefix="/predict")
    while True:
        time.sleep(3600)

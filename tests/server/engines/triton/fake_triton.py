"""A small Triton in this process: its gRPC service, real answers of the tiny model, switches for what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from benchmarks.harness.processes import free_port
from tests.server.schema_2 import schema_2
from tests.server.schema_3 import branches, schema_3
from tests.server.tiny import CHANNELS, LABELS, SIZE, contract_of, graph

OUTPUTS = {"logits": len(LABELS), "p_type": 2, "omega": CHANNELS}
MODES = 4  # the version that has modes
MODELS = {version: graph(seed=version, branches=branches() if version == MODES else ()) for version in (1, 2, 3, MODES)}
FILES = {version: model.SerializeToString() for version, model in MODELS.items()}
CONTRACTS = {version: contract_of(model) for version, model in MODELS.items()}
schema_2(points=20_000)(CONTRACTS[2])  # a contract of over a megabyte, where others have 90 kB
schema_3()(CONTRACTS[MODES])
SHA256 = {version: hashlib.sha256(data).hexdigest() for version, data in FILES.items()}


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves `versions` of the model awnet.

    Attributes:
        outputs: of the model, as one configuration has them for all versions: those that each has at the start.
        gate: executions wait while it is cleared. `thawed`: everything does, as in a process that is stopped.
        error: (status, text) that executions end with. off: added to every output. empty: answer with empty tensors.
        at_once, most: images executing now, and the most there were. rows, asked: of each execution. seen: (call,
            metadata).
    """

    def __init__(self, *versions: int, port: int = 0, most: int = 64) -> None:
        self.versions = list(versions or (1,))
        self.port = port or free_port()
        self.max_batch_size = most
        self.gate, self.thawed = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.thawed.set()
        self.error: tuple[grpc.StatusCode, str] | None = None
        self.off = 0.0
        self.empty = False
        self.parameters = {
            **{f"contract.{v}": json.dumps(CONTRACTS[v]) for v in CONTRACTS},
            **{f"sha256.{v}": SHA256[v] for v in SHA256},
        }
        further = branches() if set(self.versions) == {MODES} else []
        self.outputs = [*OUTPUTS, *further]
        widths = OUTPUTS | dict.fromkeys(further, len(LABELS))
        self.shapes = {"image": [3, SIZE, SIZE], **{name: [width] for name, width in widths.items()}}
        self.at_once = self.most = 0
        self.rows: list[int] = []
        self.asked: list[list[str]] = []
        self.order: list[int] = []  # the first pixel of each execution
        self.seen: list[tuple[str, dict[str, str]]] = []
        self._sessions = {
            v: ort.InferenceSession(data, providers=["CPUExecutionProvider"]) for v, data in FILES.items()
        }
        self._server: grpc.aio.Server | None = None

    @property
    def url(self) -> str:
        return f"localhost:{self.port}"

    async def start(self, credentials: grpc.ServerCredentials | None = None) -> FakeTriton:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        where = f"127.0.0.1:{self.port}"
        bound = (
            self._server.add_secure_port(where, credentials) if credentials else self._server.add_insecure_port(where)
        )
        assert bound == self.port
        await self._server.start()
        return self

    async def stop(self) -> None:
        """As kill -9: connections break, nobody listens."""
        assert self._server
        await self._server.stop(None)

    def replace(self, version: int, by: int) -> None:
        """Serve the model `by` as `version`, described rightly."""
        self._sessions[version] = ort.InferenceSession(FILES[by], providers=["CPUExecutionProvider"])
        self.parameters[f"contract.{version}"] = json.dumps(CONTRACTS[by])
        self.parameters[f"sha256.{version}"] = SHA256[by]

    def calls(self) -> set[str]:
        return {name for name, _ in self.seen}

    async def _enter(self, name: str, context: Any) -> None:
        self.seen.append((name, dict(context.invocation_metadata())))
        await self.thawed.wait()

    async def _known(self, request: Any, context: Any) -> int:
        if request.name != "awnet" or int(request.version or 1) not in self.versions:
            text = f"Request for unknown model: '{request.name}' version {request.version} is not found"
            await context.abort(grpc.StatusCode.NOT_FOUND, text)
        return int(request.version or 1)

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's names
        await self._enter("ServerLive", context)
        return service_pb2.ServerLiveResponse(live=True)

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._enter("ModelStatistics", context)
        rows = [service_pb2.ModelStatistics(name="awnet", version=str(v)) for v in self.versions]
        return service_pb2.ModelStatisticsResponse(model_stats=rows)

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._enter("ModelConfig", context)
        await self._known(request, context)
        config = model_config_pb2.ModelConfig(name="awnet", max_batch_size=self.max_batch_size)
        for key, value in self.parameters.items():
            config.parameters[key].string_value = value
        return service_pb2.ModelConfigResponse(config=config)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._enter("ModelMetadata", context)
        version = await self._known(request, context)
        metadata = service_pb2.ModelMetadataResponse

        def tensors(names: list[str], kind: str) -> list[Any]:
            return [metadata.TensorMetadata(name=n, datatype=kind, shape=[-1, *self.shapes[n]]) for n in names]

        outputs = tensors(self.outputs, "FP32")
        return metadata(name="awnet", versions=[str(version)], inputs=tensors(["image"], "UINT8"), outputs=outputs)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._enter("ModelInfer", context)
        (tensor,) = request.inputs
        images = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(tensor.shape)
        self.rows.append(len(images))
        self.order.append(int(images[0, 0, 0, 0]))
        if len(images) > self.max_batch_size:
            text = f"inference request batch-size must be <= {self.max_batch_size} for 'awnet'"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        self.at_once += len(images)
        self.most = max(self.most, self.at_once)
        try:
            await self.gate.wait()
        finally:
            self.at_once -= len(images)
        if self.error:
            await context.abort(*self.error)
        if int(request.model_version) not in self.versions:
            text = f"Request for unknown model: 'awnet' version {request.model_version} is not at ready state"
            await context.abort(grpc.StatusCode.UNAVAILABLE, text)
        names = [output.name for output in request.outputs]
        self.asked.append(names)
        if not set(names) <= set(self.outputs):
            text = f"unexpected inference output '{names[0]}' for model 'awnet'"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        outputs = self._sessions[int(request.model_version)].run(names, {"image": images})
        answer = service_pb2.ModelInferResponse(model_name="awnet", model_version=request.model_version)
        for name, rows in zip(names, outputs, strict=True):
            answer.outputs.add(name=name, datatype="FP32", shape=rows.shape)
            answer.raw_output_contents.append(b"" if self.empty else (rows + np.float32(self.off)).tobytes())
        return answer


@contextlib.asynccontextmanager
async def fakes(*given: FakeTriton) -> AsyncIterator[None]:
    """Start them, and stop them however the test ends."""
    for fake in given:
        await fake.start()
    try:
        yield
    finally:
        for fake in given:
            fake.gate.set()
            fake.thawed.set()
            await fake.stop()

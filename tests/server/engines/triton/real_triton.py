"""The real Triton of the `nvidia-pytriton` wheel as a test starts it: `deploy/triton/run.py` on free ports."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.harness.processes import Triton
from export.repository.repository import publish
from export.triton_python import convert
from tests.requires import triton_venv
from tests.server.engines.triton.fake_triton import CONTRACTS, MODELS
from tests.waiting import PATIENCE_SECONDS


def publish_tiny(repository: Path, version: int) -> None:
    """The tiny model as `python -m export.onnx` publishes one."""
    import json

    from onnx import ModelProto, helper

    model = ModelProto()
    model.CopyFrom(MODELS[version])
    helper.set_model_props(model, {"awnet.contract": json.dumps(CONTRACTS[version])})
    publish(model.SerializeToString(), repository, version=version)


class RealTriton(Triton):
    """A running Triton with the tiny model. `folder` holds the exported repository and the converted one."""

    def __init__(self, folder: Path, *options: str, log: Path | None = None) -> None:
        self.exported, self.converted = folder / "model_repository", folder / "triton"
        self.add(1)
        super().__init__(self.converted, triton_venv(), log or folder / "triton.log", *options)
        self.url = f"127.0.0.1:{self.grpc}"

    def add(self, version: int) -> None:
        """Publish a version and convert it; one that is there stays."""
        if not (self.exported / "awnet" / str(version)).exists():
            publish_tiny(self.exported, version)
        convert(self.exported, self.converted)

    def start(self) -> None:
        """Start it, and wait until its models are loaded."""
        super().start()
        self.answering(f"http://127.0.0.1:{self.http}/v2/health/ready", PATIENCE_SECONDS)

    def answers(self, path: str, method: str = "GET") -> bool:
        """Whether a call over HTTP succeeds."""
        try:
            asked = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", method=method)
            with urllib.request.urlopen(asked, timeout=20) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def shared_memory(self) -> list[str]:
        return [p.name for p in Path("/dev/shm").glob(f"awnet_triton_{self.pid}_*")]

"""The real Triton of the `nvidia-pytriton` wheel as a test starts it: `deploy/triton/run.py` on free ports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from export.repository import publish
from export.triton_python import convert
from tests.requires import ROOT, triton_venv
from tests.server.fake_triton import CONTRACTS, MODELS, free_port
from tests.waiting import eventually


def publish_tiny(repository: Path, version: int) -> None:
    """The tiny model as `python -m export.onnx` publishes one."""
    import json

    from onnx import ModelProto, helper

    model = ModelProto()
    model.CopyFrom(MODELS[version])
    helper.set_model_props(model, {"awnet.contract": json.dumps(CONTRACTS[version])})
    publish(model.SerializeToString(), repository, version=version)


class RealTriton:
    """A running Triton. `folder` holds the exported repository and the converted one."""

    def __init__(self, folder: Path, *options: str, log: Path | None = None) -> None:
        self.exported, self.converted = folder / "model_repository", folder / "triton"
        self.http, self.grpc, self.metrics = free_port(), free_port(), free_port()
        self.log = log or folder / "triton.log"
        self._options = options
        self.add(1)
        self.start()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.grpc}"

    def add(self, version: int) -> None:
        """Publish a version and convert it; one that is there stays."""
        if not (self.exported / "awnet" / str(version)).exists():
            publish_tiny(self.exported, version)
        convert(self.exported, self.converted)

    def start(self) -> None:
        """Start it, and wait until its models are loaded."""
        told = [sys.executable, "deploy/triton/run.py", "--venv", str(triton_venv()), "--repository", self.converted]
        for kind in ("http", "grpc", "metrics"):
            told += [f"--{kind}-port", str(getattr(self, kind))]
        with self.log.open("a") as log:
            self.process = subprocess.Popen([*told, *self._options], cwd=ROOT, stdout=log, stderr=log)

        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            return self.answers("/v2/health/ready")

        eventually(ready)

    def answers(self, path: str, method: str = "GET") -> bool:
        """Whether a call over HTTP succeeds."""
        try:
            asked = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", method=method)
            with urllib.request.urlopen(asked, timeout=20) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    @property
    def pid(self) -> int:
        """Of Triton itself."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9 of Triton, and wait until the program around it has cleaned up."""
        self.signal(signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> int:
        """SIGTERM to the program; its status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def shared_memory(self) -> list[str]:
        return [p.name for p in Path("/dev/shm").glob(f"awnet_triton_{self.process.pid}_*")]

"""Who is compared: how each is started, asked and understood, and with which of its settings.

A peer serves the same model file and decodes uploads in the same way (`apps/onnx_model.py`); each app is what the
documentation of its project shows. `processes` are those that run the model: whatever else a peer needs, such as a
process for HTTP before them, it has besides.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import string
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..harness.closed_loop import form
from ..harness.processes import Process, Server, Triton, family, free_port
from ..harness.report import ROOT

APPS = Path(__file__).parent / "apps"
Settings = Mapping[str, str]


class Post(NamedTuple):
    """How an image is sent."""

    path: str
    body: bytes
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """What is asked for: the class, and P(adversarial)."""

    class_id: int
    score: float


@dataclass(frozen=True)
class Peer:
    """A project that serves models.

    Attributes:
        command: its program, of the interpreter, free ports and an empty folder.
        post: the request that carries an encoded image.
        read: class and score in the answer's document.
        ready: a path that answers 200 once the model does.
        settings: by number of processes: what it was tried with; the first is what it is measured with.
    """

    name: str
    command: Callable[[Path, Sequence[int], Path], list[str | Path]]
    post: Callable[[bytes], Post]
    read: Callable[[Any], Answer]
    ready: str
    settings: Mapping[int, Sequence[Settings]]


def by_form(image: bytes) -> Post:
    """As browsers send a file."""
    body, content_type = form(image)
    return Post("/predict", body, {"Content-Type": content_type})


def as_body(image: bytes) -> Post:
    return Post("/predict", image, {"Content-Type": "image/png"})


def in_base64(image: bytes) -> Post:
    """The Open Inference Protocol in JSON alone."""
    text = base64.b64encode(image).decode()
    given = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"content_type": "base64"}}
    body = json.dumps({"inputs": [given | {"data": [text]}]}).encode()
    return Post("/v2/models/awnet/infer", body, {"Content-Type": "application/json"})


def in_binary(image: bytes) -> Post:
    """The Open Inference Protocol with Triton's binary tensors: a length of four bytes, then the image."""
    tensor = len(image).to_bytes(4, "little") + image
    given = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(tensor)}}
    head = json.dumps({"inputs": [given]}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Post("/v2/models/awnet/infer", head + tensor, headers)


def ours(document: Any) -> Answer:
    result = document["results"][0]
    return Answer(result["predictions"][0]["class_id"], result["adversarial"]["score"])


def plain(document: Any) -> Answer:
    return Answer(document["class_id"], document["score"])


def first(document: Any) -> Answer:
    """A list of one, or the one itself."""
    return plain(document[0] if isinstance(document, list) else document)


def tensors(document: Any) -> Answer:
    found = {output["name"]: output["data"][0] for output in document["outputs"]}
    return Answer(int(found["class_id"]), found["score"])


def script(name: str) -> Callable[[Path, Sequence[int], Path], list[str | Path]]:
    """An app that is a program of its own."""
    return lambda python, ports, folder: [python, APPS / f"{name}.py", *map(str, ports[:3]), folder]


def bentoml(python: Path, ports: Sequence[int], folder: Path) -> list[str | Path]:
    serve = [python, "-m", "bentoml", "serve", "with_bentoml:AWNet", "--working-dir", APPS]
    return [*serve, "--host", "127.0.0.1", "--port", str(ports[0])]


def same(*settings: Settings) -> dict[int, Sequence[Settings]]:
    """Whatever the number of processes."""
    return {1: settings, 2: settings}


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "fastapi",
            script("plain_fastapi"),
            by_form,
            plain,
            "/health",
            same({"THREADS": "1"}, {"THREADS": "2"}, {"THREADS": "0"}),
        ),
        Peer(
            "litserve",
            script("with_litserve"),
            by_form,
            plain,
            "/health",
            same(
                {"BATCH": "16", "WAIT_MS": "1", "FAST_QUEUE": "1"},
                {"BATCH": "16", "WAIT_MS": "5", "FAST_QUEUE": "1"},
                {"BATCH": "16", "WAIT_MS": "1"},
                {"BATCH": "1"},
            ),
        ),
        Peer(
            "bentoml",
            bentoml,
            by_form,
            first,
            "/readyz",
            same({"BATCH": "16", "TARGET_MS": "60000"}, {"BATCH": "16", "TARGET_MS": "1000"}, {"BATCH": "1"}),
        ),
        Peer(
            "mlserver",
            script("with_mlserver"),
            in_base64,
            tensors,
            "/v2/models/awnet/ready",
            same({"BATCH": "16", "WAIT_MS": "1"}, {"BATCH": "16", "WAIT_MS": "5"}, {"BATCH": "1"}),
        ),
        Peer(
            "ray",
            script("with_ray"),
            as_body,
            plain,
            "/-/healthz",
            same(
                {"BATCH": "16", "WAIT_MS": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
                {"BATCH": "16", "WAIT_MS": "1"},
                {
                    "BATCH": "16",
                    "WAIT_MS": "1",
                    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
                    "RAY_SERVE_ENABLE_HA_PROXY": "1",
                },
                {"BATCH": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
            ),
        ),
        Peer(
            "triton",
            lambda python, ports, folder: [],
            in_binary,
            tensors,
            "/v2/models/awnet/ready",
            same({"WAIT_US": "0"}, {"WAIT_US": "1000"}, {"WAIT_US": "0", "THREADS": "2"}),
        ),
    )
}
OURS = "awnet"
# What makes the peers leave this machine alone, in the form in which each project documents it.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "1"}


class Running:
    """A contestant that answers. Leaving the `with` block ends it, and whatever processes it has left.

    Attributes:
        port: of its HTTP.
        pid: of its first process.
    """

    def __init__(self, process: Process, port: int, peer: Peer | None) -> None:
        self.process, self.port, self.pid = process, port, process.pid
        self._peer = peer

    def post(self, image: bytes) -> Post:
        return self._peer.post(image) if self._peer else by_form(image)

    @property
    def path(self) -> str:
        """Where images are posted to."""
        return self.post(b"").path

    def wait_ready(self) -> None:
        ready = self._peer.ready if self._peer else "/v2/health/ready"
        self.process.answering(f"http://127.0.0.1:{self.port}{ready}", 180)

    def ask(self, image: bytes) -> Answer:
        """Its answer about an encoded image. Raises OSError where there is none."""
        post = self.post(image)
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{post.path}", post.body, dict(post.headers))
        with urllib.request.urlopen(request, timeout=30) as answer:
            return (self._peer.read if self._peer else ours)(json.load(answer))

    def pids(self) -> list[int]:
        return family(self.pid)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        before = self.pids()
        self.process.stop(seconds=15)
        for pid in before[1:]:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def start(
    name: str, processes: int, model: Path, venvs: Path | None, folder: Path, settings: Settings | None = None
) -> Running:
    """Start contestant `name`; it may not be ready.

    Args:
        model: `.../NAME/VERSION/model.onnx` of a repository.
        venvs: a folder with an environment for each peer.
        folder: an empty one.
        settings: in place of the peer's first ones.
    """
    if name == OURS:
        home = model.parents[1]
        given = {"repository": home.parent, "model": home.name, "version": model.parent.name}
        server = Server(folder, workers=processes, drain_seconds=0, log_level="warning", **given)
        return Running(server, server.port, None)
    peer = PEERS[name]
    if settings is None:
        settings = peer.settings[processes][0]
    told = {key if key.startswith("RAY_") else f"AWNET_PEER_{key}": value for key, value in settings.items()}
    told |= {"AWNET_PEER_MODEL": str(model.absolute()), "AWNET_PEER_PROCESSES": str(processes)}
    told |= QUIET | {"PYTHONPATH": str(APPS), "PYTHONDONTWRITEBYTECODE": "1", "BENTOML_HOME": str(folder / "bentoml")}
    log = folder / f"{name}.log"
    if name == "triton":
        home = folder / "repository/awnet"
        (home / "1").mkdir(parents=True)
        for source, copy in (("with_triton.py", "model.py"), ("onnx_model.py", "onnx_model.py")):
            (home / "1" / copy).write_bytes((APPS / source).read_bytes())  # Triton's stub looks nowhere else
        config = string.Template((APPS / "triton.pbtxt").read_text("utf-8"))
        (home / "config.pbtxt").write_text(config.substitute(PROCESSES=processes, **settings), "utf-8")
        triton = Triton(home.parent, (venvs or ROOT) / name, log, environment=told)
        return Running(triton, triton.http, peer)
    python = interpreter(name, venvs)
    ports = [free_port() for _ in range(3)]
    return Running(Process(peer.command(python, ports, folder), log, told, folder), ports[0], peer)


def interpreter(name: str, venvs: Path | None) -> Path:
    """Plain FastAPI needs nothing that this environment has not."""
    return venvs.absolute() / name / "bin/python" if venvs and name != "fastapi" else Path(sys.executable)


def differs(found: Answer, wanted: Answer, tolerance: float = 1e-3) -> bool:
    return found.class_id != wanted.class_id or abs(found.score - wanted.score) > tolerance

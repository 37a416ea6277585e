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
        polls: whether it keeps cores busy while nobody asks; it is stopped (SIGSTOP) while others are asked.
    """

    name: str
    command: Callable[[Path, Sequence[int], Path], list[str | Path]]
    post: Callable[[bytes], Post]
    read: Callable[[Any], Answer]
    ready: str
    settings: Mapping[int, Sequence[Settings]]
    polls: bool = False


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


def batched(wait: str = "WAIT_MS", best: str = "1", other: str = "5", **more: str) -> dict[int, Sequence[Settings]]:
    """Batches of 16 that wait for more so long, or longer, or none. One process has both cores for a batch, or one."""
    chosen = {"BATCH": "16", wait: best, **more}
    others: list[Settings] = [{**chosen, wait: other}, {**more, "BATCH": "1"}]
    return {1: [chosen | {"THREADS": "2"}, chosen, *others], 2: [chosen, *others]}


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "fastapi",
            script("plain_fastapi"),
            by_form,
            plain,
            "/health",
            dict.fromkeys((1, 2), ({"THREADS": "1"}, {"THREADS": "2"}, {"THREADS": "0"})),
        ),
        Peer("litserve", script("with_litserve"), by_form, plain, "/health", batched(FAST_QUEUE="1"), polls=True),
        Peer("bentoml", bentoml, by_form, first, "/readyz", batched("TARGET_MS", "60000", "1000")),
        Peer("mlserver", script("with_mlserver"), in_base64, tensors, "/v2/models/awnet/ready", batched()),
        Peer(
            "ray",
            script("with_ray"),
            as_body,
            plain,
            "/-/healthz",
            batched(RAY_SERVE_THROUGHPUT_OPTIMIZED="1"),
            polls=True,
        ),
        Peer(
            "triton",
            lambda python, ports, folder: [],  # `start` knows
            in_binary,
            tensors,
            "/v2/models/awnet/ready",
            {
                1: ({"WAIT_US": "0", "THREADS": "2"}, {"WAIT_US": "0"}, {"WAIT_US": "1000", "THREADS": "2"}),
                2: ({"WAIT_US": "0"}, {"WAIT_US": "1000"}),
            },
        ),
    )
}
OURS = "awnet"


class Contestant(NamedTuple):
    """Who takes part: `name`, with `settings` other than its first ones where there are any."""

    name: str
    processes: int
    settings: Settings | None = None

    def __str__(self) -> str:
        settings = ",".join(f"{key}={value}" for key, value in (self.settings or {}).items())
        return f"{self.name}{settings and ':'}{settings}-{self.processes}"


def contestant(text: str, processes: int) -> Contestant:
    """Of `NAME` or `NAME:KEY=VALUE,...`. Raises ValueError."""
    name, _, rest = text.partition(":")
    if name != OURS and name not in PEERS:
        raise ValueError(f"there is no {name}: {', '.join((OURS, *PEERS))}")
    pairs = [pair.partition("=") for pair in rest.split(",") if pair]
    return Contestant(name, processes, {key: value for key, _, value in pairs} or None)


def tried(name: str, processes: int) -> list[Contestant]:
    """With each of the settings that the peer was tried with, the chosen ones first."""
    return [Contestant(name, processes, settings) for settings in PEERS[name].settings[processes]]


# What makes the peers leave this machine alone, in the form in which each project documents it.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "1"}
PATIENCE = {"RAY_raylet_start_wait_time_s": "180"}  # on a busy machine


class Running:
    """A contestant that answers. Leaving the `with` block ends it, and whatever processes it has left.

    Attributes:
        port: of its HTTP.
        pid: of its first process.
    """

    def __init__(self, process: Process, port: int, peer: Peer | None) -> None:
        self.process, self.port, self.pid = process, port, process.pid
        self._peer = peer
        self._known: set[tuple[int, str]] = set()

    def post(self, image: bytes) -> Post:
        return self._peer.post(image) if self._peer else by_form(image)

    @property
    def path(self) -> str:
        """Where images are posted to."""
        return self.post(b"").path

    def wait_ready(self) -> None:
        ready = self._peer.ready if self._peer else "/v2/health/ready"
        self.process.answering(f"http://127.0.0.1:{self.port}{ready}", 180)

    def answer(self, image: bytes) -> bytes:
        """The body of its answer about an encoded image. Raises OSError where there is none."""
        post = self.post(image)
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{post.path}", post.body, dict(post.headers))
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    def ask(self, image: bytes) -> Answer:
        """What that says."""
        return (self._peer.read if self._peer else ours)(json.loads(self.answer(image)))

    def pids(self) -> list[int]:
        """Its processes now."""
        found = family(self.pid)
        self._known.update((pid, born(pid)) for pid in found)
        return found

    @property
    def polls(self) -> bool:
        return self._peer is not None and self._peer.polls

    def send(self, sig: signal.Signals) -> None:
        """A signal to each of its processes, SIGSTOP and SIGCONT for one."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, sig)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        self.send(signal.SIGCONT)
        self.process.stop(seconds=15)
        for pid, when in self._known:
            if when and born(pid) == when:  # no other process that has its number now
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def born(pid: int) -> str:
    """When a process began, in ticks; empty where there is none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
    return ""


def start(who: Contestant, model: Path, venvs: Path | None, folder: Path) -> Running:
    """Start a contestant; it may not be ready.

    Args:
        model: `.../NAME/VERSION/model.onnx` of a repository.
        venvs: a folder with an environment for each peer.
        folder: an empty one.
    """
    name = who.name
    if name == OURS:
        home = model.parents[1]
        given = {"repository": home.parent, "model": home.name, "version": model.parent.name, **(who.settings or {})}
        server = Server(folder, workers=who.processes, drain_seconds=0, log_level="warning", **given)
        return Running(server, server.port, None)
    peer = PEERS[name]
    settings = who.settings or peer.settings[who.processes][0]
    environment = {key if key.startswith("RAY_") else f"PEER_{key}": value for key, value in settings.items()}
    environment |= {"PEER_MODEL": str(model.absolute()), "PEER_PROCESSES": str(who.processes)}
    environment |= (
        QUIET
        | PATIENCE
        | {"PYTHONPATH": str(APPS), "PYTHONDONTWRITEBYTECODE": "1", "BENTOML_HOME": str(folder / "bentoml")}
    )
    log = folder / f"{name}.log"
    if name == "triton":
        home = folder / "repository/awnet"
        (home / "1").mkdir(parents=True)
        for source, copy in (("with_triton.py", "model.py"), ("onnx_model.py", "onnx_model.py")):
            (home / "1" / copy).write_bytes((APPS / source).read_bytes())  # Triton's stub looks nowhere else
        config = string.Template((APPS / "triton.pbtxt").read_text("utf-8"))
        (home / "config.pbtxt").write_text(config.substitute(settings, PROCESSES=who.processes), "utf-8")
        triton = Triton(home.parent, (venvs or ROOT) / name, log, environment=environment)
        return Running(triton, triton.http, peer)
    ports = [free_port() for _ in range(3)]
    command = peer.command(interpreter(name, venvs), ports, folder)
    return Running(Process(command, log, environment, folder), ports[0], peer)


def interpreter(name: str, venvs: Path | None) -> Path:
    """Plain FastAPI needs nothing that this environment has not."""
    return venvs.absolute() / name / "bin/python" if venvs and name != "fastapi" else Path(sys.executable)


def differs(found: Answer, wanted: Answer, tolerance: float = 1e-3) -> bool:
    return found.class_id != wanted.class_id or abs(found.score - wanted.score) > tolerance

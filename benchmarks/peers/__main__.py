"""The server beside its peers, closed loop, in one run: requests a second, latency, CPU time, memory, start.

Every contestant serves the same model file and decodes the same upload in the same way, with the settings that were
best among those that `contestants.py` names; before anything is timed, class and score of each are compared with ours.
They run side by side and are asked in turn, in rounds whose order rotates; figures are medians over the rounds. wrk is
the client and shares the cores. Ratios are between contestants with the same number of processes that run the model.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

from tqdm import tqdm

from ..harness import report
from ..harness.closed_loop import (
    Figures,
    add_image,
    add_model,
    add_rounds,
    kept,
    posting,
    rotated,
    table,
    uploaded,
    wrk,
)
from ..harness.processes import memory_mb
from ..harness.report import ROOT
from . import limits
from .contestants import OURS, PEERS, Answer, Running, differs, start
from .environments import set_up, versions
from .page import markdown

EXAMPLES = """examples:
  python -m benchmarks.peers --set-up ~/peers-venvs                     an environment for each peer, 2 GB
  python -m benchmarks.peers --venvs ~/peers-venvs                      about twelve minutes
  python -m benchmarks.peers --venvs ~/peers-venvs --rounds 3 --seconds 2
  python -m benchmarks.peers --only awnet fastapi --clients 8 32        needs no environment
"""
CHECKED = ("cat", "ship-adversarial", "frog", "truck-adversarial")


def main() -> int:
    if sys.argv[1:2] == ["--part"]:
        return limits.main(sys.argv[2:])
    options = arguments()
    if options.set_up:
        set_up(options.set_up, options.only)
        return 0
    if report.missing("wrk"):
        return 0
    found = measure(options)
    text = markdown(found)
    report.publish(options.out, found, text)
    print(text)
    return 0


def arguments() -> argparse.Namespace:
    parser = report.parser("peers", __doc__, EXAMPLES)
    add_model(parser)
    add_image(parser)
    add_rounds(parser, [1, 8, 32])
    names = [OURS, *PEERS]
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {', '.join(names)}"
    )
    parser.add_argument("--processes", type=int, nargs="+", choices=(1, 2), default=[1, 2], help="[1 2]")
    parser.add_argument("--venvs", type=Path, metavar="DIR", help="the environments that --set-up made")
    parser.add_argument("--set-up", type=Path, metavar="DIR", help="make an environment for each peer there, and end")
    report.add_out(parser, "peers")
    options = parser.parse_args()
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds; returns the report."""
    model, image = chosen_model(options), uploaded(options.image)
    names = [f"{name}-{processes}" for name in options.only for processes in options.processes]
    found: dict[str, Any] = {
        "what": "a closed loop of uploads, ours beside peers; medians over interleaved rounds",
        "machine": report.loaded_machine(),
        "versions": versions(options.only),
        "model": {"file": str(model.relative_to(options.repository)), "bytes": model.stat().st_size},
        "image_bytes": len(image),
        "rounds": options.rounds,
        "seconds": options.seconds,
    }
    samples: dict[str, dict[int, list[Figures]]] = {name: {c: [] for c in options.clients} for name in names}
    alone: dict[str, list[float]] = {"1": [], "16": []}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (sent := scratch / "image").write_bytes(image)
        field = Field(model, options.venvs, image, scratch, stack)
        for name in tqdm(names, desc="start"):
            field.start(name)
        check(field.running)
        for name in names:  # warm: batchers and thread pools grow with what they get
            field.measure(name, max(options.clients), 1)
        turns = [(c, name) for turn in range(options.rounds) for c in options.clients for name in rotated(names, turn)]
        for clients, name in (progress := tqdm(turns, desc="rounds")):
            progress.set_postfix_str(f"{name}, {clients} clients")
            samples[name][clients].append(field.measure(name, clients, options.seconds))
        found["start"] = {name: field.facts(name) for name in names}
        for _ in range(options.rounds):
            for batch, told in alone.items():
                told.append(limits.alone(model, sent, int(batch), options.seconds))
    found["machine"]["load_after"] = list(os.getloadavg())
    return found | {
        "contestants": table(samples),
        "raw_images_per_second": {batch: statistics.median(told) for batch, told in alone.items()},
        "samples": kept(samples),
    }


class Field:
    """Every contestant that takes part, each running and idle until it is its turn.

    Attributes:
        running: by name and number of processes.
    """

    def __init__(self, model: Path, venvs: Path | None, image: bytes, folder: Path, stack: ExitStack) -> None:
        self.running: dict[str, Running] = {}
        self._model, self._venvs, self._image, self._folder, self._stack = model, venvs, image, folder, stack
        self._facts: dict[str, dict[str, float]] = {}

    def start(self, name: str) -> None:
        """Wait until it answers; how long that took is kept, of the first time."""
        kind, _, processes = name.rpartition("-")
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))
        begun = time.perf_counter()
        one = self._stack.enter_context(start(kind, int(processes), self._model, self._venvs, folder))
        one.wait_ready()
        facts = self._facts.setdefault(name, {"ready_seconds": time.perf_counter() - begun, "ended": -1})
        facts["ended"] += 1
        post = one.post(self._image)
        (self._folder / f"{name}.lua").write_bytes(posting(post.body, post.headers))
        self.running[name] = one

    def measure(self, name: str, clients: int, seconds: float) -> Figures:
        """Ask it; one that has ended by itself is started again, and that is counted."""
        for last in (False, False, True):
            one = self.running[name]
            try:
                figures = wrk(one.port, clients, seconds, self._folder / f"{name}.lua", one.pids(), one.path)
                if one.process.running:
                    return figures
            except CalledProcessError:  # nobody listens
                if last or one.process.running:
                    raise
            self.start(name)
        raise one.process.failure()

    def facts(self, name: str) -> dict[str, float]:
        """Seconds until it was ready, how often it ended by itself, its processes, and their memory now."""
        pids = self.running[name].pids()
        return self._facts[name] | {"pss_mb": sum(memory_mb(pid, "Pss") for pid in pids), "processes": len(pids)}


def with_cores(figures: Figures) -> Figures:
    """Also how many cores its processes kept busy."""
    return figures | {"cores": figures["cpu_ms"] * figures["rps"] / 1000}


def check(running: dict[str, Running]) -> None:
    """Class and score of each contestant are those of the first, ours where it takes part. Raises SystemExit."""
    for name in CHECKED:
        image = (ROOT / f"examples/{name}.png").read_bytes()
        answers: dict[str, Answer] = {who: one.ask(image) for who, one in running.items()}
        wanted = next(iter(answers.values()))
        if wrong := {who: found for who, found in answers.items() if differs(found, wanted)}:
            raise SystemExit(f"not measured: {wrong} about {name}.png, {next(iter(answers))} answers {wanted}")


def chosen_model(options: argparse.Namespace) -> Path:
    """The model file of the version that is asked for, or of the highest one for 'latest'. Raises SystemExit."""
    home = options.repository / options.model
    numbers = [int(path.name) for path in home.glob("*") if (path / "model.onnx").is_file()]
    version = str(max(numbers, default=0)) if options.version == "latest" else options.version
    if not (path := home / version / "model.onnx").is_file():
        raise SystemExit(f"there is no {path}")
    return path


if __name__ == "__main__":
    sys.exit(main())

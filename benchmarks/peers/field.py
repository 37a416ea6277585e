"""The contestants of one run: all of them started, each idle until it is its turn.

Those that poll for work would take a tenth to a third of a core from the others: they are stopped (SIGSTOP) meanwhile.
Nobody else is: an execution that was stopped half way takes a minute by the clock, which misleads whoever measures how
long executions take, and Triton takes a model process that stops for dead.
"""

from __future__ import annotations

import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import CalledProcessError
from typing import Self

from ..harness.closed_loop import Figures, posting, wrk
from ..harness.processes import cpu_seconds, memory_mb
from ..harness.report import ROOT
from .contestants import OURS, Contestant, Running, differs, start

SETTLE_SECONDS = 0.2
TRIES = 3  # of one that ends by itself
CHECKED = ("cat", "ship-adversarial", "frog", "truck-adversarial")


class Field:
    """Starts, checks and asks them. Leaving the `with` block ends them.

    Attributes:
        ready_seconds: by contestant, of its first start.
    """

    def __init__(self, model: Path, venvs: Path | None, image: bytes, folder: Path) -> None:
        self._model, self._venvs, self._image, self._folder = model, venvs, image, folder
        self._stack = ExitStack()
        self._who: dict[str, Contestant] = {}
        self._running: dict[str, Running] = {}
        self._starts: Counter[str] = Counter()
        self.ready_seconds: dict[str, float] = {}

    def start(self, who: Contestant) -> None:
        """Wait until it answers; how long that took is kept, of the first time."""
        name = str(who)
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        begun = time.perf_counter()
        one = self._stack.enter_context(start(who, self._model, self._venvs, folder))
        one.wait_ready()
        self.ready_seconds.setdefault(name, time.perf_counter() - begun)
        self._starts[name] += 1
        post = one.post(self._image)
        self._script(name).write_bytes(posting(post.body, post.headers))
        self._who[name], self._running[name] = who, one
        if one.polls:
            one.send(signal.SIGSTOP)

    @contextmanager
    def awake(self, name: str) -> Iterator[Running]:
        """For its turn."""
        one = self._running[name]
        if not one.polls:
            yield one
            return
        one.send(signal.SIGCONT)
        time.sleep(SETTLE_SECONDS)  # for timers that are overdue
        try:
            yield one
        finally:
            time.sleep(SETTLE_SECONDS)  # for what is under way
            one.send(signal.SIGSTOP)

    def check(self) -> None:
        """Class and score of each are those of the first, for some of the examples. Raises SystemExit."""
        for name in CHECKED:
            image = (ROOT / f"examples/{name}.png").read_bytes()
            answers = {}
            for who in self._running:
                with self.awake(who) as one:
                    answers[who] = one.ask(image)
            first, wanted = next(iter(answers.items()))
            if wrong := {who: found for who, found in answers.items() if differs(found, wanted)}:
                raise SystemExit(f"nothing was timed: {first} answers {wanted} about {name}.png, and others {wrong}")

    def measure(self, name: str, clients: int, seconds: float) -> Figures:
        """Ask it; one that has ended by itself is started again, and that is counted."""
        for _ in range(TRIES):
            with self.awake(name) as one:
                before = self._loop_seconds(name)
                try:
                    figures = wrk(one.port, clients, seconds, self._script(name), one.pids(), one.path)
                except CalledProcessError:  # nobody listens
                    if one.process.running:
                        raise
                if one.process.running:
                    spent = self._loop_seconds(name) - before
                    share = spent / max(1e-9, figures["cores"] * max(1, round(seconds)))
                    return figures | {"loop_ms": share * figures["cpu_ms"]} if spent else figures
            self.start(self._who[name])
        raise one.process.failure()

    def _loop_seconds(self, name: str) -> float:
        """CPU time of the thread of our event loop; 0 of others, and of several processes."""
        if self._who[name]._replace(settings=None) != Contestant(OURS, 1):
            return 0.0
        pid = self._running[name].pid
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text("ascii").split()[0]) / 1e9

    def idle_cores(self, name: str, seconds: float) -> float:
        """Cores that it keeps busy while nobody asks."""
        with self.awake(name) as one:
            before = sum(map(cpu_seconds, one.pids()))
            time.sleep(seconds)
            return (sum(map(cpu_seconds, one.pids())) - before) / seconds

    def answer_bytes(self, name: str) -> int:
        """Of the body."""
        with self.awake(name) as one:
            return len(one.answer(self._image))

    def pids(self, name: str) -> list[int]:
        """Its processes now."""
        return self._running[name].pids()

    def facts(self, name: str) -> Figures:
        """How often it ended by itself, its processes, and their memory now."""
        pids = self.pids(name)
        memory = sum(memory_mb(pid, "Pss") for pid in pids)
        return {"ended": self._starts[name] - 1, "processes": len(pids), "pss_mb": memory}

    def _script(self, name: str) -> Path:
        return self._folder / re.sub(r"\W", "_", f"{name}.lua")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for one in self._running.values():  # all at once: some take seconds
            one.send(signal.SIGCONT)
            if one.process.running:
                one.process.send(signal.SIGTERM)
        self._stack.close()

"""Cores that threads share, in virtual time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import simpy

_NOTHING = 1e-9  # seconds of work that count as done: what a clock that has run for days still tells apart


class _Task:
    __slots__ = ("done", "left", "rate")

    def __init__(self, seconds: float, done: Callable[[], None]) -> None:
        self.left = seconds
        self.done = done
        self.rate = 0.0


class Machine:
    """Runs tasks, each on one core at most.

    A kernel that divides time fairly lets a thread that wakes for a moment, such as an event loop, go before those that
    compute: `urgent` tasks get cores first, others share what is left equally.

    Attributes:
        busy: core seconds spent until the last event.
    """

    def __init__(self, env: simpy.Environment, cores: int) -> None:
        self._env = env
        self.cores = cores
        self.busy = 0.0
        self._urgent: list[_Task] = []
        self._others: list[_Task] = []
        self._since = 0.0
        self._alarm: simpy.Event | None = None

    def run(self, seconds: float, done: Callable[[], None], urgent: bool = False) -> None:
        """Calls `done` once so many seconds of one core have gone into the task."""
        self._pass()
        (self._urgent if urgent else self._others).append(_Task(seconds, done))
        self._share()

    def spent(self) -> float:
        """Core seconds until now."""
        self._pass()
        return self.busy

    def _pass(self) -> None:
        """What the tasks got since the last event."""
        passed = self._env.now - self._since
        if passed:
            self._since = self._env.now
            for task in (*self._urgent, *self._others):
                got = passed * task.rate
                task.left -= got
                self.busy += got

    def _share(self) -> None:
        """Divide the cores anew, and wake when the next task ends."""
        free, soonest = float(self.cores), float("inf")
        for tasks in (self._urgent, self._others):
            if not tasks:
                continue
            rate = min(1.0, free / len(tasks))
            free -= rate * len(tasks)
            for task in tasks:
                task.rate = rate
                if rate > _NOTHING:
                    soonest = min(soonest, max(0.0, task.left) / rate)
        self._alarm = None
        if soonest < float("inf"):
            self._alarm = self._env.timeout(soonest)
            self._alarm.callbacks.append(self._ring)

    def _ring(self, alarm: simpy.Event) -> None:
        if alarm is not self._alarm:  # tasks came since it was set
            return
        self._pass()
        ended = [task for task in (*self._urgent, *self._others) if task.left <= _NOTHING]
        self._urgent = [task for task in self._urgent if task.left > _NOTHING]
        self._others = [task for task in self._others if task.left > _NOTHING]
        self._share()
        for task in ended:
            task.done()


class Thread:
    """One thing after the other, as an event loop does."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._line: deque[tuple[Callable[[], float], Callable[[], None]]] = deque()

    def run(self, begin: Callable[[], float], done: Callable[[], None]) -> None:
        """`begin` is called when its turn has come and says how many seconds it takes."""
        self._line.append((begin, done))
        if len(self._line) == 1:
            self._next()

    def _next(self) -> None:
        self._machine.run(self._line[0][0](), self._end, urgent=True)

    def _end(self) -> None:
        _, done = self._line.popleft()
        if self._line:
            self._next()
        done()

"""Cores that threads share, and the lock of their interpreter, in virtual time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import partial

import simpy

SLICE = 0.0014  # `base_slice_ns` of Linux with two cores; twice that with eight
TICK = 0.004  # of its clock, where it is built for servers (250 Hz, no preemption)
SWITCH = 0.005  # `sys.getswitchinterval`: who has waited so long for the interpreter's lock is given it


class _Core:
    __slots__ = ("light", "others", "since", "thread", "watched")

    def __init__(self) -> None:
        self.thread: Thread | None = None
        self.since = 0.0  # when that thread got it
        self.light: deque[Thread] = deque()  # that wait for it, and go first
        self.others: deque[Thread] = deque()
        self.watched = False  # at the next tick that matters

    @property
    def line(self) -> deque[Thread]:
        return self.light or self.others

    def add(self, thread: Thread) -> None:
        thread.core = self
        (self.light if thread.light else self.others).append(thread)


class Machine:
    """Runs threads, each on one core at most, as the scheduler of Linux (EEVDF) does on a few cores.

    A thread that wakes gets the core that it had, if that is idle, or else another idle one; where none is, it waits
    for the one that it had, even if another falls idle meanwhile: only at a tick threads are moved. A thread keeps its
    core until it has nothing to do, or has had it for SLICE when another wakes, or at a tick. Those that use little,
    such as an event loop, go first.

    Attributes:
        busy: core seconds spent on work that has ended, or was interrupted.
    """

    def __init__(self, env: simpy.Environment, cores: int) -> None:
        self.env = env
        self.cores = cores
        self.busy = 0.0
        self._cores = [_Core() for _ in range(cores)]

    def spent(self) -> float:
        """Core seconds until now."""
        return self.busy + sum(core.thread.lately() for core in self._cores if core.thread)

    def wake(self, thread: Thread) -> None:
        """It wants a core."""
        core = thread.core or self._cores[0]
        if core.thread:
            core = next((one for one in self._cores if not one.thread), core)
        core.add(thread)
        if core.thread:
            self._divide(core)
        else:
            self._next(core)

    def leave(self, thread: Thread) -> None:
        """It wants its core no more."""
        core = thread.core
        assert core is not None
        core.thread = None
        if core.line:
            self._next(core)

    def _next(self, core: _Core) -> None:
        core.thread, core.since = core.line.popleft(), self.env.now
        core.thread.go()
        if core.line:
            self._divide(core)

    def _divide(self, core: _Core, tick: simpy.Event | None = None) -> None:
        """Others wait for this core: its thread makes room, or is looked at again when its slice is over."""
        now, end = self.env.now, core.since + SLICE
        if tick:
            core.watched = False
            idle = next((one for one in self._cores if not one.thread), None)
            if idle and core.line:
                idle.add(core.line.popleft())
                self._next(idle)
        if not core.line or core.thread is None:
            return
        if now >= end and core.thread.stop():
            core.add(core.thread)
            self._next(core)
        elif not core.watched:
            core.watched = True
            due = max(end, math.nextafter(now, math.inf))
            alarm = self.env.timeout(max(0.0, TICK * math.ceil(due / TICK) - now))
            alarm.callbacks.append(partial(self._divide, core))


class Lock:
    """Of a Python process: a thread keeps it over steps that need it, unless another has waited for SWITCH."""

    def __init__(self) -> None:
        self.holder: Thread | None = None
        self.line: deque[tuple[float, Thread]] = deque()  # since when each waits


class _Step:
    __slots__ = ("begin", "done", "locked")

    def __init__(self, begin: Callable[[], float], done: Callable[[], None], locked: bool) -> None:
        self.begin = begin
        self.done = done
        self.locked = locked


class Thread:
    """One thing after the other, as an event loop does.

    Args:
        lock: that steps may need.
        light: it uses little of a core, as an event loop does.
        cold: seconds since it last worked -> seconds that the next step takes longer.
    """

    def __init__(
        self,
        machine: Machine,
        lock: Lock | None = None,
        *,
        light: bool = False,
        cold: Callable[[float], float] = lambda pause: 0.0,
    ) -> None:
        self.light = light
        self.core: _Core | None = None  # that it has, waits for, or had
        self._machine = machine
        self._env = machine.env
        self._lock = lock
        self._cold = cold
        self._steps: deque[_Step] = deque()
        self._asleep: float | None = machine.env.now  # since when there is nothing to do
        self._extra = 0.0
        self._left: float | None = None  # seconds of the first step, once it has begun
        self._since = 0.0
        self._alarm: simpy.Event | None = None

    def run(self, begin: Callable[[], float], done: Callable[[], None] = lambda: None, locked: bool = False) -> None:
        """One more step. `begin` is called when its turn has come and says how many seconds it takes."""
        self._steps.append(_Step(begin, done, locked))
        if self._asleep is not None:
            self._extra, self._asleep = self._cold(self._env.now - self._asleep), None
            self._machine.wake(self)

    def lately(self) -> float:
        """Seconds of work that are not in the machine's `busy` yet."""
        return self._env.now - self._since if self._alarm else 0.0

    def go(self) -> None:
        """It has a core: begin the first step, or go on with it."""
        lock = self._lock if self._steps[0].locked else None
        if lock is not None and lock.holder is not self:
            if lock.holder is not None:
                lock.line.append((self._env.now, self))
                self._machine.leave(self)
                return
            lock.holder = self
        if self._left is None:
            self._left = self._steps[0].begin() + self._extra
            self._extra = 0.0
        self._since = self._env.now
        self._alarm = self._env.timeout(max(0.0, self._left))
        self._alarm.callbacks.append(self._end)

    def stop(self) -> bool:
        """Its core is taken away, where it is in the middle of a step."""
        if self._alarm is None or self._left is None:
            return False
        self._left -= self.lately()
        self._machine.busy += self.lately()
        self._alarm = None
        return True

    def _end(self, alarm: simpy.Event) -> None:
        if alarm is not self._alarm:  # the core was taken away meanwhile
            return
        self._machine.busy += self.lately()
        self._alarm = self._left = None
        self._steps.popleft().done()
        if self._lock is not None and self._lock.holder is self:
            self._pass_on(self._lock)
        if self._steps:
            self.go()
        else:
            self._asleep = self._env.now
            self._machine.leave(self)

    def _pass_on(self, lock: Lock) -> None:
        """Give up the lock, unless the next step needs it and nobody has waited for long."""
        waited = self._env.now - lock.line[0][0] if lock.line else 0.0
        if self._steps and self._steps[0].locked and waited < SWITCH:
            return
        lock.holder = lock.line.popleft()[1] if lock.line else None
        if lock.holder is not None:
            self._machine.wake(lock.holder)

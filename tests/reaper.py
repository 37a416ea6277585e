"""What a lost test process leaves: the name of the test that it was lost in, and none of the processes it started.

A test process that dies by a signal (a crash in C++, the kernel's want of memory, kill -9) runs no clean-up of its own.
As a plugin this module marks the environment that whatever tests start inherits, and starts itself again as a program,
the reaper. That reads from a pipe which test runs, waits for the test process to end, names the test where it did not
end by itself, and ends every process that has the mark, with its descendants. After a run that did end by itself it
names and ends what is still there after a while.

Out of its reach: a copy of the test process itself (`os.fork`), and what a test starts with an environment of its own.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARK = "PYTEST_STARTED_BY"
GRACE_SECONDS = 5.0  # for what ends when it sees that the test process has

_reaper: subprocess.Popen[bytes] | None = None


def pytest_configure() -> None:
    """Standard error is the terminal's here: no test runs, nothing is captured."""
    global _reaper
    if not hasattr(os, "pidfd_open"):
        return  # not Linux
    outside = {key: value for key, value in os.environ.items() if key != MARK}
    mark = uuid.uuid4().hex
    os.environ[MARK] = f"{os.environ.get(MARK, '')} {mark}"  # a session inside a test belongs to both
    command = [sys.executable, "-I", __file__, str(os.getpid()), mark]
    _reaper = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=outside, start_new_session=True
    )


def pytest_runtest_logstart(nodeid: str) -> None:
    _tell(f"during {nodeid}")


def pytest_runtest_logfinish(nodeid: str) -> None:
    _tell(f"after {nodeid}")


def pytest_unconfigure() -> None:
    _tell("")


def _tell(where: str) -> None:
    if _reaper is not None and _reaper.stdin is not None:
        with suppress(OSError):  # there is no reaper any more
            os.write(_reaper.stdin.fileno(), f"{where}\n".encode())


def watch(pid: int, mark: str) -> None:
    """The reaper's life, from the start of test process `pid` to the end of what it started."""
    process, report = os.pidfd_open(pid), b"before the first test\n"
    while process not in (ready := select.select([process, 0], [], [])[0]):
        report += os.read(0, 65_536)
        report = report[report.rfind(b"\n", 0, -1) + 1 :]
    if 0 in ready:
        report += os.read(0, 65_536)
    where = report.decode(errors="replace").split("\n")[-2]
    if where:
        say(f"the test process was lost {where}")
    else:
        deadline = time.monotonic() + GRACE_SECONDS
        while any(started(mark)) and time.monotonic() < deadline:
            time.sleep(0.05)
    ended: dict[int, str] = {}
    deadline = time.monotonic() + GRACE_SECONDS
    while (there := dict(started(mark))) and time.monotonic() < deadline:
        ended |= there
        for one in there:
            with suppress(OSError):
                os.kill(one, signal.SIGKILL)
        time.sleep(0.01)
    for one, command in ended.items():
        say(f"ended what tests had started: {command} (process {one})")


def started(mark: str) -> Iterator[tuple[int, str]]:
    """(process, command) of everything that has the mark in its environment, and of its descendants."""
    parents: dict[int, int] = {}
    found: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or is not ours
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                parents[int(folder.name)] = int(parent)
                if mark.encode() in (folder / "environ").read_bytes():
                    found.add(int(folder.name))
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    for one in found - {os.getpid()}:
        with suppress(OSError):
            yield one, " ".join(Path(f"/proc/{one}/cmdline").read_bytes().decode(errors="replace").split("\0"))[:200]


def say(text: str) -> None:
    print(f"\n{text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watch(int(sys.argv[1]), sys.argv[2])

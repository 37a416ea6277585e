"""A lost test process says which test it was, and takes along what it had started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import eventually

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.process, pytest.mark.skipif(sys.platform != "linux", reason="the reaper needs Linux")]

# A program with a program of its own, each in its own session, as `make serve` and Triton are.
SERVER = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
TESTS = f"""
import os, subprocess, sys, time
from pathlib import Path

def test_quick():
    pass

def test_it():
    server = subprocess.Popen([sys.executable, "-c", {SERVER!r}], start_new_session=True)
    while not (children := Path(f"/proc/{{server.pid}}/task/{{server.pid}}/children").read_text().split()):
        time.sleep(0.01)
    Path("pids").write_text(f"{{server.pid}} {{children[0]}}")
    ENDING
"""


def session(folder: Path, ending: str) -> tuple[subprocess.CompletedProcess[str], list[Path]]:
    """A test session that starts a server and then does `ending`; with it, /proc's folders of the two processes."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_x.py").write_text(TESTS.replace("ENDING", ending))
    command = [sys.executable, "-m", "pytest", "-p", "tests.reaper", "-p", "no:cacheprovider", "test_x.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return done, [Path("/proc", pid) for pid in (folder / "pids").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_lost_test_process_names_its_test_and_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    """Killed or crashed: no clean-up of its own has run."""
    done, processes = session(tmp_path, f"os.kill(os.getpid(), {int(number)})")
    assert done.returncode == -number
    assert "the test process was lost during test_x.py::test_it\n" in done.stderr
    assert "time.sleep(600)" in done.stderr
    eventually(lambda: not any(process.exists() for process in processes), 10)


def test_what_a_finished_session_leaves_behind_is_named_and_ended(tmp_path: Path) -> None:
    """A test that forgets a server does not fail by that, but it is told."""
    done, processes = session(tmp_path, "pass")
    assert done.returncode == 0 and "lost" not in done.stderr
    assert "ended what tests had started: " in done.stderr
    eventually(lambda: not any(process.exists() for process in processes), 10)


def test_a_tidy_session_hears_nothing_of_the_reaper(tmp_path: Path) -> None:
    """And does not wait for it."""
    done, _ = session(tmp_path, "os.killpg(server.pid, 9); server.wait()")
    assert (done.returncode, done.stderr) == (0, "")

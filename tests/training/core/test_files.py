"""Files of training: whole or not at all; locks end with their process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.core import files

ROOT = Path(__file__).parents[3]


def other(program: str) -> subprocess.Popen[str]:
    """A process of ours that has printed its first line."""
    lines = f"import sys, time; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n{program}\n"
    process = subprocess.Popen([sys.executable, "-c", lines], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_file_whose_writing_fails_stays_as_it_was(tmp_path: Path) -> None:
    """With no piece of the new one beside it; a folder that is missing is made."""
    file = tmp_path / "new/folder/report.json"
    files.write_json(file, {"first": True})
    before = file.read_bytes()
    with pytest.raises(ZeroDivisionError), files.whole(file) as partial:
        partial.write_text("half")
        _ = 1 / 0
    with pytest.raises(TypeError):
        files.write_json(file, {"what": object()})
    with pytest.raises(AttributeError):
        files.save(file, lambda: None)  # a function without a name cannot be stored
    assert file.read_bytes() == before and os.listdir(file.parent) == ["report.json"]


@pytest.mark.process
def test_a_kill_in_the_middle_of_writing_leaves_the_old_file(tmp_path: Path) -> None:
    """The next writer is not in the way of what the killed one left."""
    file = tmp_path / "last.txt"
    files.write_text(file, "old")
    program = f"from training.core import files\nwith files.whole(Path({str(file)!r})) as p:\n p.write_text('half')\n"
    with other(program + " print('ready', flush=True); time.sleep(600)") as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert file.read_text() == "old"
    files.write_text(file, "new")
    assert file.read_text() == "new"


def test_the_bytes_of_a_tensor_file_are_those_of_its_value(tmp_path: Path) -> None:
    """Whatever it is called, and whichever process wrote it."""
    for name in ("a.pt", "b.pt"):
        files.save(tmp_path / name, {"x": torch.arange(3)})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    assert torch.load(tmp_path / "a.pt", weights_only=True)["x"].tolist() == [0, 1, 2]


@pytest.mark.process
def test_a_lock_is_for_one_process_and_ends_with_it(tmp_path: Path) -> None:
    """Even by SIGKILL, and when it is closed."""
    path = tmp_path / "run/lock"
    program = f"from training.core import files\nheld = files.lock(Path({str(path)!r}))\nassert held\n"
    with other(program + "print('ready', flush=True); time.sleep(600)") as process:
        assert files.lock(path) is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    held = files.lock(path)
    assert held is not None and files.lock(path) is None
    held.close()
    again = files.lock(path)
    assert again is not None
    again.close()

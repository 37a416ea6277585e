"""Pulls that are interrupted at every step: `python -m tests.server.model_sources.interrupted HOW SOURCE FOLDER`.

Of each run it prints a JSON line: how far it came, what it said, what it left and what the next run made of that. A
step is whatever touches a name below FOLDER. HOW is a signal that comes before the step, or `full`, a disk that has no
room for it. A run is a fork of this process.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from server.core.model_source import parse_model_source
from server.engines.repository import Repository
from server.errors import AWNetError
from server.model_sources import startup
from server.model_sources.pull import Pull, pull

STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "shutil.rmtree"}
TAKE_ROOM = {"open", "os.mkdir", "os.rename"}


def run(task: Pull, interrupt: Any = None) -> str:
    """What a fork says of its pull; nothing where it was killed."""
    ours, theirs = os.pipe()
    if not os.fork():
        try:
            if interrupt is not None:
                sys.addaudithook(interrupt)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
            said = f"version {startup.run(pull(task), signal.SIGTERM).version}"
        except AWNetError as error:
            said = error.detail
        except BaseException as error:
            said = type(error).__name__
        os.write(theirs, said.encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as answer:
        told = answer.read().decode()
    os.wait()
    return told


def main(how: str, source: str, folder: Path) -> None:
    for number in range(1000):
        repository = folder / str(number)
        counted = 0

        def at_a_step(event: str, given: tuple[Any, ...], repository: Path = repository, number: int = number) -> None:
            nonlocal counted
            if event not in STEPS or not str(given[0]).startswith(str(repository)):
                return
            if how == "full" and (event not in TAKE_ROOM or (event == "open" and not given[2] & os.O_CREAT)):
                return
            counted += 1
            if counted == number + 1:
                if how == "full":
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.kill(os.getpid(), signal.Signals[how])

        task = Pull(parse_model_source(source), repository, "awnet")
        said = run(task, at_a_step)
        known = Repository(repository).catalogue() if repository.exists() else {}
        whole = all(Repository(repository).read("awnet", version) for version in known.get("awnet", ()))
        left = sorted(path.name for path in repository.glob("awnet/*"))
        print(json.dumps({"said": said, "left": left, "whole": whole, "then": run(task)}), flush=True)
        if said.startswith("version"):
            return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))

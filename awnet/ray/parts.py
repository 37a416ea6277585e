"""The parts of one run: a Parquet file for each unit, in a folder that is there under its name once all are.

While it works the folder is OUT.partial. A part is written in one step, under the number of its unit: whoever writes it
again, because the process that did has been killed, writes the same rows in its place. So each image has one row,
however often its unit was begun. Nothing here knows Ray.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pyarrow import ArrowException
from pyarrow.parquet import read_table

from domain.files import replace, sync_folder

from ..command.results import JOURNAL, Line, OutputError, write_whole
from .sources import Unit, shown

RUN = "_run.json"  # readers of Parquet folders pass over names that begin like this


class Parts:
    """The parts of one run.

    Args:
        out: the folder that is made.
        units: what is scored, in the order of the parts.
        run: what must be the same for a run to go on: the model that answers, its mode, the options.
        resume: go on with what an earlier run left.

    Raises:
        OutputError: the folder is there already; what is left is of another run, or another process writes it.
    """

    def __init__(self, out: Path, units: Sequence[Unit], run: dict[str, Any], resume: bool) -> None:
        self._out, self._units = out, units
        self.folder = out.with_name(out.name + JOURNAL)
        if out.exists() or out.is_symlink():
            raise OutputError(f"{out} is there already: name another, or remove it")
        if self.folder.exists() and not resume:
            raise OutputError(f"{self.folder} is what a run before has left: go on with --resume, or remove it")
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise OutputError(f"{self.folder}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise OutputError(f"another process writes {self.folder}") from None
        try:
            self._same(run | {"images": self.images, "units": _digest(units)})
        except OutputError:
            os.close(self._lock)
            raise

    @property
    def images(self) -> int:
        """Of all units."""
        return sum(unit.count for unit in self._units)

    def left(self) -> list[int]:
        """Numbers of the units whose part is not there yet."""
        return [number for number in range(len(self._units)) if not part(self.folder, number).exists()]

    def publish(self) -> int:
        """Give the folder its name; the images in it that have no answer.

        Raises OutputError where a part cannot be read, or has not a row for each image, or something has the name.
        """
        failed = 0
        for number, unit in enumerate(self._units):
            path = part(self.folder, number)
            try:
                errors = read_table(path, columns=["error"]).column("error")
            except (ArrowException, OSError) as error:
                raise OutputError(f"{path}: {error}; remove it") from None
            if len(errors) != unit.count:
                raise OutputError(f"{path} has {len(errors)} rows for {unit.count} images; remove it")
            failed += len(errors) - errors.null_count
        try:
            for left in self.folder.glob(".*"):  # of processes that were killed
                left.unlink()
            os.fsync(self._lock)
            self.folder.rename(self._out)
        except OSError as error:
            raise OutputError(f"{self._out}: {error.strerror}") from None
        sync_folder(self._out.absolute().parent)
        return failed

    def close(self) -> None:
        """Let another run go on, where there is anything to go on with."""
        if self.folder.exists() and not any(self.folder.glob("part-*")):
            for left in self.folder.iterdir():
                left.unlink()
            self.folder.rmdir()
        os.close(self._lock)

    def _same(self, run: dict[str, Any]) -> None:
        path = self.folder / RUN
        try:
            before = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            if any(not left.name.startswith(".") for left in self.folder.iterdir()):  # `close` would remove it
                raise OutputError(f"{self.folder} holds what is not of a run: name another --out") from None
            replace(path, json.dumps(run, indent=1).encode())
            return
        except (OSError, ValueError, RecursionError):
            before = None
        if not isinstance(before, dict):
            raise OutputError(f"{path} is no file of ours: remove {self.folder}")
        for name, value in run.items():
            if before.get(name) != value:
                raise OutputError(
                    f"{self.folder} is of a run with other {name} ({_brief(before.get(name))}, now {_brief(value)}): "
                    "name another --out"
                )


def part(folder: Path, number: int) -> Path:
    """The file of a unit."""
    return folder / f"part-{number:06}.parquet"


def write_part(folder: Path, number: int, lines: Iterable[Line]) -> None:
    """Write the part of a unit, whole or not at all. Raises OSError."""
    write_whole(part(folder, number), folder / f".part-{number:06}.{os.getpid()}", lines)


def _digest(units: Iterable[Unit]) -> str:
    """Of what the units name; not of what the images hold."""
    found = hashlib.sha256()
    for text in _texts(units):
        found.update(text.encode("utf-8", "surrogateescape") + b"\n")
    return found.hexdigest()


def _texts(units: Iterable[Unit]) -> Iterator[str]:
    for unit in units:
        yield repr(unit).replace(unit.source, shown(unit.source))


def _brief(value: Any) -> str:
    return str(value)[:12]

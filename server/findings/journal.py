"""An append-only journal of events: JSON lines in segments, chained (`chain`), one chain a process.

A process takes the first chain of the folder that no other process holds (`flock`), so that workers, and servers that
share a folder, never write into one file, and one that comes back goes on where it ended. What was written survives
the end of the process at once, and that of the machine after the next `sync`. A line that an end has cut is closed, and
the next line has the hash of what was left of it.

Segments are never changed. The oldest go where a new one begins, by age and bytes; its first line says which number is
the first that is still kept, so that they are not missed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from domain.files import sync_folder

from ..errors import StartupError
from .chain import FIRST, SUFFIX, Line, Link, hold, read_line, sealed, segments

SEGMENT_BYTES = 8 << 20
SEGMENT_SECONDS = 86_400.0
MAX_CHAINS = 1024


class BrokenChainError(ValueError):
    """The end of a chain is not what was written: nothing is added to it."""


class Journal:
    """One chain, open for writing, for one thread.

    Args:
        folder: of the journal, made where it is missing.
        keep_bytes, keep_seconds: segments over that go.
        segment_bytes: a segment of at least so many is followed by another.

    Attributes:
        broken: chains whose end was changed; they are left as they are.

    Raises:
        StartupError: nothing can be written there.
    """

    def __init__(self, folder: Path, keep_bytes: int, keep_seconds: float, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._keep_bytes, self._keep_seconds, self._segment_bytes = keep_bytes, keep_seconds, segment_bytes
        self._pending = b""  # sealed, and not written yet
        self._unsynced = False
        self._file = self._lock = -1
        self._torn: str | None = None  # hash of what the next line follows and is no line
        self._starts = False  # the next line is the first of its segment
        self._size, self._begun = 0, 0.0
        self._kept_from = 1
        self._over: list[Path] = []  # segments to go once the next line is written
        self._head = Link(uuid.uuid4().hex, 0, FIRST)
        self.broken: list[Path] = []
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._take(folder)
        except OSError as error:
            raise StartupError(f"findings cannot be written to {folder}: {error.strerror or error}") from None

    @property
    def head(self) -> Link:
        """The last line's place; number 0 before the first."""
        return self._head

    @property
    def pending_bytes(self) -> int:
        """Of lines that could not be written yet."""
        return len(self._pending)

    def append(self, documents: Iterable[dict[str, Any]]) -> None:
        """Add a line for each. What cannot be written is kept, and written first the next time. Raises OSError."""
        if not self._pending and self._full():
            with contextlib.suppress(OSError):  # then this segment goes on
                self._begin_segment()
        for document in documents:
            more: dict[str, Any] = {}
            if self._torn is not None:
                more["torn"] = self._torn
            if self._starts:
                more["kept_from"] = self._kept_from
            line, self._head = sealed(document, self._head, more)
            self._torn, self._starts = None, False
            self._pending += line
        self.flush()

    def flush(self) -> None:
        """Write what is pending. Raises OSError."""
        while self._pending:
            written = os.write(self._file, self._pending)
            self._pending = self._pending[written:]
            self._size += written
            self._unsynced = True
        if self._size:  # the line that says from where on lines are kept is there
            while self._over:
                self._over.pop().unlink(missing_ok=True)

    def sync(self) -> None:
        """What was written survives the end of the machine, too. Raises OSError."""
        if self._unsynced:
            os.fdatasync(self._file)
            self._unsynced = False

    def close(self) -> None:
        """Write what can be written, and give the chain back."""
        with contextlib.suppress(OSError):
            self.flush()
            self.sync()
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1

    def _take(self, folder: Path) -> None:
        """Hold the first chain that is free and in order."""
        for number in range(MAX_CHAINS):
            self.folder = folder / f"chain-{number}"
            self.folder.mkdir(mode=0o750, exist_ok=True)
            lock = hold(self.folder)
            if lock is None:
                continue
            self._lock = lock
            try:
                self._go_on()
                return
            except BrokenChainError:
                self.broken.append(self.folder)
            os.close(self._lock)
        raise OSError(f"{MAX_CHAINS} chains are there, and all are in use or broken")

    def _go_on(self) -> None:
        """Find the chain's end, and close a torn line. Raises OSError, BrokenChainError."""
        paths = segments(self.folder)
        while paths and not paths[-1].stat().st_size:
            paths.pop().unlink()  # begun, and ended before its first line
        if not paths:
            self._begin_segment()
            return
        path = paths[-1]
        data = path.read_bytes()
        last, rest = _end(data)
        if last is None and len(paths) > 1:
            last = _end(paths[-2].read_bytes())[0]
        if last is not None:
            self._head = last.link
        elif len(paths) > 1:
            raise BrokenChainError
        self._kept_from = int(paths[0].stem)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._size, self._begun = len(data), path.stat().st_mtime
        if data and not data.endswith(b"\n"):
            self._pending = b"\n"  # before the next line, or as soon as the disk has room for it
            rest += b"\n"
        whole = read_line(rest[:-1]) if rest else None
        if whole is not None and whole.intact:
            self._head = whole.link  # only its end was cut
        elif rest:
            self._torn = hashlib.sha256(rest).hexdigest()

    def _full(self) -> bool:
        aged = time.time() - self._begun > min(SEGMENT_SECONDS, self._keep_seconds)
        return self._size >= self._segment_bytes or (self._size > 0 and aged)

    def _begin_segment(self) -> None:
        """A new file for the lines that come, and older ones to go. Raises OSError."""
        paths = segments(self.folder)
        path = self.folder / f"{self._head.sequence + 1:012d}{SUFFIX}"
        created = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        if self._file >= 0:
            with contextlib.suppress(OSError):
                self.sync()
            os.close(self._file)
        self._file, self._size, self._begun, self._starts = created, 0, time.time(), True
        with contextlib.suppress(OSError):
            sync_folder(self.folder)
        self._over = self._too_many(paths)
        self._kept_from = int([*paths[len(self._over) :], path][0].stem)

    def _too_many(self, paths: list[Path]) -> list[Path]:
        """The oldest of these segments, as many as are too many or too old beside a new one."""
        facts = [path.stat() for path in paths]
        total, oldest = sum(fact.st_size for fact in facts), time.time() - self._keep_seconds
        over = 0
        for fact in facts:
            if total + self._segment_bytes <= self._keep_bytes and fact.st_mtime >= oldest:
                break
            total -= fact.st_size
            over += 1
        return paths[:over]


def _end(data: bytes) -> tuple[Line | None, bytes]:
    """The last sealed line, and what lies behind it. Raises BrokenChainError where a line was changed."""
    rest_at = end = len(data)
    while end:
        begin = data.rfind(b"\n", 0, end - 1) + 1
        raw = data[begin:end]
        line = read_line(raw.removesuffix(b"\n"))
        if line is not None and raw.endswith(b"\n"):
            if not line.intact:
                raise BrokenChainError
            return line, data[rest_at:]
        rest_at = end = begin
    return None, data[rest_at:]

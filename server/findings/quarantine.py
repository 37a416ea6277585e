"""Keeps flagged images for evidence: their bytes as they were sent, in one folder, bounded in bytes and in time.

The folder belongs to all processes that have the journal. A file's name is the SHA-256 of its bytes, which is checked
when it is read, so that nothing else is ever taken for the image. One process writes at a time (`flock`), under a name
that is changed at the end: what a kill leaves is overwritten by the next one, and is never an image.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

from ..core.regular_files import open_regular
from ..errors import StartupError

FOLDER = "quarantine"  # in that of the journal
BLOCK_BYTES = 4096  # a file counts as whole blocks, so that the bound is one on the number of files, too
SWEEP_SECONDS = 60.0
WAITING_BYTES = 32 << 20  # of images that the thread has not written yet
CLOSE_SECONDS = 3.0
LOCK, PART = "lock", "part"

Result = Literal["kept", "lost"]

log = logging.getLogger("awnet.findings")


class Quarantine:
    """The folder, for one process: a thread of its own writes, so that no disk delays an answer or an event.

    Args:
        journal: folder of the journal.
        most_bytes: of all files together, of whatever process, in whole blocks; 0 keeps none that are new.
        keep_seconds: after an image came last.
        counted: called for each image, on any thread.

    Raises:
        StartupError: nothing can be written there.
    """

    def __init__(
        self,
        journal: Path,
        most_bytes: int,
        keep_seconds: float,
        counted: Callable[[Result], None] = lambda result: None,
    ) -> None:
        self._folder = journal / FOLDER
        self._most_bytes, self._keep_seconds = most_bytes, keep_seconds
        self._counted = counted
        self._queue: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
        self._bytes = 0  # that wait; written by both sides under the lock
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._failing = False
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            os.close(self._open())
        except OSError as error:
            raise StartupError(f"flagged images cannot be kept in {self._folder}: {error.strerror or error}") from None

    @property
    def keeps(self) -> bool:
        """Whether new images are kept; else those that are there go by age."""
        return self._most_bytes > 0

    def start(self) -> None:
        """Begin to write, and to remove what is too old."""
        self._thread = threading.Thread(target=self._run, name="quarantine", daemon=True)
        self._thread.start()

    def keep(self, sha256: str, data: bytes) -> None:
        """Keep `data`, whose hash this is; never waits."""
        with self._lock:
            room = _blocks(len(data)) <= self._most_bytes and self._bytes + len(data) <= WAITING_BYTES
            if room:
                self._bytes += len(data)
        if room:
            self._queue.put((sha256, data))
        else:
            self._counted("lost")

    def lost(self) -> None:
        """There was no memory for an image that should have been kept."""
        self._counted("lost")

    def stop(self) -> None:
        """Write what waits; the last call. Blocks for some seconds at most."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(CLOSE_SECONDS)
            self._thread = None

    def _run(self) -> None:
        due = 0.0
        while True:
            now = time.monotonic()
            if now >= due:
                due = now + SWEEP_SECONDS
                self._done(lambda lock: self._sweep(lock, 0))
            try:
                given = self._queue.get(timeout=due - now if due > now else 0)
            except queue.Empty:
                continue
            if given is None:
                return
            self._counted("kept" if self._done(partial(self._write, *given)) else "lost")
            with self._lock:
                self._bytes -= len(given[1])

    def _done(self, act: Callable[[int], object]) -> bool:
        """Whether this could be done while nobody else does anything; the log says once that it could not."""
        try:
            with self._alone() as lock:
                act(lock)
        except OSError as error:
            if not self._failing:
                log.error("flagged images cannot be kept or removed in %s: %s", self._folder, error.strerror or error)
            self._failing = True
            return False
        if self._failing:
            log.warning("flagged images are kept and removed again in %s", self._folder)
            self._failing = False
        return True

    def _write(self, sha256: str, data: bytes, lock: int) -> None:
        path, part = self._folder / sha256, self._folder / PART
        if read_image(self._folder.parent, sha256) is not None:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)  # it came again: its time begins anew
                return
        size = _blocks(len(data))
        total = _number(os.pread(lock, 32, 0))
        if total is None or total + size > self._most_bytes:
            total = self._sweep(lock, size)
        # First the total, then the file: a kill between them leaves it too high, which the next sweep mends.
        os.pwrite(lock, b"%-32d" % (total + size), 0)
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            part.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def _sweep(self, lock: int, room: int) -> int:
        """Remove what is too old, and the oldest until there is `room`; returns the bytes that are left.

        Where room is made, a tenth of the bound is made at least, so that it is not done for each image.
        """
        (self._folder / PART).unlink(missing_ok=True)  # of a process that was killed: nobody else writes now
        images = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if is_name(entry.name):
                    with contextlib.suppress(FileNotFoundError):  # somebody has removed it
                        fact = entry.stat(follow_symlinks=False)
                        images.append((fact.st_mtime, entry.path, _blocks(fact.st_size)))
        images.sort()
        total, oldest = sum(size for _, _, size in images), time.time() - self._keep_seconds
        most = self._most_bytes if self._most_bytes else total  # nothing new is kept: age alone decides
        if total + room > most:
            most -= max(room, most // 10)
        for at, path, size in images:
            if total <= most and at >= oldest:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
        os.pwrite(lock, b"%-32d" % total, 0)
        return total

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """Nobody else writes or removes meanwhile; the lock's file has the bytes of all files. Raises OSError."""
        lock = self._open()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock
        finally:
            os.close(lock)

    def _open(self) -> int:
        self._folder.mkdir(mode=0o700, exist_ok=True)  # somebody may have removed it with all images
        return os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def read_image(journal: Path, sha256: str) -> bytes | None:
    """The image with this hash; None where it is not kept, is not whole, or this user may not read it."""
    if not is_name(sha256):
        return None
    try:
        with open_regular(journal / FOLDER / sha256) as file:
            data = file.read()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == sha256 else None


def forget(journal: Path, sha256: str) -> bool:
    """Remove the image with this hash; whether there was one. Raises OSError."""
    if not is_name(sha256):
        return False
    try:
        (journal / FOLDER / sha256).unlink()
    except FileNotFoundError:
        return False
    return True


def is_name(text: str) -> bool:
    """Whether this is a SHA-256, as the files are named."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def _blocks(size: int) -> int:
    return -(-max(size, 1) // BLOCK_BYTES) * BLOCK_BYTES


def _number(text: bytes) -> int | None:
    return int(text) if text.strip().isdigit() else None

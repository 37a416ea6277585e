"""Files of a version that is being fetched: one writer at a time, bytes on disk before names, archives in bounds."""

from __future__ import annotations

import asyncio
import fcntl
import gzip
import hashlib
import os
import tarfile
import threading
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from ..core.regular_files import open_regular
from ..engines.disk import on_thread
from ..errors import SourceError
from .transfer import Progress, room

LOOK_SECONDS = 0.2
CHUNK_BYTES = 1 << 16
STOP_SECONDS = 1.0  # for a thread to notice that nobody waits for it any more; one that waits for a disk does not

T = TypeVar("T")
Stopped = Callable[[], bool]
Read = Callable[[int], bytes]


async def apart(work: Callable[[Stopped], T]) -> T:
    """What `work` gives or raises, on another thread: a deadline or a signal ends the wait, whatever a disk does.

    It is given what says whether nobody waits any more, which `while_wanted` heeds.
    """
    given_up = threading.Event()
    future, _ = on_thread(lambda: work(given_up.is_set))
    try:
        await asyncio.wait([future])
    except asyncio.CancelledError:
        given_up.set()
        future.add_done_callback(asyncio.Future.exception)  # asyncio logs what nobody has looked at
        await asyncio.wait([future], timeout=STOP_SECONDS)
        raise
    return future.result()


def while_wanted(read: Read, stopped: Stopped) -> Read:
    """Reads until nobody waits any more; what it raises then is seen by nobody."""

    def reading(most: int) -> bytes:
        if stopped():
            raise InterruptedError
        return read(most)

    return reading


def of_the_source(read: Read, path: Path) -> Read:
    """What cannot be read is the source, and not the repository. Raises SourceError."""

    def reading(most: int) -> bytes:
        try:
            return read(most)
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror or error}") from None

    return reading


@asynccontextmanager
async def alone_in(folder: Path, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Hold off whoever else writes versions of this model, `awnet export` too; the lock goes with the process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        told = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say(f"waiting: something else writes to {folder}")
                    told = True
                await asyncio.sleep(LOOK_SECONDS)
        yield
    finally:
        os.close(handle)


def sync(file: BinaryIO) -> None:
    """Its bytes are on the disk when this returns."""
    file.flush()
    os.fsync(file.fileno())


def copied(path: Path, target: Path, most: int, progress: Progress, stopped: Stopped) -> tuple[str, int]:
    """Copy at most `most` bytes, onto the disk; returns their hexadecimal SHA-256 and number. Raises SourceError."""
    with opened(path) as source, target.open("wb") as copy:
        total = os.fstat(source.fileno()).st_size
        if total > most:
            raise SourceError(f"{path} is {total} bytes large; at most {most} are taken")
        room(copy, total)
        read = while_wanted(of_the_source(source.read, path), stopped)
        return _poured(read, copy, most, lambda done: progress(done, total))


def opened(path: Path) -> BinaryIO:
    """A regular file of the source. Raises SourceError."""
    try:
        return open_regular(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from None


def unpacked(archive: Path, kind: str, target: Path, most: int, stopped: Stopped) -> tuple[str, int]:
    """As `copied`, of the one regular *.onnx in a tar archive. Its name is not used, and nothing else is unpacked.

    Headers are read one by one and not by `tarfile.open`, which takes extended ones of any size into memory. What
    stands before the model may be as large as that, unpacked.
    """
    if kind not in ("tar", "tar+gzip"):
        raise SourceError(f"a layer is packed as {kind}, which is not unpacked here: push it raw, or as tar")
    try:
        with (open if kind == "tar" else gzip.open)(archive, "rb") as packed, target.open("wb") as file:
            read, left = while_wanted(packed.read, stopped), most
            while any(header := _exactly(read, tarfile.BLOCKSIZE)):
                member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
                if not 0 <= member.size <= left:
                    raise SourceError(f"a file of the archive is {member.size} bytes large; at most {most} are taken")
                if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and member.name.endswith(".onnx"):
                    room(file, member.size)
                    return _poured(_limited(read, member.size), file, most, lambda _: None)
                left -= tarfile.BLOCKSIZE + member.size  # nor headers without an end, of files without a byte
                skip = _limited(read, -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
                while skip(CHUNK_BYTES):
                    pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(f"the archive of the model cannot be unpacked: {error}") from None
    raise SourceError("there is no *.onnx in the archive of the model")


def _exactly(read: Read, size: int) -> bytes:
    """So many bytes. Raises EOFError."""
    data = read(size)
    if len(data) < size:
        raise EOFError("it ends early")
    return data


def _limited(read: Read, size: int) -> Read:
    """Reads the next `size` bytes, and raises EOFError where there are less."""
    left = size

    def limited(most: int) -> bytes:
        nonlocal left
        data = _exactly(read, min(most, left))
        left -= len(data)
        return data

    return limited


def _poured(read: Read, target: BinaryIO, most: int, progress: Callable[[int], None]) -> tuple[str, int]:
    digest, done = hashlib.sha256(), 0
    while chunk := read(CHUNK_BYTES):
        done += len(chunk)
        if done > most:
            raise SourceError(f"the model is larger than the {most} bytes that are taken")
        digest.update(chunk)
        target.write(chunk)
        progress(done)
    sync(target)
    return digest.hexdigest(), done

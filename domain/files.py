"""Writing where others read: files whole or not at all, names that survive a power cut, one writer at a time.

What one package writes and another reads is a file, so they write in one way. Standard library only:
`export.triton_python` runs in the small environment of Triton itself.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold off other writers; the lock goes with the process, so a kill leaves none behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def replace(path: Path, data: bytes) -> None:
    """Write a file whole: whoever reads it sees the old one or the new one, also after a power cut."""
    partial = path.with_name(f"{path.name}.partial")
    write(partial, data)
    partial.replace(path)
    sync_folder(path.parent)


def write(path: Path, data: bytes) -> None:
    """Write a file that nobody reads yet; its bytes are on the disk when this returns, its name after `sync_folder`."""
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

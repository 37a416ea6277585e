"""Atomic writes, and file locks that end with their process."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a path to write to, which takes the place of `path` when the block ends, or is removed where it fails.

    Who reads `path`, or writes it in another process, meets the old file or a new one, never a part; so does who
    comes back after a kill or a power cut. The folder is made where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as f:
            os.fsync(f.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Before long work: OSError where `path` could not be written after it. The folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    tempfile.TemporaryFile(dir=path.parent).close()


def write_text(path: Path, text: str) -> None:
    """UTF-8."""
    with whole(path) as partial:
        partial.write_text(text, "utf-8")


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Indented, keys in their order."""
    write_text(path, json.dumps(document, indent=1) + "\n")


def save(path: Path, value: Any) -> None:
    """What `torch.load` reads again. The bytes do not depend on the name of the file. Raises OSError."""
    with whole(path) as partial:
        try:
            with partial.open("wb") as f:
                torch.save(value, f)
        except (OSError, RuntimeError) as error:  # of a full disk torch makes an error of its own
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            raise OSError(reason.errno, reason.strerror, str(path)) from error


def sha256(path: Path) -> str:
    """Of the file's bytes, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lock(path: Path) -> IO[str] | None:
    """The file at `path`, locked for this process until it is closed; None where another one holds the lock.

    The lock ends with the process, even by SIGKILL; the file stays. The folder is made where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = path.open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        return None
    return held

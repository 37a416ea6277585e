"""The images that a command line names: files, folders, patterns, ZIP archives, standard input; in a stable order."""

from __future__ import annotations

import glob
import io
import lzma
import os
import stat
import struct
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from server.core.regular_files import open_regular, read_regular

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # of what is taken out of folders and archives
STDIN = "-"
MAX_BYTES = 64 << 20  # of one image; an archive must not fill the memory
MAX_STDIN_BYTES = 1 << 30
# What `zipfile` raises of broken archives, of encrypted ones, and of those that it does not know how to read.
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)


class PathError(ValueError):
    """A path names nothing that can be read; says which."""


class Image(NamedTuple):
    """`read` gives the encoded image; it raises OSError, or ValueError where that is too large or broken."""

    name: str
    read: Callable[[], bytes]


def images(paths: Sequence[str]) -> list[Image]:
    """The images at `paths`, each once, in the order of the paths and by name within each.

    A file that is named is taken whatever it is; of folders (with those inside) and archives, what ends like an image.

    Raises:
        PathError: a path or pattern leads nowhere, or an archive cannot be read.
    """
    found: dict[str, Image] = {}
    for path in paths:
        for image in _of(path):
            found.setdefault(image.name, image)
    return list(found.values())


def _of(path: str) -> Iterator[Image]:
    if path == STDIN:
        data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
        if len(data) > MAX_STDIN_BYTES:
            raise PathError(f"standard input has more than {MAX_STDIN_BYTES >> 20} MiB: name the files")
        if zipfile.is_zipfile(io.BytesIO(data)):
            yield from _archive(STDIN, io.BytesIO(data))
        else:
            yield Image(STDIN, lambda: data)
        return
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if not glob.has_magic(path):
            raise PathError(f"{path}: no such file or folder") from None
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise PathError(f"{path} matches nothing") from None
        for match in matches:
            yield from _folder(match) if os.path.isdir(match) else _file(match)
    except (OSError, ValueError) as error:
        raise PathError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    else:
        if stat.S_ISDIR(mode):
            yield from _folder(path)
        elif stat.S_ISREG(mode):
            yield from _file(path)
        else:  # a pipe may wait for ever, and a device has no end
            raise PathError(f"{path} is neither a file nor a folder; {STDIN} reads standard input")


def _folder(path: str) -> Iterator[Image]:
    empty = True
    closed: list[OSError] = []
    for folder, folders, files in os.walk(path, onerror=closed.append):
        folders.sort()
        for name in sorted(files):
            inside = os.path.join(folder, name)
            # Nobody waits for a FIFO that lies there; a link that leads nowhere is told.
            if name.lower().endswith(SUFFIXES) and (os.path.isfile(inside) or os.path.islink(inside)):
                empty = False
                yield from _file(inside)
    for error in closed:
        if error.filename == path:
            raise PathError(f"{path}: {error.strerror}")
        empty = False
        yield Image(f"{_text(error.filename)}/", _failing(error))
    if empty:
        raise PathError(f"{path} holds no image ({', '.join(SUFFIXES)})")


def _failing(error: OSError) -> Callable[[], bytes]:
    """Raises `error`: a folder that may not be listed is one that cannot be read, and is not passed over."""

    def read() -> bytes:
        raise error

    return read


def _file(path: str) -> Iterator[Image]:
    if path.lower().endswith(".zip"):
        try:
            yield from _archive(path, open_regular(Path(path)))
        except OSError as error:
            raise PathError(f"{path}: {error.strerror}") from None
        return
    yield Image(_text(path), lambda: _bounded(read_regular(Path(path), MAX_BYTES)))


def _archive(name: str, source: BinaryIO) -> Iterator[Image]:
    try:
        archive = zipfile.ZipFile(source)
    except BROKEN:
        raise PathError(f"{name} is no ZIP archive that can be read") from None
    members = [info for info in archive.infolist() if info.filename.lower().endswith(SUFFIXES)]
    if not members:
        raise PathError(f"{name} holds no image ({', '.join(SUFFIXES)})")
    lock = threading.Lock()  # members share one file

    def reader(member: zipfile.ZipInfo) -> Callable[[], bytes]:
        def read() -> bytes:
            try:
                with lock, archive.open(member) as f:
                    return _bounded(f.read(MAX_BYTES + 1))
            except BROKEN as error:
                raise ValueError(str(error) or "broken archive") from None

        return read

    for member in sorted(members, key=lambda info: info.filename):
        yield Image(f"{_text(name)}/{member.filename}", reader(member))


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
    return data


def shown(text: str) -> str:
    """Text for a terminal: names in an archive are those of whoever made it, and may hold escape sequences."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _text(path: str) -> str:
    """A path as text that can be written; bytes that are no UTF-8 as `\\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")

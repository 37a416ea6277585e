"""What is scored on Ray: images of folders and buckets, and of columns of Parquet files, in units.

A unit says where its images lie, and is read by the process that scores them: nothing but names passes through the
driver.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem
from pyarrow.parquet import ParquetFile

from ..command.images import MAX_BYTES, SUFFIXES, Image, PathError

IMAGES = 1000  # of a unit at most: seconds of work, which is lost with a process that is killed
READ_ROWS, READ_BYTES = 64, 2 * MAX_BYTES  # of a Parquet file that are in memory at a time, by what its footer says
MOST_ROWS, ROWS_A_BYTE = 1_000_000, 8  # a file that promises more, and more for its size, was made to be too much
PARQUET = ".parquet"
_KEYS = re.compile(r"\A(?:[^/]*@|[^/:]*:(?!\d{1,5}/).*@)")  # also where a / in a secret was not written as %2F


@dataclass(frozen=True, slots=True)
class Files:
    """Files that are images.

    Attributes:
        source: names the file system, as `filesystem` takes it.
        paths: in it.
        names: of the images, in the result.
    """

    source: str
    paths: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def count(self) -> int:
        """Images."""
        return len(self.paths)

    def images(self) -> Iterator[Image]:
        """Those of the unit, not read yet."""
        system, _ = filesystem(self.source)
        for name, path in zip(self.names, self.paths, strict=True):
            yield Image(name, partial(_read, system, path))


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a Parquet file, each with one encoded image.

    Attributes:
        source, path: the file.
        name: of it, in the result.
        column: of the encoded images: binary, or a struct with a field `bytes`, as Hugging Face writes them.
        identity: column of what the images are called; None: NAME#ROW.
        groups: row groups, of which `skip` rows are left out and `count` taken.
        first: number of the first row that is taken, in the file.
    """

    source: str
    path: str
    name: str
    column: str
    identity: str | None
    groups: tuple[int, ...]
    skip: int
    count: int
    first: int

    def images(self) -> Iterator[Image]:
        """Those of the unit, a few rows read at a time. Rows that cannot be read are images that cannot be."""
        taken, why = 0, "the file ends before this row"
        try:
            for image in self._read():
                taken += 1
                yield image
        except (ArrowException, ValueError, OSError) as error:
            why = str(error)
        for number in range(self.first + taken, self.first + self.count):
            yield Image(f"{self.name}#{number}", partial(_failing, why))

    def _read(self) -> Iterator[Image]:
        system, _ = filesystem(self.source)
        columns = [self.column] if self.identity is None else [self.column, self.identity]
        at, end = -self.skip, self.count
        with system.open_input_file(self.path) as f:
            file = ParquetFile(f)
            for rows in file.iter_batches(_rows_at_a_time(file, self.groups, columns), list(self.groups), columns):
                for row in range(max(0, -at), min(rows.num_rows, end - at)):
                    number = self.first + at + row
                    called = f"{self.name}#{number}" if self.identity is None else str(rows[self.identity][row].as_py())
                    yield Image(called, partial(_encoded, rows[self.column][row].as_py()))
                at += rows.num_rows
                if at >= end:
                    return


Unit = Files | Rows


def filesystem(source: str) -> tuple[Any, str]:
    """The file system that a path or an address (s3://, gs://, hdfs://, file://) lies on, and the path there.

    Raises PathError.
    """
    if "://" not in source:
        return LocalFileSystem(), os.path.abspath(source)
    try:
        found: tuple[Any, str] = FileSystem.from_uri(source)
        return found
    except (ArrowException, ValueError, OSError) as error:
        raise PathError(f"{shown(source)}: {str(error).replace(source, shown(source))}") from None


def shown(source: str) -> str:
    """A path or an address as it may be told: without keys and parameters."""
    scheme, separator, rest = source.partition("://")
    if not separator:
        return source
    return f"{scheme}://{_KEYS.sub('', rest.partition('?')[0], 1)}"


def units(sources: Sequence[str], column: str, identity: str | None, most: int = IMAGES) -> list[Unit]:
    """The images at `sources`, in their order and by path within each.

    A folder gives what ends like an image or a Parquet file, those inside it too; a file that is named is taken
    whatever it is.

    Args:
        column, identity: see `Rows`.
        most: images of a unit.

    Raises PathError: nothing is there, or a Parquet file is broken, or has no such columns.
    """
    found = [unit for source in sources for unit in _of(source, column, identity, most)]
    if not found:
        raise PathError(f"{', '.join(map(shown, sources))}: no row, and so no image")
    return found


def _of(source: str, column: str, identity: str | None, most: int) -> Iterator[Unit]:
    system, root = filesystem(source)
    try:
        (info,) = system.get_file_info([root])
        if info.type is FileType.NotFound:
            raise PathError(f"{shown(source)}: no such file or folder")
        alone = info.type is FileType.File
        found = [info] if alone else system.get_file_info(FileSelector(root, recursive=True))
    except (ArrowException, OSError) as error:
        raise PathError(f"{shown(source)}: {error}") from None
    kept = (*SUFFIXES, PARQUET)
    files = sorted(f.path for f in found if f.type is FileType.File and (alone or f.path.lower().endswith(kept)))
    if not files:
        raise PathError(f"{shown(source)} holds no image and no Parquet file ({', '.join(kept)})")
    base = shown(source).rstrip("/")
    names = {path: base if path == root else f"{base}{path.removeprefix(root.rstrip('/'))}" for path in files}
    tables = [path for path in files if path.lower().endswith(PARQUET)]
    images = [path for path in files if not path.lower().endswith(PARQUET)]
    for at in range(0, len(images), most):
        part = tuple(images[at : at + most])
        yield Files(source, part, tuple(names[path] for path in part))
    for path in tables:
        groups = _row_groups(system, path, names[path], [column, *([] if identity is None else [identity])])
        for taken, skip, count, first in _cut(groups, most):
            yield Rows(source, path, names[path], column, identity, taken, skip, count, first)


def _rows_at_a_time(file: ParquetFile, groups: Sequence[int], columns: Sequence[str]) -> int:
    """So many that they fit into memory. Raises ValueError where no row does."""
    most = average = 0.0
    for group in map(file.metadata.row_group, groups):
        chunks = map(group.column, range(group.num_columns))
        read = [chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.partition(".")[0] in columns]
        # Values that repeat are written once, in a dictionary: each row may be as large as all that is written.
        most, average = max(most, sum(read)), max(average, sum(read) / max(1, group.num_rows))
    if average > READ_BYTES:
        raise ValueError(f"its rows have {average / (1 << 20):.0f} MiB each; images of {MAX_BYTES >> 20} are read")
    return min(READ_ROWS, max(1, int(READ_BYTES / max(1, most))))


def _row_groups(system: Any, path: str, name: str, columns: Sequence[str]) -> list[int]:
    """Rows of each group of a Parquet file. Raises PathError."""
    try:
        with system.open_input_file(path) as f:
            file = ParquetFile(f)
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            there, promised, size = file.schema_arrow.names, file.metadata.num_rows, f.size()
    except (ArrowException, OSError) as error:
        raise PathError(f"{name}: no Parquet file that can be read: {error}") from None
    if min(sizes, default=0) < 0 or sum(sizes) != promised:
        raise PathError(f"{name}: no Parquet file that can be read: its footer says {promised} rows, its groups others")
    if promised > max(MOST_ROWS, ROWS_A_BYTE * size):
        raise PathError(f"{name}: no Parquet file that can be read: {promised} rows in {size} bytes")
    for wanted in columns:
        if wanted not in there:
            raise PathError(f"{name} has no column {wanted}; it has {', '.join(there)}")
    return sizes


def _cut(sizes: Sequence[int], most: int) -> Iterator[tuple[tuple[int, ...], int, int, int]]:
    """Row groups one after the other as long as they are no more than `most` rows; a larger one is cut.

    Yields the groups, how many of their rows are skipped, how many are taken, and the number of the first of those.
    """
    first = 0
    together: list[int] = []
    for group, size in enumerate(sizes):
        rows = sum(sizes[number] for number in together)
        if together and rows + size > most:
            yield tuple(together), 0, rows, first
            first, together = first + rows, []
        if size > most:
            for skip in range(0, size, most):
                yield (group,), skip, min(most, size - skip), first + skip
            first += size
        elif size:
            together.append(group)
    if together:
        yield tuple(together), 0, sum(sizes[number] for number in together), first


def _read(system: Any, path: str) -> bytes:
    with system.open_input_stream(path) as f:
        return _bounded(f.read(MAX_BYTES + 1))


def _failing(why: str) -> bytes:
    raise ValueError(why)


def _encoded(value: Any) -> bytes:
    """Of a cell. Raises ValueError where it holds no bytes."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise ValueError("the row holds no encoded image")
    return _bounded(value)


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
    return data

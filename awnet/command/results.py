"""What `awnet predict` writes: a journal while it works, and the finished file, made of it in one step.

The journal is the file's name and `.partial`: one JSON line an image, appended when it is answered, so that whatever
ends the program, nothing that was answered is lost. The finished file has the images in the order in which they were
named, and is there whole or not at all.
"""

from __future__ import annotations

import csv
import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import orjson

JOURNAL = ".partial"
FORMATS = (".jsonl", ".csv", ".parquet")
# Of tables: column -> where it stands in a line, and its type.
COLUMNS: dict[str, tuple[tuple[str | int, ...], type]] = {
    "file": (("file",), str),
    "sha256": (("sha256",), str),
    "error": (("error", "title"), str),
    "detail": (("error", "detail"), str),
    "label": (("predictions", 0, "label"), str),
    "class_id": (("predictions", 0, "class_id"), int),
    "class_probability": (("predictions", 0, "probability"), float),
    "verdict": (("adversarial", "verdict"), str),
    "score": (("adversarial", "score"), float),
    "attack_probability": (("adversarial", "probability"), float),
    "calibrated": (("adversarial", "calibrated"), bool),
    "why": (("adversarial", "why"), str),
    "domain": (("adversarial", "domain"), str),
    "threshold_suspicious": (("adversarial", "thresholds", "suspicious"), float),
    "threshold_adversarial": (("adversarial", "thresholds", "adversarial"), float),
    "format": (("image", "format"), str),
    "width": (("image", "width"), int),
    "height": (("image", "height"), int),
    "resized": (("image", "resized"), bool),
    "model": (("model", "name"), str),
    "model_version": (("model", "version"), str),
    "model_sha256": (("model", "sha256"), str),
    "mode": (("mode",), str),
}

# What a cell begins with that spreadsheets run; some take the wide forms for the same.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")

Line = dict[str, Any]


class OutputError(ValueError):
    """The file cannot be written, or may not be; says why."""


class Results:
    """The lines of one run, kept in the journal of `out` until `finish`.

    Args:
        out: what is made at last; its suffix is the format, of `FORMATS`.
        resume: go on with the journal that an earlier run left.

    Raises:
        OutputError: no such format; the file or a journal is there already; another process writes it.
    """

    def __init__(self, out: Path, resume: bool) -> None:
        if out.suffix not in FORMATS:
            raise OutputError(f"--out {out}: the name must end in {', '.join(FORMATS)}")
        if out.suffix == ".parquet":
            _parquet()
        journal = out.with_name(out.name + JOURNAL)
        if out.exists() and not journal.exists():
            raise OutputError(f"{out} is there already: name another, or remove it")
        if journal.exists() and not resume:
            raise OutputError(f"{journal} is what a run before has left: go on with --resume, or remove it")
        try:
            self._file = journal.open("a+b")
        except OSError as error:
            raise OutputError(f"{journal}: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise OutputError(f"another process writes {journal}") from None
        self._out, self._journal = out, journal
        self._places: dict[str, int] = {}  # name -> where its last line begins
        self.answered: dict[str, str] = {}  # name -> SHA-256 of the images that need not be asked for again
        self.model: str | None = None  # SHA-256 of the model that answered them
        try:
            self._read()
        except OutputError:
            self._file.close()
            raise

    def _read(self) -> None:
        """Take in what the journal holds; a last line that was cut off is removed."""
        at = 0
        self._file.seek(0)
        for raw in self._file:
            if not raw.endswith(b"\n"):
                self._file.truncate(at)
                break
            try:
                line = orjson.loads(raw)
                self._place(line, at)
            except (ValueError, KeyError, TypeError):
                raise OutputError(f"{self._journal} is no journal of ours: byte {at}") from None
            at += len(raw)
        self._file.seek(0, os.SEEK_END)

    def _place(self, line: Line, at: int) -> None:
        name = line["file"]
        self._places[name] = at
        if "error" in line:
            self.answered.pop(name, None)
            return
        self.answered[name] = line["sha256"]
        self.model = line["model"]["sha256"]

    def add(self, line: Line) -> None:
        """Append a line; it outlives this process from here on."""
        self._place(line, self._file.tell())
        self._file.write(encoded(line))
        self._file.flush()

    def lines(self, names: Sequence[str]) -> Iterator[Line]:
        """The last line of each of `names` that has one, in this order."""
        for name in names:
            if name in self._places:
                self._file.seek(self._places[name])
                yield orjson.loads(self._file.readline())

    def finish(self, names: Sequence[str]) -> None:
        """Make the file of the lines of `names`, and remove the journal. Raises OSError."""
        write_whole(self._out, self._out.with_name(f".{self._out.name}{JOURNAL}"), self.lines(names))
        self._journal.unlink()
        self._file.close()

    def close(self) -> None:
        """Leave the journal for another run, where it holds anything."""
        if not self._file.closed and not self._places:
            self._journal.unlink(missing_ok=True)
        self._file.close()


def encoded(line: Line) -> bytes:
    """One line of JSON."""
    return orjson.dumps(line) + b"\n"


def row(line: Line) -> list[Any]:
    """A line's values for `COLUMNS`; None where it has none."""
    return [_at(line, path) for path, _ in COLUMNS.values()]


def _at(value: Any, path: Iterable[str | int]) -> Any:
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def write_whole(path: Path, partial: Path, lines: Iterable[Line]) -> None:
    """Write a file of one of FORMATS, whole or not at all, by way of `partial`. Raises OSError."""
    try:
        with partial.open("wb") as f:
            write(f, path.suffix, lines)
            f.flush()
            os.fsync(f.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write(f: IO[bytes], suffix: str, lines: Iterable[Line]) -> None:
    """The file of one of `FORMATS`."""
    if suffix == ".jsonl":
        f.writelines(encoded(line) for line in lines)
    elif suffix == ".csv":
        text = _Encoding(f)
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows([_cell(value) for value in row(line)] for line in lines)
    else:
        _write_parquet(f, lines)


def _cell(value: Any) -> Any:
    """As it stands in a CSV file. A text that a spreadsheet would run as a formula gets an apostrophe in front."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}" if isinstance(value, str) and value[:1] in FORMULA else value


class _Encoding:
    """Text to a file of bytes, for `csv`, without closing it."""

    def __init__(self, f: IO[bytes]) -> None:
        self._f = f

    def write(self, text: str) -> int:
        return self._f.write(text.encode())


def _parquet() -> Any:
    try:
        import pyarrow  # extra `parquet`
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise OutputError("a .parquet file needs pyarrow, the extra `parquet`; .jsonl and .csv need nothing") from None
    return pyarrow


def _write_parquet(f: IO[bytes], lines: Iterable[Line]) -> None:
    arrow = _parquet()
    types = {str: arrow.string(), int: arrow.int64(), float: arrow.float64(), bool: arrow.bool_()}
    schema = arrow.schema([(name, types[kind]) for name, (_, kind) in COLUMNS.items()])
    with arrow.parquet.ParquetWriter(f, schema) as writer:
        rows: list[list[Any]] = []
        for line in lines:
            rows.append(row(line))
            if len(rows) == 10_000:
                writer.write_table(_table(arrow, schema, rows))
                rows.clear()
        if rows:
            writer.write_table(_table(arrow, schema, rows))


def _table(arrow: Any, schema: Any, rows: list[list[Any]]) -> Any:
    columns = zip(*rows, strict=True)
    return arrow.table([arrow.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)], schema)

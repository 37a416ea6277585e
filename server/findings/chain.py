"""Lines that hold together: each has its own hash and that of the line before it.

A line is a JSON object whose last member is `unmapped`, and of that `chain`, whose last member is `hash`: SHA-256 of
the line's bytes before `,"hash"`. So whoever changes, removes, inserts or moves a line without making all later ones
anew is found out. Nobody holds a key: whoever may write the files can make the whole rest anew. That, and a cut end,
is seen only by someone who has kept a later head (the number and hash of a line), such as a receiver of the events.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

FIRST = "0" * 64  # hash of what is before the first line
SUFFIX = ".jsonl"
_SEGMENT = re.compile(r"[0-9]{1,18}")
_LINK = re.compile(r"([0-9a-f]{32}):([0-9]{1,18}):([0-9a-f]{64})")
_SEALED = re.compile(rb'(.*),"hash":"([0-9a-f]{64})"\}\}\}', re.DOTALL)


class Link(NamedTuple):
    """A line's place.

    Attributes:
        chain: id of the chain.
        sequence: its number, from 1 on.
        hash: its own.
    """

    chain: str
    sequence: int
    hash: str

    def __str__(self) -> str:
        return f"{self.chain}:{self.sequence}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Link:
        """What `str` made. Raises ValueError."""
        found = _LINK.fullmatch(text)
        if found is None:
            raise ValueError(f"{text[:120]!r} is no head: CHAIN:NUMBER:HASH, as verify-log prints it")
        return cls(found[1], int(found[2]), found[3])


class Line(NamedTuple):
    """A line that was read; `intact`: its hash is that of its bytes."""

    link: Link
    previous: str
    kept_from: int
    torn: str | None
    intact: bool
    document: dict[str, Any]


def sealed(document: dict[str, Any], after: Link, more: Mapping[str, Any]) -> tuple[bytes, Link]:
    """The line for `document`, with its end, and its place behind `after`; `more` goes into the chain as well."""
    sequence = after.sequence + 1
    document["metadata"]["sequence"] = sequence
    unmapped = document.pop("unmapped")
    unmapped.pop("chain", None)  # of the event that this one was made of
    place = {"id": after.chain, "sequence": sequence, "previous": after.hash, **more}
    document["unmapped"] = {**unmapped, "chain": place}  # the last member, whatever came before
    body = orjson.dumps(document)[:-3]
    own = hashlib.sha256(body).hexdigest()
    return b'%s,"hash":"%s"}}}\n' % (body, own.encode()), Link(after.chain, sequence, own)


def read_line(line: bytes) -> Line | None:
    """A line without its end; None where it is no sealed line, changed or not."""
    found = _SEALED.fullmatch(line)
    if found is None:
        return None
    body, own = found[1], found[2].decode()
    try:
        document = orjson.loads(line)
        chain = document["unmapped"]["chain"]
        link = Link(str(chain["id"]), int(chain["sequence"]), own)
        previous, kept_from, torn = str(chain["previous"]), int(chain.get("kept_from", 1)), chain.get("torn")
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
    if _LINK.fullmatch(str(link)) is None:  # it is printed
        return None
    return Line(link, previous, kept_from, torn, hashlib.sha256(body).hexdigest() == own, document)


def hold(folder: Path) -> int | None:
    """Take a chain until the descriptor returned is closed; None where another process has it. Raises OSError."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except BaseException:
        os.close(lock)
        raise
    return lock


def segments(folder: Path) -> list[Path]:
    """The files of a chain, oldest first; each is named by the number of its first line."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if _SEGMENT.fullmatch(path.stem) and path.is_file())


def chains(folder: Path) -> list[Path]:
    """The chains in a journal's folder."""
    return sorted(path for path in folder.glob("chain-*") if path.is_dir())


@dataclass
class Report:
    """What the check of one chain says.

    Attributes:
        problems: lines that were changed, removed, inserted or moved, each as a sentence.
        notes: what is as it may be: torn lines, and segments that are no longer kept.
        head: of its last line; None where there is none.
    """

    folder: Path
    lines: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    head: Link | None = None


class _Read(NamedTuple):
    where: str
    line: Line


def verify(folder: Path, heads: Iterable[Link] = ()) -> Report:
    """Check one chain. Raises OSError.

    Args:
        heads: that were kept elsewhere, of any chains; the lines of this chain's must still be in it. One that is no
            longer kept is a problem, too: whoever can make a chain anew can say in it what is kept.
    """
    report = Report(folder)
    found = list(_lines(folder, report))
    report.lines = len(found)
    if not found:
        return report
    true = _in_order(found, report)
    first = true[0].line
    kept_from = max(read.line.kept_from for read in found)
    if first.link.sequence > kept_from:
        report.problems.append(f"{true[0].where}: {_range(kept_from, first.link.sequence - 1)} before it removed")
    elif first.link.sequence > 1:
        report.notes.append(f"begins at line {first.link.sequence}: older ones are no longer kept")
    if first.link.sequence == 1 and first.previous != FIRST:
        report.problems.append(f"{true[0].where}: changed: it is the first line and follows another")
    before = first.link
    for where, line in true[1:]:
        missing = line.link.sequence - before.sequence - 1
        if missing:
            removed = _range(before.sequence + 1, line.link.sequence - 1)
            report.problems.append(f"{where}: {removed} before it removed")
        elif line.previous != before.hash:
            report.problems.append(f"{where}: it does not follow line {before.sequence}: one of the two was replaced")
        before = line.link
    report.head = before
    hashes = {read.line.link.sequence: read.line.link.hash for read in true}
    for kept in heads:
        if kept.chain != before.chain:
            continue
        same = hashes.get(kept.sequence)
        if same is None:
            why = "no longer kept: nothing says whether it was removed" if kept.sequence < kept_from else "not there"
            end = ": the end was removed" if kept.sequence > before.sequence else ""
            report.problems.append(f"line {kept.sequence}, whose hash was kept, is {why}{end}")
        elif same != kept.hash:
            report.problems.append(f"line {kept.sequence} has another hash than was kept: the chain was made anew")
    return report


def _lines(folder: Path, report: Report) -> Iterator[_Read]:
    """Every sealed line; tells of those that were changed, and of what is no line."""
    loose, loose_at = b"", ""  # what is no line, until the next one says whether it was torn
    chain = None
    for path in segments(folder):
        for number, raw in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            where = f"{path.name}:{number}"
            line = read_line(raw[:-1]) if raw.endswith(b"\n") else None
            if line is None:
                loose, loose_at = loose + raw, loose_at or where
                continue
            if loose:
                torn = line.torn is not None and hashlib.sha256(loose).hexdigest() == line.torn
                if torn:
                    report.notes.append(f"{loose_at}: torn when its process was ended; the next line says so")
                else:
                    report.problems.append(f"{loose_at}: changed or inserted: it is no line of this chain")
                loose, loose_at = b"", ""
            chain = chain or line.link.chain
            if line.link.chain != chain:
                report.problems.append(f"{where}: inserted: it is of another chain")
                continue
            if not line.intact:
                report.problems.append(f"{where}: line {line.link.sequence} changed: its hash is another")
            yield _Read(where, line)
    if loose.endswith(b"\n"):
        report.problems.append(f"{loose_at}: changed or inserted: it is no line of this chain")
    elif loose:
        report.notes.append(f"{loose_at}: not finished: it is being written, or its process was ended")


def _in_order(found: list[_Read], report: Report) -> list[_Read]:
    """The lines that the chain is made of, by number; tells of the others.

    Of several lines with one number, the one that another line follows is the true one.
    """
    followed = {read.line.previous for read in found}
    true: dict[int, _Read] = {}
    for read in found:
        sequence = read.line.link.sequence
        other = true.get(sequence)
        if other is None:
            true[sequence] = read
            continue
        better = read.line.link.hash in followed and other.line.link.hash not in followed
        if better:
            true[sequence] = read
        inserted = other if better else read
        report.problems.append(f"{inserted.where}: inserted: line {sequence} is there twice")
    order = [read for read in found if true[read.line.link.sequence] is read]
    highest = 0
    for read in order:
        if read.line.link.sequence < highest:
            report.problems.append(f"{read.where}: moved: line {read.line.link.sequence} stands behind line {highest}")
        highest = max(highest, read.line.link.sequence)
    return [true[sequence] for sequence in sorted(true)]


def _range(first: int, last: int) -> str:
    return f"line {first}" if first == last else f"lines {first} to {last}"

"""Changes the file of keys: one table more, less or anew, and every other line as it was."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple

from ..errors import StartupError
from .caller import Scope
from .keys import NAME, Entry, Keys, new_key, read_file

_TABLE = re.compile(r"^[ \t]*\[", re.MULTILINE)
HEADER = """# API keys of this server (AWNET_API_KEYS), as hashes; see docs/security.md. Made by: python -m server.keys
# Who has no key may ask nothing but liveness, readiness and the page's own files, unless [anonymous] says so:
# [anonymous]
# scopes = ["predict"]
"""


class Listed(NamedTuple):
    """One name of the file; `hashes` are the first digits of those of its keys."""

    name: str
    scopes: tuple[Scope, ...]
    hashes: list[str]
    expires: datetime | date | None
    expired: bool


def add(path: Path, name: str, scopes: tuple[Scope, ...], expires: date | None = None) -> str:
    """Make a key and write its hash into the file, which is made where there is none.

    Returns:
        The key, which is kept nowhere.

    Raises:
        StartupError: the name is there already or is none, or as `Keys.parse` and `read_file`.
    """
    if not re.fullmatch(NAME, name):
        raise StartupError("a name has 1 to 64 letters, digits, '-' and '_'")
    key, digest = new_key()
    day = "" if expires is None else f"expires = {expires.isoformat()}\n"
    listed = ", ".join(f'"{scope}"' for scope in scopes)
    table = f'\n[keys.{name}]\nsha256 = "{digest}"\nscopes = [{listed}]\n{day}'

    def change(text: str, keys: Keys) -> str:
        if name in keys.entries:
            raise StartupError(
                f"there is a key {name!r} already: 'replace' gives it another one, 'revoke' takes it away"
            )
        return (text or HEADER).rstrip("\n") + "\n" + table

    _change(path, change)
    return key


def replace(path: Path, name: str) -> str:
    """Make another key for a name; the newest of its keys stays valid beside it, older ones are refused.

    Returns:
        The key. Raises StartupError.
    """
    key, digest = new_key()

    def change(text: str, keys: Keys) -> str:
        entry = _entry(keys, name)
        begin, end = _table(text, name)
        values = f'["{entry.sha256[-1].lower()}", "{digest}"]'
        table, found = re.subn(
            r"^([ \t]*sha256[ \t]*=[ \t]*)(\[[^\]]*\]|\"[^\"\n]*\"|'[^'\n]*')",
            lambda match: match[1] + values,
            text[begin:end],
            count=1,
            flags=re.MULTILINE,
        )
        if not found:
            raise StartupError(_by_hand(path))
        return text[:begin] + table + text[end:]

    _change(path, change)
    return key


def revoke(path: Path, name: str) -> None:
    """Take a name out of the file, with all its keys. Raises StartupError."""

    def change(text: str, keys: Keys) -> str:
        _entry(keys, name)
        begin, end = _table(text, name)
        return f"{text[:begin].rstrip()}\n{text[end:]}"

    _change(path, change)


def listed(path: Path) -> list[Listed]:
    """Every name of the file. Raises StartupError."""
    now = datetime.now(UTC).timestamp()
    return [
        Listed(
            name,
            entry.scopes,
            [digest[:8].lower() for digest in entry.sha256],
            entry.expires,
            entry.expires_at <= now,
        )
        for name, entry in Keys.parse(read_file(path)[0]).entries.items()
    ]


def _entry(keys: Keys, name: str) -> Entry:
    if name not in keys.entries:
        raise StartupError(f"there is no key {name!r}")
    return keys.entries[name]


def _table(text: str, name: str) -> tuple[int, int]:
    """Where the table of a name begins and ends, comments behind it aside; (0, 0) where it is not to be found."""
    begin = re.search(rf"^[ \t]*\[[ \t]*keys[ \t]*\.[ \t]*{re.escape(name)}[ \t]*\]", text, re.MULTILINE)
    if begin is None:
        return 0, 0
    following = _TABLE.search(text, begin.end())
    lines = text[begin.start() : len(text) if following is None else following.start()].splitlines(keepends=True)
    while lines and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        lines.pop()
    return begin.start(), begin.start() + sum(map(len, lines))


def _by_hand(path: Path) -> str:
    return f"{path} is not laid out as this command writes it: change it by hand"


def _change(path: Path, change: Callable[[str, Keys], str]) -> None:
    """Replace the file by `change` of it, as a whole or not at all; of two who do so, one waits."""
    path = Path(os.path.realpath(path))  # a link stays one
    with _alone(path.parent):
        text, mode = read_file(path) if path.exists() else ("", 0o600)
        before = Keys.parse(text)
        changed = change(text, before)
        _check(path, before, Keys.parse(changed))
        _write(path, changed, mode & ~0o007)


def _check(path: Path, before: Keys, after: Keys) -> None:
    """Every name but one says what it said, which holds whatever else the file was laid out like."""
    names = before.entries.keys() | after.entries.keys()
    different = {name for name in names if before.entries.get(name) != after.entries.get(name)}
    if len(different) != 1 or before.anonymous != after.anonymous:
        raise StartupError(_by_hand(path))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StartupError(f"the folder {folder} cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, text: str, mode: int) -> None:
    """Write beside the file and rename; owner and group stay those of the file, as far as that is allowed."""
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, stat.S_IMODE(mode))
            if path.exists():
                owner = path.stat()
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise StartupError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)

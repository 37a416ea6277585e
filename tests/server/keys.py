"""Keys for tests: known ones, and files that hold their hashes."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from server.access.caller import SCOPES


def key(name: str) -> str:
    """A key of the right form, the same each time."""
    return f"awnet_{(name + '-' * 43)[:43]}"


def hashed(name: str) -> str:
    """What a file holds of it."""
    return sha256(key(name).encode()).hexdigest()


def table(name: str, scopes: Sequence[str] = SCOPES, **fields: object) -> str:
    """The table of one key."""
    listed = ", ".join(f'"{scope}"' for scope in scopes)
    others = "".join(f"{field} = {value}\n" for field, value in fields.items())
    return f'[keys.{name}]\nsha256 = "{hashed(name)}"\nscopes = [{listed}]\n{others}'


def write(path: Path, *tables: str) -> Path:
    """A file of keys that nobody else may read."""
    path.write_text("\n".join(tables), "utf-8")
    path.chmod(0o600)
    return path

"""`python -m server.keys`: makes, lists, replaces and revokes API keys in the file that `AWNET_API_KEYS` names.

A key is printed once, on standard output, and is kept nowhere: the file has its hash. A running server takes the
changed file within a second.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import cast

from .access import key_file
from .access.caller import SCOPES, Scope
from .errors import StartupError
from .settings.options import SettingsError, settings_of

CALLED = "python -m server.keys"
EXAMPLES = """examples:
  python -m server.keys new shop --scopes predict             a key that may ask for predictions
  python -m server.keys new ops --scopes predict,signals,metrics,admin --expires 2027-01-01
  python -m server.keys list
  python -m server.keys replace shop                          another key, valid beside the last one
  python -m server.keys revoke shop

a server that asks for them: --api-keys keys.toml
"""
DEFAULT = Path("keys.toml")


def main(arguments: Sequence[str] | None = None, called: str = CALLED) -> int:
    """Returns the exit status: 0, or 2 where nothing was changed.

    Args:
        called: how whoever asks calls this program.
    """
    given = _parser(called).parse_args(arguments)
    try:
        path = given.file or settings_of({}).api_keys or DEFAULT
        if given.command == "list":
            for line in _lines(key_file.listed(path)):
                print(line)
            return 0
        if given.command == "revoke":
            key_file.revoke(path, given.name)
            print(f"revoked in {path}: a running server refuses it within a second", file=sys.stderr)
            return 0
        if given.command == "new":
            key = key_file.add(path, given.name, given.scopes, given.expires)
        else:
            key = key_file.replace(path, given.name)
    except (StartupError, SettingsError) as error:
        print(error, file=sys.stderr)
        return 2
    print(key)
    print(f"its hash is in {path}, which --api-keys takes; the key itself is shown this once", file=sys.stderr)
    return 0


def _parser(called: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called,
        description="API keys: make, list, replace and revoke them in the file that AWNET_API_KEYS names.",
        epilog=EXAMPLES.replace(CALLED, called),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    new = commands.add_parser("new", help="make a key and print it")
    new.add_argument("name", help="of its holder; stands in the request log")
    new.add_argument(
        "--scopes",
        type=_scopes,
        default=("predict",),
        metavar="SCOPES",
        help=f"what it may ask, separated by commas: {', '.join(SCOPES)} (default: predict)",
    )
    new.add_argument(
        "--expires", type=date.fromisoformat, metavar="DATE", help="refused from the beginning of this day on, UTC"
    )
    replaced = commands.add_parser("replace", help="make another key for a name; the last one stays valid beside it")
    revoked = commands.add_parser("revoke", help="take a name with all its keys out of the file")
    for command in (replaced, revoked):
        command.add_argument("name", help="of its holder")
    listing = commands.add_parser("list", help="names, scopes and the beginnings of the hashes")
    for command in (new, replaced, revoked, listing):
        command.add_argument(
            "--file", type=Path, metavar="FILE", help=f"of the keys (default: AWNET_API_KEYS, else {DEFAULT})"
        )
    return parser


def _scopes(text: str) -> tuple[Scope, ...]:
    scopes = tuple(dict.fromkeys(filter(None, (part.strip() for part in text.split(",")))))
    wrong = [scope for scope in scopes if scope not in SCOPES]
    if wrong:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(SCOPES)}")
    return cast(tuple[Scope, ...], scopes)


def _lines(entries: Sequence[key_file.Listed]) -> list[str]:
    width = max((len(entry.name) for entry in entries), default=0)
    lines = []
    for entry in entries:
        until = "" if entry.expires is None else f"  {'expired' if entry.expired else 'until'} {entry.expires}"
        scopes = ",".join(entry.scopes) or "(no scope)"
        lines.append(f"{entry.name:<{width}}  {scopes}  sha256 {' '.join(entry.hashes)}{until}")
    return lines


if __name__ == "__main__":
    sys.exit(main())

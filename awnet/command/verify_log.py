"""`awnet verify-log DIR`: is the journal of findings as it was written?

Each line has its own hash and that of the line before it, so a line that was changed, removed, inserted or moved is
named, with its file and number. Nobody holds a key: whoever may write the files can make all hashes anew, from any line
on, or cut the end off. That is found by comparing with a head that was kept elsewhere: this prints the head of each
chain, and `--head` compares with one. Each event that a receiver was sent is such a head, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """examples:
  awnet verify-log /var/lib/awnet/findings
  awnet verify-log /var/lib/awnet/findings --head 7c...e1:4812:9f...0b   (as an earlier run printed it)

exit status: 0 as it was written, 1 something was changed, 2 it cannot be read
"""


def parser() -> argparse.ArgumentParser:
    """The options of `awnet verify-log`."""
    made = argparse.ArgumentParser(
        "awnet verify-log", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("folder", type=Path, metavar="DIR", help="AWNET_FINDINGS_DIR of the server, which may be running")
    made.add_argument(
        "--head", action="append", default=[], metavar="CHAIN:NUMBER:HASH", help="a head that was kept; repeatable"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = parser().parse_args(arguments)
    from server.findings.chain import Link, chains, verify

    try:
        heads = [Link.parse(head) for head in given.head]
        folders = chains(given.folder)
        if not folders:
            raise ValueError(f"there is no journal in {given.folder}")
        known: set[str] = set()
        problems = 0
        for folder in folders:
            report = verify(folder, heads)
            if report.head is not None:
                known.add(report.head.chain)
            for problem in report.problems:
                print(f"{folder.name}/{problem}")
            for note in report.notes:
                print(f"{folder.name}/{note}", file=sys.stderr)
            problems += len(report.problems)
            verdict = "as it was written" if not report.problems else f"CHANGED, {len(report.problems)} problems"
            print(f"{folder.name}: {report.lines} lines, {verdict}" + (f"; head {report.head}" if report.head else ""))
        for chain in {head.chain for head in heads} - known:
            print(f"no chain {chain}, of which a head was kept, is there: it was removed")
            problems += 1
    except (OSError, ValueError) as error:
        print(f"not verified: {error}", file=sys.stderr)
        return 2
    return 1 if problems else 0

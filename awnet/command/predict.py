"""`awnet predict PATH...`: scores images, in this process or by a running server, one result for each.

Paths are images, folders, patterns, ZIP archives, or - for standard input. Without --url the model is opened in this
process and answers as `awnet serve` would. Results are JSON lines on standard output, or the file of --out, in the
order of the paths. An image that cannot be answered has a line that says why, and stops none of the others. A run that
was interrupted goes on with --resume: what was answered is not asked for again.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from server.settings.options import SettingsError, add_settings

from .engines import check_engine
from .options import add_server

EXAMPLES = """examples:
  awnet predict photo.jpg
  awnet predict photos scans.zip 'more/**/*.png' --out results.csv
  awnet predict photos --out results.jsonl --resume            go on after an interruption
  awnet predict photos --url http://127.0.0.1:8000 --key @key.txt
  cat photo.jpg | awnet predict -
  awnet predict photos --model awnet --mode auto --threads 2   any option of `awnet serve`

  awnet predict --engine ray --help                            folders, Parquet and buckets by many processes

exit status: 0 all images were answered, 1 some were not, 2 nothing was begun, 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """The options of `awnet predict`."""
    made = argparse.ArgumentParser(
        "awnet predict",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("paths", nargs="+", metavar="PATH", help="image, folder, pattern, ZIP archive, or - for standard input")
    add_server(made)
    add("--out", type=Path, metavar="FILE", help="FILE.jsonl, FILE.csv or FILE.parquet (default: JSON lines, printed)")
    add("--resume", action="store_true", help="go on with the run to --out that was interrupted, or begin it")
    add("--top-k", type=int, default=1, metavar="N", help="classes told of each image, most likely first (default: 1)")
    add("--concurrency", type=int, default=8, metavar="N", help="images asked for at a time (default: 8)")
    add("--quiet", action="store_true", help="say nothing on standard error but what fails")
    add_settings(made, hidden=True)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = parser().parse_args(arguments)
    try:
        return _predict(given)
    except ValueError as error:  # PathError, OutputError, AddressError, SettingsError
        print(error, file=sys.stderr)
        return 2


def _predict(given: argparse.Namespace) -> int:
    """Raises ValueError where nothing can be begun."""
    if given.concurrency < 1 or given.top_k < 1:
        raise SettingsError("--concurrency and --top-k must be at least 1")
    if given.resume and given.out is None:
        raise SettingsError("--resume needs the --out of the run that it goes on with")
    check_engine(getattr(given, "engine", None))
    from .images import images

    found = images(given.paths)  # before the runtime is imported: what is misspelt is told at once
    from .answerers import answerer
    from .results import Results
    from .scoring import Scoring

    opened = answerer(given, top_k=given.top_k)
    results = Results(given.out, given.resume) if given.out is not None else None
    scoring = Scoring(found, results, given.concurrency, quiet=given.quiet)
    try:
        return asyncio.run(scoring.run(opened))
    except KeyboardInterrupt:
        print("interrupted" + ("; --resume goes on here" if results else ""), file=sys.stderr)
        return 130
    finally:
        if results is not None:
            results.close()

"""`awnet bench`: how fast answers come under load, and what the detector makes of natural and of adversarial images.

The images are asked about again and again for --seconds, --concurrency of them at a time. Latency is from the request
to its answer, as the caller sees it. Rates are over the images, each counted once: TPR is the share of --adversarial
that is flagged, FPR that of --clean, at both operating points, with 95 % intervals (Wilson). Without --clean and
--adversarial the images are the bundled examples, eleven pairs: they say that things work, and little about rates.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from server.options import SettingsError, add_settings

from .server_options import add_server

EXAMPLES = """examples:
  awnet bench                                                   the bundled examples, in this process
  awnet bench --url http://127.0.0.1:8000 --concurrency 32
  awnet bench --clean photos --adversarial twins --out bench.json

exit status: 0 measured, 1 some requests had no answer, 2 nothing was measured, 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """The options of `awnet bench`."""
    made = argparse.ArgumentParser(
        "awnet bench",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add_server(made)
    add("--clean", nargs="+", default=[], metavar="PATH", help="natural images; as in awnet predict")
    add("--adversarial", nargs="+", default=[], metavar="PATH", help="adversarial images")
    add("--seconds", type=float, default=10.0, help="how long to ask (default: 10); every image is asked about once")
    add("--concurrency", type=int, default=8, metavar="N", help="requests under way at a time (default: 8)")
    add("--out", type=Path, metavar="FILE", help="the report as JSON (default: only printed)")
    add_settings(made, hidden=True)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = parser().parse_args(arguments)
    try:
        return _bench(given)
    except ValueError as error:  # of options, paths and addresses
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130


def _bench(given: argparse.Namespace) -> int:
    """Raises ValueError where nothing can be begun."""
    if given.concurrency < 1 or not 0 < given.seconds <= 86_400:
        raise SettingsError("--concurrency must be at least 1, --seconds above 0 and at most a day")
    import orjson

    from ..client.errors import Error
    from ..client.retries import Retries
    from ..local import StartError
    from .answerers import answerer
    from .load import Load, examples, read, report, told

    opened = answerer(given, Retries(attempts=1))  # a refusal is a result here
    named = given.clean or given.adversarial
    labelled = read(given.clean, given.adversarial) if named else examples()
    load = Load(labelled, given.seconds, given.concurrency)
    try:
        asyncio.run(load.run(opened))
    except (Error, StartError) as error:
        print(error, file=sys.stderr)
        return 2
    document = report(load, given.url)
    print(told(document))
    if given.out is not None:
        try:
            given.out.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
        except OSError as error:
            raise SettingsError(f"--out {given.out}: {error.strerror}") from None
    return 1 if document["failed"] else 0

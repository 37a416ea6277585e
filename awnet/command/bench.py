"""`awnet bench`: how fast answers come under load, and what the detector makes of natural and of adversarial images.

The images are asked about again and again for --seconds, --concurrency of them at a time. Latency is from the request
to its answer, as the caller sees it. With --rate they come so many a second, answered or not, as clients do that know
nothing of each other: latency is then from the moment at which a request was due. Rates are over the images, each
counted once: TPR is the share of --adversarial that is flagged, FPR that of --clean, at both operating points, with
95 % intervals (Wilson). Without --clean and --adversarial the images are the bundled examples, eleven pairs: they say
that things work, and little about rates.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from server.settings.options import SettingsError, add_settings

from .arrivals import KINDS
from .options import add_server

CLOSED, OPEN = 8, 32  # requests under way at a time
MAX_RATE = 100_000

EXAMPLES = """examples:
  awnet bench                                                   the bundled examples, in this process
  awnet bench --url http://127.0.0.1:8000 --concurrency 32
  awnet bench --url http://127.0.0.1:8000 --rate 200            does it keep up with 200 a second, and at what p99?
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
    add(
        "--concurrency",
        type=int,
        metavar="N",
        help=f"most requests under way at a time (default: {CLOSED}; with --rate: {OPEN})",
    )
    add("--rate", type=float, metavar="R", help="an open loop: R requests a second on average")
    add("--arrivals", choices=KINDS, help="with --rate: how they come (default: poisson)")
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
    if given.concurrency is None:
        given.concurrency = CLOSED if given.rate is None else OPEN
    if given.rate is not None and not 0 < given.rate <= MAX_RATE:
        raise SettingsError(f"--rate must be above 0 and at most {MAX_RATE:,}")
    if given.rate is None and given.arrivals is not None:
        raise SettingsError(
            "--arrivals needs --rate: without one, each request is sent when one before it was answered"
        )
    if given.concurrency < 1 or not 0 < given.seconds <= 86_400:
        raise SettingsError("--concurrency must be at least 1, --seconds above 0 and at most a day")
    import orjson

    from ..client.errors import Error
    from ..client.retries import Retries
    from ..local import StartError
    from .answerers import answerer
    from .load import Load, Pace, examples, read, report, summary

    opened = answerer(given, Retries(attempts=1))  # a refusal is a result here
    named = given.clean or given.adversarial
    labelled = read(given.clean, given.adversarial) if named else examples()
    pace = None if given.rate is None else Pace(given.rate, given.arrivals or "poisson")
    load = Load(labelled, given.seconds, given.concurrency, pace)
    try:
        asyncio.run(load.run(opened))
    except (Error, StartError) as error:
        print(error, file=sys.stderr)
        return 2
    document = report(load, given.url)
    print(summary(document))
    if given.out is not None:
        try:
            given.out.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
        except OSError as error:
            raise SettingsError(f"--out {given.out}: {error.strerror}") from None
    return 1 if document["failed"] else 0

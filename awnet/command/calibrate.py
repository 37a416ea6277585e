"""`awnet calibrate [MODEL.onnx] IMAGES...`: thresholds for natural images of your own, as a new version of the model.

The images must be ones that nobody attacked, such as those that the server is to judge, 250 or more. Half of them set
a domain, "site", which goes before the model's own: its ranges say which images it speaks for, its thresholds flag as
many natural ones as the model promises (5 % and 1 %), also as JPEG and at half their size. The other half says what is
flagged, before and after, with 95 % intervals. Weights, other domains and everything else stay as they are. Whoever can
slip adversarial images among the images raises the thresholds, so look at where they come from.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from .options import add_repository

EXAMPLES = """examples:
  awnet calibrate photos                                    # of the model that `awnet serve` would serve here
  awnet calibrate model.onnx photos --adversarial twins
  awnet calibrate photos --model models/awnet/1/model.onnx --out models --report site.json

exit status: 0 published, 1 some images could not be read, and the others were taken, 2 nothing was published
"""


def parser() -> argparse.ArgumentParser:
    """The options of `awnet calibrate`."""
    made = argparse.ArgumentParser(
        "awnet calibrate", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("images", nargs="+", metavar="IMAGES", help="folders, files, patterns, ZIP archives of natural images")
    add(
        "--model",
        type=Path,
        metavar="FILE",
        help="a model file with a contract, as `awnet export` writes it; a first path that ends with .onnx is one, too "
        "(default: the latest version of --name that `awnet serve` finds here)",
    )
    add("--adversarial", nargs="+", default=[], metavar="PATH", help="adversarial images: how many are flagged then")
    add_repository(made)
    add(
        "--report",
        type=Path,
        metavar="FILE.json",
        help="what was measured as JSON, and beside it as FILE.svg scores and thresholds before and after "
        "(default: only printed)",
    )
    add("--concurrency", type=int, default=8, metavar="N", help="images under way at a time (default: 8)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = parser().parse_args(arguments)
    from server.errors import AWNetError

    from ..local import StartError
    from .calibration import Task, calibrate, summary, which_model

    if given.concurrency < 1:
        print("--concurrency must be at least 1", file=sys.stderr)
        return 2
    if given.report is not None and given.report.suffix != ".json":
        print(f"--report {given.report} is no .json file", file=sys.stderr)
        return 2
    if given.model is None and len(given.images) > 1 and given.images[0].lower().endswith(".onnx"):
        given.model = Path(given.images.pop(0))
    try:
        given.model = given.model or which_model(given.name)
        document = asyncio.run(calibrate(Task(**vars(given))))
    except (ValueError, AWNetError, StartError, OSError) as error:
        print(f"not calibrated: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was published", file=sys.stderr)
        return 130
    print(summary(document))
    return 1 if document["unread"] else 0

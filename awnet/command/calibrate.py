"""`awnet calibrate MODEL.onnx IMAGES...`: thresholds for natural images of your own, as a new version of the model.

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

EXAMPLES = """examples:
  awnet calibrate model_repository/awnet/4/model.onnx photos
  awnet calibrate model.onnx photos --adversarial twins
  awnet calibrate model.onnx photos --repository /srv/models --name awnet --report site.json

exit status: 0 published, 1 some images could not be read, and the others were taken, 2 nothing was published
"""


def parser() -> argparse.ArgumentParser:
    """The options of `awnet calibrate`."""
    made = argparse.ArgumentParser(
        "awnet calibrate", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("model", type=Path, metavar="MODEL.onnx", help="a model file with a contract, as `awnet export` writes it")
    add("images", nargs="+", metavar="IMAGES", help="folders, files, patterns, ZIP archives of natural images")
    add("--adversarial", nargs="+", default=[], metavar="PATH", help="adversarial images: how many are flagged then")
    add(
        "--repository",
        type=Path,
        default=Path("model_repository"),
        metavar="DIR",
        help="where the next version is written, made where it is missing (default: %(default)s)",
    )
    add("--name", default="awnet", help="name of the model there (default: %(default)s)")
    add("--report", type=Path, metavar="FILE", help="what was measured as JSON (default: only printed)")
    add("--concurrency", type=int, default=8, metavar="N", help="images under way at a time (default: 8)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = parser().parse_args(arguments)
    from server.errors import AWNetError

    from ..local import StartError
    from .calibration import Task, calibrate, told

    if given.concurrency < 1:
        print("--concurrency must be at least 1", file=sys.stderr)
        return 2
    try:
        document = asyncio.run(calibrate(Task(**vars(given))))
    except (ValueError, AWNetError, StartError, OSError) as error:
        print(f"not calibrated: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was published", file=sys.stderr)
        return 130
    print(told(document))
    return 1 if document["unread"] else 0

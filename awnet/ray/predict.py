"""`awnet predict --engine ray SOURCE... --out FOLDER`: scores what is too much for one process, on Ray Data.

Sources are folders of images, image files, Parquet files with a column of encoded images, and folders and files in a
bucket (s3://, gs://). FOLDER gets Parquet files with one row for each image, in the order of the sources, and is there
once all of them are. An image that cannot be answered has a row that says why. A process that dies is replaced, and
what it had begun is scored again; a run that was interrupted goes on with --resume.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.settings.options import SettingsError, add_settings, settings_of
from server.settings.settings import Settings

from ..client.local import opened
from ..client.predictor import Options
from ..command.results import OutputError
from ..local import StartError
from . import INSTALL
from .local import prepare
from .settings import scorer_settings

NEEDED = ("ray", "pyarrow")
EXAMPLES = """examples:
  awnet predict --engine ray photos --out results
  awnet predict --engine ray photos.parquet --column image --id-column key --out results
  awnet predict --engine ray 's3://bucket/photos?region=eu-central-1' --out results --scorers 16
  awnet predict --engine ray photos --out results --resume     go on after an interruption
  awnet predict --engine ray photos --out results --model awnet --mode auto

exit status: 0 all images were answered, 1 some were not, 2 nothing was begun, 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """The options of `awnet predict --engine ray`."""
    made = argparse.ArgumentParser(
        "awnet predict --engine ray",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="folder, image, Parquet file, or one of these in a bucket")
    add("--out", type=Path, required=True, metavar="FOLDER", help="that is made, on storage that all nodes have")
    add("--resume", action="store_true", help="go on with the run to --out that was interrupted, or begin it")
    add("--column", default="image", metavar="NAME", help="of the encoded images in Parquet files (default: image)")
    add("--id-column", metavar="NAME", help="of what images are called in the result (default: FILE#ROW)")
    add("--part", type=int, default=1000, metavar="N", help="images of a part of the result, at most (default: 1000)")
    add("--top-k", type=int, default=1, metavar="N", help="classes asked for of each image (default: 1)")
    add("--address", default=os.environ.get("RAY_ADDRESS"), help="of a Ray cluster (default: a Ray of this machine)")
    add("--scorers", type=int, metavar="N", help="processes that score, each on one core (default: all cores)")
    add("--quiet", action="store_true", help="say nothing on standard error but what fails")
    add_settings(made, hidden=True)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = parser().parse_args(arguments)
    try:
        return _predict(given)
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        print(f"awnet predict --engine ray needs {error.name}: {INSTALL}", file=sys.stderr)
        return 2
    except (ValueError, StartError) as error:  # PathError, OutputError, SettingsError
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; --resume goes on here", file=sys.stderr)
        return 130


def _predict(given: argparse.Namespace) -> int:
    """Raises ValueError, StartError or ModuleNotFoundError where nothing can be begun."""
    prepare()
    import ray  # noqa: F401 # whether it is there

    from .parts import Parts
    from .scoring import ScoringError
    from .sources import units

    if min(given.top_k, given.part, given.scorers or 1) < 1 or given.scorers == 0:
        raise SettingsError("--part, --scorers and --top-k must be at least 1")
    named = {name: value for name, value in vars(given).items() if name in Settings.model_fields and name != "engine"}
    settings = settings_of(named)
    found = units(given.sources, given.column, given.id_column, given.part)
    model = asyncio.run(_model(settings))
    parts = Parts(given.out, found, {"model": model, "mode": settings.mode, "top_k": given.top_k}, given.resume)
    try:
        return _score(given, settings, model, parts, found)
    except (OutputError, ScoringError) as error:
        print(f"{error}; --resume goes on here", file=sys.stderr)
        return 1
    finally:
        parts.close()


async def _model(settings: Settings) -> str:
    """SHA-256 of the model that will answer, which is proven here before any process is started. Raises StartError."""
    async with await opened(settings, Options()) as predictor:
        return str((await predictor.model())["sha256"])


def _score(given: argparse.Namespace, settings: Settings, model: str, parts: Any, units: Sequence[Any]) -> int:
    from ..command.progress import Progress
    from .scoring import on_ray

    left = {number: units[number] for number in parts.left()}
    progress = Progress(parts.images, given.quiet)
    if before := parts.images - sum(unit.count for unit in left.values()):
        progress.add({"before": before})
    options = {
        "top_k": given.top_k,
        "folder": parts.folder,
        "address": given.address,
        "scorers": given.scorers,
        "model": model,
    }
    for done in on_ray(left, scorer_settings(settings), **options) if left else ():
        progress.add(done.counts, done.failed)
    failed = parts.publish()
    progress.end()
    return 1 if failed else 0

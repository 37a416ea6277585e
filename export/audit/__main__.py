"""`python -m export.audit --model model.onnx`: what a model file is worth, judged by the file alone.

Whoever receives a model has a file, and neither torch nor a checkpoint. This reads the file with onnxruntime and judges
what clients are told (`model_file.Served`): golden values, natural images, the images that an attack on other networks
made (T0), benign corruptions, and two attackers who see answers only (`black_box`). The room imports neither torch nor
onnx, neither training nor the server.

The report is rewritten after every finished part; started again with the same set-up, the program goes on there.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from domain.corruptions import CORRUPTIONS

from . import parts
from .black_box import AIMS
from .image_sets import ImageSet, ImageSetError, folder_of_images, t0_files
from .model_file import ModelFile, ModelFileError
from .parts import RADII, Part
from .report import Report, ReportError

PARTS = ("golden", "natural", "t0", "corruptions", "square", "boundary")

PROG = "python -m export.audit"

EXAMPLES = """examples:
  {prog} --model model_repository/awnet/3/model.onnx --out audit.json       # golden values only
  {prog} --model model.onnx --t0 runs/audit/t0 --out audit.json             # by training's audit
  {prog} --model model.onnx --images photos --eps 2 4 8 16 --out audit.json # PNG files, photos/<label>/
  {prog} --model model.onnx --t0 runs/audit/t0 --parts square --queries 5000 --out square.json

exit status: 0 finished, 1 the golden values do not hold, 2 something cannot be audited
"""


def audit(options: argparse.Namespace, command: str) -> Part:
    """Every part that the options ask for and the report does not hold yet; returns the report's document.

    Raises:
        ModelFileError, ImageSetError, ReportError: each says in one line what is wrong; nothing is written then.
    """
    model = ModelFile(options.model, threads=options.threads, batch_size=options.batch_size)
    images = Images.read(options, model)
    setup = {
        "model": options.model.name,
        "sha256": model.sha256,
        "images": images.sha256,
        "limit": options.limit,
        "queries": options.queries,
        "seed": options.seed,
    }
    thresholds = {one.name: {"suspicious": one.suspicious, "adversarial": one.adversarial} for one in model.domains}
    skipped = {kind: why for kind in options.parts if (why := images.lacking(kind))}
    heading = {"command": command, "thresholds": thresholds, "skipped": skipped}
    report = Report(options.out, setup, heading, fresh=options.fresh)
    for kind, why in skipped.items():
        tqdm.write(f"{kind}: left out: {why}")
    for name, make in planned(model, images, options):
        if name in report.parts:
            continue
        began = time.perf_counter()
        part = make()
        report.put(name, part | {"seconds": round(time.perf_counter() - began, 1)})
        tqdm.write(f"{name}: done in {report.parts[name]['seconds']:.1f} s")
    return report.write()


@dataclass(frozen=True)
class Images:
    """The sets that the options name: `natural` is judged and corrupted, `labelled` attacked, `t0` judged beside its
    natural images. The first T0 file's natural images stand in where no folder is given, or one without classes."""

    natural: ImageSet | None
    labelled: ImageSet | None
    t0: Sequence[ImageSet]

    @classmethod
    def read(cls, options: argparse.Namespace, model: ModelFile) -> Images:
        """Raises ImageSetError."""
        t0 = t0_files(options.t0, model.size, len(model.labels), options.limit) if options.t0 else []
        natural = t0[:1]
        if options.images:
            natural.insert(0, folder_of_images(options.images, model.size, model.labels, options.limit))
        labelled = [images for images in natural if images.labels is not None]
        return cls(next(iter(natural), None), next(iter(labelled), None), t0)

    @property
    def sha256(self) -> dict[str, str]:
        """Of each set, by its name."""
        return {images.name: images.sha256 for images in (self.natural, *self.t0) if images is not None}

    def lacking(self, kind: str) -> str | None:
        """What a kind of part would need and is not there."""
        if kind == "t0" and not self.t0:
            return "there is no --t0"
        if kind in ("natural", "corruptions") and self.natural is None:
            return "there is neither --images nor --t0"
        if kind in ("square", "boundary") and self.labelled is None:
            return "no image's class is known: give --t0, or --images with a folder for each class"
        return None


def planned(model: ModelFile, images: Images, options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Part]]]:
    """(name, function that makes the part) of every part that is asked for and has its images."""
    if "golden" in options.parts:
        yield "golden", partial(parts.golden, model)
    if "natural" in options.parts and images.natural:
        yield "natural", partial(parts.natural, model, images.natural)
    if "t0" in options.parts:
        for one in images.t0:
            yield f"t0/{one.name}", partial(parts.transferred, model, one)
    if "corruptions" in options.parts and images.natural:
        for name in CORRUPTIONS:
            yield f"corruptions/{name}", partial(parts.corrupted, model, images.natural, name, options.seed)
    attacks = [("square", eps) for eps in options.eps] + [("boundary", None)]
    for (attack, eps), aim in product(attacks, AIMS):
        if attack in options.parts and images.labelled:
            name = f"{attack}/{aim}" if eps is None else f"{attack}/{aim}/{eps}"
            rng = np.random.default_rng([options.seed, zlib.crc32(name.encode())])  # the same in whatever order
            yield name, partial(parts.attacked, model, images.labelled, name, aim, eps, options.queries, rng)


def arguments(prog: str = PROG) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Audit a model file alone: golden values, T0 files, corruptions, black-box attacks.",
        epilog=EXAMPLES.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="FILE", help="model.onnx with its contract inside")
    add("--t0", type=Path, metavar="DIR", help="T0 files (*.npz) that the audit of a checkpoint wrote")
    add("--images", type=Path, metavar="DIR", help="natural images: DIR/*.png, or DIR/<label>/*.png")
    add("--out", type=Path, required=True, metavar="FILE", help="report (.json); tables are written beside it (.md)")
    add("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to audit (default: everything)")
    add("--limit", type=_count, default=100, metavar="N", help="images of each set (default: %(default)s)")
    add("--queries", type=_count, default=1000, metavar="N", help="queries for each image (default: %(default)s)")
    add("--eps", type=_count, nargs="+", default=[8], choices=RADII, help="radii of Square in levels (default: 8)")
    add("--seed", type=_whole, default=0, help="of corruptions and attacks (default: %(default)s)")
    add("--threads", type=_whole, default=0, metavar="N", help="of onnxruntime (default: as many as there are cores)")
    add("--batch-size", type=_count, default=256, metavar="N", help="images run at once (default: %(default)s)")
    add("--fresh", action="store_true", help="replace a report instead of going on with it")
    return parser


def _count(text: str) -> int:
    return _whole(text, least=1)


def _whole(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
    return int(text)


def main(arguments_given: Sequence[str] | None = None, prog: str = PROG) -> int:
    """The command line, as `prog`; 0 finished, 1 the golden values do not hold, 2 refused, 130 interrupted."""
    given = sys.argv[1:] if arguments_given is None else list(arguments_given)
    options = arguments(prog).parse_args(given)
    try:
        document = audit(options, f"{PROG} {shlex.join(given)}")
    except (ModelFileError, ImageSetError, ReportError, OSError) as error:
        print(f"not audited: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on after the last finished part", file=sys.stderr)
        return 130
    print(f"{options.out} and {options.out.with_suffix('.md')}")
    if document["parts"].get("golden", {"holds": True})["holds"]:
        return 0
    print("the golden values do not hold: this engine, or this file, does not answer as it should", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

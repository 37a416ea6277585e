"""What it costs per image to know which domain it lies in: decoding with and without measuring, and the judgement.

In one thread, without a server. Both sides of a pair follow each other, in turns first; times are CPU seconds of the
thread, so that whatever else runs on the machine hardly counts. The domains are as costly as they can be: the image
passes every range of the first but the last one, and every range of the second.
"""

from __future__ import annotations

import io
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from domain.statistics import STATISTICS, measure
from server.core import images
from server.core.domains import Domain, Histogram, ScoreMap, Threshold, Thresholds
from server.core.images import Limits, Traits, decode
from server.core.verdict import judge, judge_image

from ..harness.report import ROOT, add_out, conclude, loaded_machine, parser

EXAMPLES = (
    "example:\n  python -m benchmarks.speed.domain_check            a minute; writes benchmarks/results/domain_check.md"
)
SIZE = 32
LIMITS = Limits()
# Name -> (side of the image, format, options of the encoder).
PAYLOADS: dict[str, tuple[int, str, dict[str, int]]] = {
    "PNG, 32 pixels": (32, "PNG", {}),
    "JPEG, 32 pixels": (32, "JPEG", {"quality": 90}),
    "JPEG, 224 pixels": (224, "JPEG", {"quality": 90}),
    "JPEG, 1024 pixels": (1024, "JPEG", {"quality": 90}),
    "PNG, 1024 pixels": (1024, "PNG", {}),
}
THRESHOLDS = Thresholds(Threshold(0.4, 0.05), Threshold(0.8, 0.01))


def payload(side: int, kind: str, options: Mapping[str, int]) -> bytes:
    """An example of the repository, scaled, with the grain of a photograph."""
    scaled = Image.open(ROOT / "examples/ship.png").convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(0).normal(0, 3, (side, side, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(scaled) + grain, 0, 255).astype(np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


def costly_domains(traits: Traits) -> tuple[Domain, Domain]:
    """The last range of the first domain leaves this image out; the second holds it."""
    everything = dict.fromkeys(STATISTICS, (0.0, math.inf))
    last = STATISTICS[-1]
    missed = everything | {last: (traits.statistics[last] + 1, math.inf)}
    line = tuple(n / 99 for n in range(100))
    rest = (THRESHOLDS, 1, ("pristine",), Histogram((0, 1), (1,)), ScoreMap(line, line, 0.5))
    return Domain("pristine", "-", missed, *rest), Domain("pool", "-", everything, *rest)


def paired(before: Callable[[], object], after: Callable[[], object], pairs: int) -> dict[str, Any]:
    """Medians in microseconds, and the median of the differences with its 95 % interval (by ranks)."""
    took: tuple[list[float], list[float]] = ([], [])
    for n in range(pairs + 5):
        for side in (0, 1) if n % 2 else (1, 0):
            started = time.thread_time_ns()
            (before, after)[side]()
            took[side].append((time.thread_time_ns() - started) / 1000)
    first, second = (values[5:] for values in took)  # the first ones fill caches
    differences = sorted(b - a for a, b in zip(first, second, strict=True))
    half = round(0.98 * math.sqrt(pairs))  # 1.96 standard deviations of a binomial count at one half
    middle = pairs // 2
    return {
        "before_us": statistics.median(first),
        "after_us": statistics.median(second),
        "more_us": statistics.median(differences),
        "more_low_us": differences[max(0, middle - half)],
        "more_high_us": differences[min(pairs - 1, middle + half)],
        "pairs": pairs,
    }


def without_check(data: bytes) -> object:
    with patch.object(images, "measure", lambda pixels: {}):
        return decode(data, SIZE, LIMITS)


def with_check(data: bytes) -> object:
    # The same detour, so that its cost is on both sides.
    with patch.object(images, "measure", measure):
        return decode(data, SIZE, LIMITS)


def text(report: Mapping[str, Any]) -> str:
    """The report for people."""
    rows = "\n".join(
        f"| {name} | {row['before_us']:.1f} | {row['after_us']:.1f} | {row['more_us']:.1f} "
        f"({row['more_low_us']:.1f} to {row['more_high_us']:.1f}) | {row['pairs']} |"
        for name, row in report["rows"].items()
    )
    machine = report["machine"]
    return f"""# What the check of an image's domain costs

`python -m benchmarks.speed.domain_check`, on {machine["cores"]} cores ({machine["cpu"]}, Python {machine["python"]}).
CPU time of one thread, microseconds an image, medians of pairs; the difference is the median of the pairs' differences
with its 95 % interval.

| | without | with | more | pairs |
|---|---|---|---|---|
{rows}

*Decoding* is a file to the pixels that the model sees, {SIZE} x {SIZE}. The check measures them, whatever the file;
after a large one it costs more, because the caches of the processor hold other things. *Judgement* is a score to its
verdict: by one pair of thresholds, and by the domain that holds the image, with P(attacked).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    command_line = parser("speed.domain_check", __doc__, EXAMPLES)
    command_line.add_argument("--pairs", type=int, default=2000, help="of the smallest payload; larger ones have fewer")
    add_out(command_line, "domain_check")
    options = command_line.parse_args(arguments)
    report: dict[str, Any] = {"machine": loaded_machine(), "rows": {}}
    for name, (side, kind, encoder) in PAYLOADS.items():
        data = payload(side, kind, encoder)
        pairs = max(20, options.pairs * 32 // side)
        report["rows"][f"decoding, {name}"] = paired(
            lambda d=data: without_check(d), lambda d=data: with_check(d), pairs
        )
    traits = decode(payload(*PAYLOADS["PNG, 32 pixels"]), SIZE, LIMITS).traits
    domains = costly_domains(traits)
    report["rows"]["judgement"] = paired(
        lambda: judge(0.3, THRESHOLDS), lambda: judge_image(0.3, traits, domains, 0.01), options.pairs
    )
    conclude(options.out, report, text(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())

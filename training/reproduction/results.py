"""What `sweep` has finished, as figures with intervals: mean over seeds, or one seed and its test images."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from ..evaluation.report import w_robust
from ..renames import rename_parts
from . import sweep

KINDS = ("natural", "adversarial", "w_robust")


@dataclass(frozen=True)
class Interval:
    """A figure in per cent with its 95 % interval, and how many seeds stand behind it."""

    value: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class FinishedRun:
    """A finished network: its report's parts and what it took."""

    title: str
    parts: dict[str, Any]
    made: dict[str, Any]

    def accuracy(self, level: str, attack: str) -> float | None:
        """Adversarial accuracy in per cent; T0 is the mean over the surrogates of the report."""
        found = [
            part["accuracy"]
            for name, part in self.parts.items()
            if name.startswith(f"{level}/") and is_of(name, attack)
        ]
        return 100 * statistics.fmean(found) if found else None

    @property
    def seed(self) -> int:
        """0 for the run without a suffix."""
        found = re.search(r"\.s(\d+)$", self.title)
        return int(found[1]) if found else 0

    @property
    def clean(self) -> float:
        return 100 * float(self.parts["clean"]["accuracy"])

    @property
    def images(self) -> int:
        return int(self.parts["clean"]["images"])

    def figures(self, level: str, attack: str) -> dict[str, float] | None:
        """natural, adversarial and W-Robust accuracy (Eq. 25), in per cent."""
        adversarial = self.accuracy(level, attack)
        if adversarial is None:
            return None
        return dict(zip(KINDS, (self.clean, adversarial, w_robust(self.clean, adversarial)), strict=True))

    def detection(self, level: str, attack: str, figure: str) -> float | None:
        """`auroc`, or `sr_at` and `tpr` at the 5 % threshold, of a level's first part with this attack."""
        for name, part in self.parts.items():
            if name.startswith(f"{level}/") and is_of(name, attack) and figure in part:
                value = part[figure]
                return float(value["0.05"] if isinstance(value, dict) else value)
        return None


def is_of(name: str, attack: str) -> bool:
    """Whether a part of a report, T2/cw_inf or T0/surrogate/cw_inf, is of this attack."""
    return name.rpartition("/")[2] == attack


Figure = Callable[[FinishedRun], float | None]


@dataclass(frozen=True)
class Results:
    """Every network that is trained and judged, by <set>/<name>."""

    scale: str
    about: str
    runs: Mapping[str, FinishedRun]

    @classmethod
    def read(cls, spec: sweep.Specification, folder: Path) -> Results:
        """Every finished and judged network of the specification.

        Raises:
            FileNotFoundError: no such folder, or nothing in it is finished: tables of it would say `not tried` alone.
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"--runs {folder}: no such folder; python -m training.reproduction.sweep makes it")
        runs = {}
        for net in spec.networks:
            if net.judged and sweep.done(net, folder):
                home = folder / net.title
                parts = rename_parts(json.loads((home / "report.json").read_text())["parts"])
                runs[net.title] = FinishedRun(net.title, parts, json.loads((home / "done.json").read_text()))
        if not runs:
            raise FileNotFoundError(f"--runs {folder}: no network of the specification is trained and judged there")
        return cls(spec.scale, " ".join(spec.about.split()), runs)

    def seeds(self, title: str) -> list[FinishedRun]:
        """The runs of one network, seed by seed."""
        return [run for name, run in self.runs.items() if name == title or name.startswith(f"{title}.s")]

    def interval(self, title: str, figure: Figure) -> Interval | None:
        """Mean over seeds with Student's interval; with one seed the interval of the test images."""
        found = [(run, value) for run in self.seeds(title) if (value := figure(run)) is not None]
        if not found:
            return None
        values = [value for _, value in found]
        half = student(values) if len(values) > 1 else binomial(values[0], found[0][0].images)
        mean = statistics.fmean(values)
        return Interval(mean, max(0.0, mean - half), min(100.0, mean + half), len(values))

    def difference(self, left: tuple[str, Figure], right: tuple[str, Figure]) -> Interval | None:
        """left - right, in points: paired over the seeds that both have; of one seed the interval of the test images,
        taken as independent (they are the same images, so it is too wide rather than too narrow)."""
        a = {run.seed: (run, value) for run in self.seeds(left[0]) if (value := left[1](run)) is not None}
        b = {run.seed: (run, value) for run in self.seeds(right[0]) if (value := right[1](run)) is not None}
        shared = sorted(a.keys() & b.keys())
        if not shared:
            return None
        gaps = [a[k][1] - b[k][1] for k in shared]
        if len(gaps) > 1:
            half = student(gaps)
        else:
            half = math.hypot(*(binomial(side[shared[0]][1], side[shared[0]][0].images) for side in (a, b)))
        mean = statistics.fmean(gaps)
        return Interval(mean, mean - half, mean + half, len(gaps))


def student(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of two values at least, by Student's t with n - 1 degrees of freedom."""
    n = len(values)
    return float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / math.sqrt(n)


def binomial(percent: float, images: int) -> float:
    """Half of the 95 % interval of a share, in per cent: normal approximation, half an image away from 0 and 100."""
    p = min(max(percent / 100, 0.5 / images), 1 - 0.5 / images)
    return 100 * 1.96 * math.sqrt(p * (1 - p) / images)

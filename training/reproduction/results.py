"""What `sweep` has finished, as figures with intervals: mean over seeds, or one seed and its test images.

Two judges stand behind the figures: the attacks that the paper names, which return their last iterate
(`Results.runs`), and attacks at full strength, of which only some networks have reports (`Results.strong`).
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from ..evaluation.report import from_hex, w_robust
from ..renames import rename_parts
from . import sweep
from .sweep import is_of

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
    """A finished network: its report's parts and what it took.

    Attributes:
        document: the whole report, as it is kept: with `made` (done.json), `strong` (attack -> report), and `again`,
            the same of a later training by the same recipe and seed.
    """

    title: str
    parts: dict[str, Any]
    made: dict[str, Any]
    document: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, title: str, document: dict[str, Any]) -> FinishedRun:
        return cls(title, rename_parts(document["parts"]), document["made"], document)

    @property
    def again(self) -> FinishedRun | None:
        """The network trained again: that of the report is not kept, and training does not repeat bit for bit."""
        found = self.document.get("again")
        return None if found is None else FinishedRun.read(self.title, found)

    def under(self, attack: str) -> FinishedRun | None:
        """This network, trained again if need be, as its report of an attack at full strength has it."""
        for document in (self.document.get("again", {}), self.document):
            if found := document.get("strong", {}).get(attack):
                return FinishedRun(self.title, found["parts"], document["made"])
        return None

    def accuracy(self, level: str, attack: str) -> float | None:
        """Adversarial accuracy in per cent; T0 is the mean over the surrogates of the report, the worst case is of no
        level."""
        found = [
            part["accuracy"]
            for name, part in self.parts.items()
            if name == attack or (name.startswith(f"{level}/") and is_of(name, attack))
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


Figure = Callable[[FinishedRun], float | None]


@dataclass(frozen=True)
class Measure:
    """A figure under an attack at a level: one of KINDS, or `gap`, by how much FGSM leaves a higher accuracy."""

    level: str
    attack: str
    kind: str

    def __call__(self, run: FinishedRun) -> float | None:
        if self.kind != "gap":
            return (run.figures(self.level, self.attack) or {}).get(self.kind)
        one, many = run.accuracy(self.level, "fgsm"), run.accuracy(self.level, self.attack)
        return None if one is None or many is None else one - many

    def by_image(self, run: FinishedRun) -> Tensor | None:
        """The figure of each image, [n] in per cent; None where the report does not keep which images are right."""
        names = {"natural": ["clean"], "adversarial": [self.attack], "w_robust": ["clean", self.attack]}.get(
            self.kind, []
        )
        bits = [run.parts.get(name, {}).get("correct_bits") for name in names]
        if not bits or None in bits:
            return None
        return 100 * torch.stack([from_hex(one, run.images) for one in bits]).double().mean(0)  # Eq. 25: the mean


@dataclass(frozen=True)
class Results:
    """Every network that is trained and judged, by <set>/<name>.

    Attributes:
        strong: the networks that the specification wants judged at full strength, whether they are or not.
    """

    scale: str
    about: str
    runs: Mapping[str, FinishedRun]
    strong: frozenset[str] = frozenset()

    @classmethod
    def read(cls, spec: sweep.Specification, folder: Path | None, kept: Path) -> Results:
        """Every network of the specification that is finished in `folder`, or whose report is among the `kept` ones.

        Weights are not kept for ever, reports are: a network that was finished somewhere else counts by its report, and
        one that was trained again stands beside it (`merged`). Without a folder the kept ones are all there is.

        Raises:
            FileNotFoundError: no such folder, or nothing in it is finished: a mistyped one changes no table.
        """
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"--runs {folder}: no such folder; python -m training.reproduction.sweep makes it")
        judged = [net for net in spec.networks if net.judged]
        if folder is not None and not any(sweep.done(net, folder) for net in judged):
            raise FileNotFoundError(f"--runs {folder}: no network of the specification is trained and judged there")
        runs = {}
        for net in judged:
            document, file = None, kept / f"{net.title}.json"
            if file.is_file():
                document = json.loads(file.read_text())
                if not sweep.made_by(net, document["made"]):
                    raise sweep.SpecificationError(f"{file} was made by another recipe: move it away")
            if folder is not None and sweep.done(net, folder):
                home = folder / net.title
                new = json.loads((home / "report.json").read_text())
                new["made"] = json.loads((home / "done.json").read_text())
                if strong := sweep.strong_reports(net, folder):
                    new["strong"] = strong
                document = merged(document, new)
            if document is not None:
                runs[net.title] = FinishedRun.read(net.title, document)
        if not runs:
            raise FileNotFoundError(f"{kept}: no report of a network of the specification is kept there")
        wanted = frozenset(net.title for net in spec.networks if net.strong)
        return cls(spec.scale, " ".join(spec.about.split()), runs, wanted)

    def under(self, attack: str) -> Results:
        """The networks as an attack at full strength judged them; those that have such a report alone."""
        found = {title: under for title, run in self.runs.items() if (under := run.under(attack))}
        return Results(self.scale, self.about, found)

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

    def difference(self, left: tuple[str, Measure], right: tuple[str, Measure]) -> Interval | None:
        """left - right, in points: paired over the seeds that both have; of one seed the interval of the test images.

        That is paired image by image where the reports say which are right; elsewhere both sides are taken as
        independent, which makes it too wide rather than too narrow, since they are the same images.
        """
        a = {run.seed: (run, value) for run in self.seeds(left[0]) if (value := left[1](run)) is not None}
        b = {run.seed: (run, value) for run in self.seeds(right[0]) if (value := right[1](run)) is not None}
        shared = sorted(a.keys() & b.keys())
        if not shared:
            return None
        gaps = [a[k][1] - b[k][1] for k in shared]
        if len(gaps) > 1:
            half = student(gaps)
        else:
            one, other = a[shared[0]], b[shared[0]]
            images = left[1].by_image(one[0]), right[1].by_image(other[0])
            if images[0] is not None and images[1] is not None and len(images[0]) == len(images[1]):
                half = 1.96 * float((images[0] - images[1]).std()) / math.sqrt(len(images[0]))
            else:
                half = math.hypot(*(binomial(value, run.images) for run, value in (one, other)))
        mean = statistics.fmean(gaps)
        return Interval(mean, mean - half, mean + half, len(gaps))


def merged(kept: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """A kept report and a new one of the same recipe and seed: one where they are of the same weights, else the kept
    one with the new one as `again`, so that what was published stays."""
    if kept is None or kept["setup"]["sha256"] == new["setup"]["sha256"]:
        return {**(kept or {}), **new}
    again = kept.get("again")
    if again is not None and again["setup"]["sha256"] == new["setup"]["sha256"]:
        new = {**again, **new}
    return {**kept, "again": new}


def student(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of two values at least, by Student's t with n - 1 degrees of freedom."""
    n = len(values)
    return float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / math.sqrt(n)


def binomial(percent: float, images: int) -> float:
    """Half of the 95 % interval of a share, in per cent: normal approximation, half an image away from 0 and 100."""
    p = min(max(percent / 100, 0.5 / images), 1 - 0.5 / images)
    return 100 * 1.96 * math.sqrt(p * (1 - p) / images)

"""How each part of an audit is made: adversarial or natural images, and what a network answers to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attacks.ascent import Budget
from ..attacks.catalogue import ATTACKS
from ..attacks.copies import attackers_copy
from ..attacks.evasion import EVASIONS, evasions_of
from ..attacks.rejection import STATIC_EVASIONS
from ..attacks.search import Detecting, best_case
from ..attacks.shapes import SHAPES, shaped
from ..attacks.worst_case import WORST_CASE_BUDGET, Member, broken_first_by, members_of, worst_case
from ..evaluation.attackers import Surrogate
from ..evaluation.pictures import PICTURES, changed
from ..evaluation.probability import brier, expected_calibration_error
from ..evaluation.report import from_hex, to_hex
from ..networks.network import must_detect
from . import measures
from .agreement import agreement
from .subject import Made, Make, Speed, Subject, finite_differences

EPS = 8.0  # the radius that everything is quoted at, in units of 1/255
TRANSFER = "pgd_sat"


@dataclass(frozen=True)
class Audit:
    """What the parts share.

    Attributes:
        subject: the network that is audited; controls: those beside it.
        surrogates: the networks of a T0 attacker, each with its speed.
        folder: receives the adversarial images; about: what they depend on beside their own
            name and number, all networks included.
        data_dir: where natural images of other sets are.
        onnx: the exported file of the network, where there is one to compare with.
    """

    subject: Subject
    controls: list[Subject]
    surrogates: list[tuple[Surrogate, Speed]]
    folder: Path
    about: str
    data_dir: Path
    onnx: Path | None = None

    def file(self, part: str) -> Path:
        """Where the adversarial images of a part are kept: those of surrogates in `t0/`, the rest in `adversarial/`."""
        folder, name = ("t0", part.removeprefix("T0/")) if part.startswith("T0/") else ("adversarial", part)
        return self.folder / folder / (name.translate(str.maketrans("/:@", "---")) + ".npz")

    def made(self, subject: Subject, what: str, limit: int, make: Make) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Subject.made`; the file is named after the part."""
        part = subject.part(what)
        return subject.made(self.file(part), f"{part}, {limit} images, {self.about}", limit, make, part)

    def clean(self, subject: Subject, limit: int) -> dict[str, Any]:
        """Accuracy and false-positive rates, the scores' histogram and risk-coverage curve."""
        out, answers = subject.run.clean(), subject.run.judge.clean
        out["correct_bits"] = to_hex(answers.correct)
        if answers.scores is not None:
            out["flagged_bits"] = to_hex(answers.scores > subject.threshold)
            out["histogram"] = measures.histogram(answers.scores)
            out["risk_coverage"] = measures.risk_coverage(answers.correct, answers.scores)
            out |= subject.served(subject.run.split.images, answers)
        return out

    def worst_case(self, subject: Subject, eps: float, limit: int, level: str | None = None) -> dict[str, Any]:
        """`attacks.worst_case`, of all its members or of those that differentiate as an attacker of `level` does."""
        attacked = subject.classifier or subject
        members: Sequence[Member] = members_of(attacked.run.net)
        if level is not None:
            members = [m for m in members if m.copy == level]
        budget = replace(WORST_CASE_BUDGET, eps=eps / 255)

        def make(x: Tensor, y: Tensor) -> Made:
            found = worst_case(attacked.run.net, x, y, budget, members)
            return found.nearest, found.by

        name = f"{level}/worst_case" if level else "worst_case"
        images, extra = self.made(attacked, f"{name}@{eps:g}", limit, make)
        return subject.figures(images) | {"broken_first_by": broken_first_by(extra["extra0"], members)}

    def evasion(self, subject: Subject, eps: float, limit: int) -> dict[str, Any]:
        """T3: every strategy in turn on the images that still resist; who succeeded first is counted.

        A network with a detector of its own meets each of `evasions_of` once, the strongest first; where there is no
        branch to force, what is left of them gets as many tries together.
        """
        target, threshold = subject.target, subject.threshold
        assert target is not None
        forced = isinstance(target, Detecting)
        strategies = evasions_of(target.net) if isinstance(target, Detecting) else STATIC_EVASIONS
        order = sorted(strategies, key=lambda name: name != "two_gradients")
        tries = 1 if forced else math.ceil(len(EVASIONS) / len(STATIC_EVASIONS))

        def make(x: Tensor, y: Tensor) -> Made:
            best, by = best_case(target, x, y, eps / 255, [strategies[name] for name in order], threshold, tries)
            return best.x_adv, by

        images, extra = self.made(subject, f"T3@{eps:g}", limit, make)
        by = extra["extra0"].tolist()
        counts = {"none": by.count(-1)} | {name: by.count(i) for i, name in enumerate(order)}
        out = subject.figures(images) | {"broken_first_by": counts}
        clean = subject.run.judge.clean
        assert clean.scores is not None
        evaded = from_hex(out["evaded_bits"], len(images))
        flagged = clean.scores[: len(images)] > threshold
        out["implied_accuracy"] = measures.implied_accuracy(clean.correct[: len(images)], flagged, evaded)
        return out

    def shape(self, subject: Subject, name: str, limit: int) -> dict[str, Any]:
        """One of `SHAPES`, with the gradient of the whole network and, where there is one, of its natural branch."""
        copies = [
            attackers_copy(subject.run.net, level) for level in (("nat", "T2") if subject.run.detects else ("T2",))
        ]

        def make(x: Tensor, y: Tensor) -> Made:
            best = shaped(copies[0], x, y, SHAPES[name])
            for copy in copies[1:]:
                shaped(copy, x, y, SHAPES[name], best=best)
            return (best.x_adv,)

        images, _ = self.made(subject, name, limit, make)
        return subject.figures(images)

    def transfer(self, subject: Subject, surrogate: Surrogate, eps: float, limit: int) -> dict[str, Any]:
        """T0: the surrogate's adversarial images do not depend on who is judged, and are made once."""
        model, own = attackers_copy(surrogate.network, "T2"), ATTACKS[TRANSFER][1]
        budget = Budget(eps / 255, own.step * min(1.0, eps / EPS), own.steps)

        def make(x: Tensor, y: Tensor) -> Made:
            return (ATTACKS[TRANSFER][0](model, x, y, budget),)

        images, _ = self.made(self.subject, f"T0/{surrogate.name}/{TRANSFER}@{eps:g}", limit, make)
        return subject.figures(images) | {"surrogate_sha256": surrogate.sha256}

    def named(self, subject: Subject, level: str, attack: str, eps: float, limit: int) -> dict[str, Any]:
        """One attack of `ATTACKS` at T1 or T2."""
        model, (run, own) = attackers_copy(subject.run.net, level), ATTACKS[attack]
        budget = Budget(eps / 255, own.step, own.steps, own.restarts)

        def make(x: Tensor, y: Tensor) -> Made:
            return (run(model, x, y, budget),)

        name = "black_box" if attack == "square" else level
        images, _ = self.made(subject, f"{name}/{attack}@{eps:g}", limit, make)
        return subject.figures(images)

    def steps(self, steps: int, eps: float, limit: int) -> dict[str, Any]:
        """The same attack with another number of steps."""
        model, run = attackers_copy(self.subject.run.net, "T2"), ATTACKS["pgd_restarts"][0]

        def make(x: Tensor, y: Tensor) -> Made:
            return (run(model, x, y, Budget(eps / 255, 2 / 255, steps)),)

        images, _ = self.made(self.subject, f"steps/{steps}@{eps:g}", limit, make)
        return self.subject.figures(images)

    def differences(self, limit: int) -> dict[str, Any]:
        x, y = next(self.subject.run.batches(self.subject.run.split.head(min(limit, 16))))
        return finite_differences(self.subject.run.net, x, y)

    def corruption(self, name: str, strength: int, limit: int) -> dict[str, Any]:
        """Natural images, changed; the random numbers are those of seed 0."""
        return self.subject.natural(changed(self.subject.run.split.images[:limit], name, strength))

    def pictures(self, name: str, limit: int) -> dict[str, Any]:
        """Natural images of other sets, whose class is not judged; `missing` where the set is not in `data_dir`."""
        size = self.subject.run.split.images.shape[-1]
        try:
            images = PICTURES[name][1](self.data_dir, limit, size)
        except FileNotFoundError:
            return {"missing": True}
        out = self.subject.natural(images)
        return {k: v for k, v in out.items() if k not in ("accuracy", "served_sr")}

    def agreement(self, made: Sequence[str], limit: int) -> dict[str, Any]:
        """The ONNX file against torch on natural images and on adversarial ones of the parts `made`, together."""
        assert self.onnx is not None
        run = self.subject.run
        images = torch.cat([run.split.images[:limit].cpu(), *(i[:limit] for i in self.kept(made))])
        return agreement(self.onnx, must_detect(run.net), images, list(run.judge.thresholds.values()))

    def reliability(self, made: Sequence[str], limit: int) -> dict[str, Any]:
        """Half natural images, half adversarial ones of the parts `made`: what the score says as P(attacked).

        `mapped` is the same of the probability that the domains' score maps make of it.
        """
        subject, images = self.subject, [i[:limit] for i in self.kept(made)]
        if not images:
            raise ValueError(f"none of {', '.join(made)} is there")
        pixels = torch.cat([*(subject.run.split.images[: len(i)].cpu() for i in images), *images])
        scores = torch.cat([s for part in pixels.split(limit) if (s := subject.answers(part).scores) is not None])
        truth = torch.arange(len(pixels)) >= len(pixels) // 2
        out = {"images": len(pixels)} | _reliability(scores.double(), truth)
        if subject.domains:
            out["mapped"] = _reliability(subject.probabilities(pixels, scores), truth)
        return out

    def kept(self, made: Sequence[str]) -> list[Tensor]:
        """Adversarial images of those parts that are finished in this audit, uint8 [n,3,H,W] each."""
        found = []
        for file in map(self.file, made):
            if file.is_file():
                with np.load(file) as kept:
                    if str(kept["about"]).endswith(self.about):
                        found.append(torch.from_numpy(kept["images"]))
        return found


def _reliability(probability: Tensor, attacked: Tensor) -> dict[str, Any]:
    sides = [probability[~attacked].numpy()], [probability[attacked].numpy()]
    bins = measures.reliability(probability, attacked)
    return {"brier": brier(*sides), "ece": expected_calibration_error(*sides), "bins": bins}

"""How each part of an audit is made: adversarial or natural images, and what a network answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domain.corruptions import CORRUPTIONS

from ..attacks.ascent import Budget
from ..attacks.catalogue import ATTACKS
from ..attacks.copies import attackers_copy
from ..attacks.evasion import EVASION_BUDGET, EVASIONS, evade
from ..attacks.worst_case import DETECTING, STATIC, WORST_CASE_BUDGET, Member, broken_first_by, worst_case
from ..evaluation import detection
from ..evaluation.attackers import Surrogate
from ..evaluation.pictures import PICTURES
from ..evaluation.report import from_hex, to_hex
from ..network import must_detect
from . import measures
from .subject import Made, Make, Speed, Subject, finite_differences

EPS = 8.0  # the radius that everything is quoted at, in units of 1/255
TRANSFER = "pgd_sat"


@dataclass(frozen=True)
class Audit:
    """What the parts share.

    Attributes:
        subject: the network that is audited; controls: those beside it.
        surrogates: the networks of a T0 attacker, each with its speed.
        folder: receives the adversarial images; about: what they depend on beside their own name.
        data_dir: where natural images of other sets are.
    """

    subject: Subject
    controls: list[Subject]
    surrogates: list[tuple[Surrogate, Speed]]
    folder: Path
    about: str
    data_dir: Path

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
            out["histogram"] = detection.histogram(answers.scores, 40)[1]
            out["risk_coverage"] = measures.risk_coverage(answers.correct, answers.scores)
            out |= subject.served(subject.run.split.images, answers)
        return out

    def worst_case(self, subject: Subject, eps: float, limit: int, level: str | None = None) -> dict[str, Any]:
        """`attacks.worst_case`, of all its members or of those that differentiate as an attacker of `level` does."""
        attacked = subject.classifier or subject
        members: Sequence[Member] = DETECTING if attacked.run.detects else STATIC
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
        """T3: every evasion in turn on the images that still resist; who succeeded first is counted."""
        net, threshold = must_detect(subject.run.net), subject.threshold
        budget = Budget(eps / 255, EVASION_BUDGET.step, EVASION_BUDGET.steps)
        order = sorted(EVASIONS, key=lambda name: ("nat" not in name and "two" not in name, list(EVASIONS).index(name)))

        def make(x: Tensor, y: Tensor) -> Made:
            x_adv, score = x.clone(), torch.full((len(x),), torch.inf, device=x.device)
            by = torch.full((len(x),), -1, device=x.device)
            for i, name in enumerate(order):
                rows = (score > threshold).nonzero().squeeze(1)
                if not len(rows):
                    break
                found = evade(net, x[rows], y[rows], budget, EVASIONS[name], threshold)
                better = found.score < score[rows]
                x_adv[rows[better]], score[rows[better]] = found.x_adv[better], found.score[better]
                by[rows[found.score <= threshold]] = i
            return x_adv, by

        images, extra = self.made(subject, f"T3@{eps:g}", limit, make)
        by = extra["extra0"].tolist()
        out = subject.figures(images) | {"by": {name: by.count(i) for i, name in enumerate(order) if i in by}}
        clean = subject.run.judge.clean
        assert clean.scores is not None
        evaded = from_hex(out["evaded_bits"], len(images))
        flagged = clean.scores[: len(images)] > threshold
        out["implied_accuracy"] = measures.implied_accuracy(clean.correct[: len(images)], flagged, evaded)
        return out

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

        images, _ = self.made(subject, f"{level}/{attack}@{eps:g}", limit, make)
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
        images = self.subject.run.split.images[:limit].cpu().numpy()
        return self.subject.natural(torch.from_numpy(CORRUPTIONS[name].apply(images, strength)))

    def pictures(self, name: str, limit: int) -> dict[str, Any]:
        """Natural images of other sets, whose class is not judged; `missing` where the set is not in `data_dir`."""
        size = self.subject.run.split.images.shape[-1]
        try:
            images = PICTURES[name][1](self.data_dir, limit, size)
        except FileNotFoundError:
            return {"missing": True}
        out = self.subject.natural(images)
        return {k: v for k, v in out.items() if k not in ("accuracy", "served_sr")}

    def reliability(self, made: Sequence[str], limit: int) -> dict[str, Any]:
        """Half natural images, half adversarial ones of the parts `made`: what the score says as P(attacked)."""
        found = [stored(self.file(name)) for name in made]
        images = [i[:limit] for i in found if i is not None]
        clean = self.subject.run.judge.clean.scores
        if not images or clean is None:
            raise ValueError(f"none of {', '.join(made)} is there")
        attacked = torch.cat([scores for i in images if (scores := self.subject.answers(i).scores) is not None])
        natural = torch.cat([clean[: len(i)] for i in images])
        probability = torch.cat([natural, attacked]).double()
        truth = torch.arange(len(probability)) >= len(natural)
        bins = measures.reliability(probability, truth)
        brier = measures.brier(probability, truth)
        return {"images": len(truth), "brier": brier, "ece": measures.ece(bins), "bins": bins}


def stored(file: Path) -> Tensor | None:
    """Adversarial images of a part that is finished, uint8 [n,3,H,W]; None where it is not."""
    if not file.is_file():
        return None
    with np.load(file) as kept:
        return torch.from_numpy(kept["images"])

"""A network under audit: its adversarial images, kept as files, and what it answers to them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attacks.ascent import cross_entropy
from ..attacks.copies import attackers_copy
from ..attacks.search import Target
from ..core.files import whole
from ..data.images import Split, to_bytes, to_pixels
from ..evaluation import detection
from ..evaluation.calibration import assigned, statistics_of
from ..evaluation.judge import Answers, Evaluation, Judge, ask, concatenated, input_gradient
from ..evaluation.probability import ScoreMap
from ..evaluation.report import to_hex
from ..networks.checkpoint import Domain
from ..networks.network import ADVERSARIAL, NATURAL, Network
from . import measures

Made = tuple[Tensor, ...]  # x_adv [n,3,H,W] in [0,1], and whatever else belongs to each image
Make = Callable[[Tensor, Tensor], Made]


@dataclass(frozen=True)
class Speed:
    """Seconds that one image takes: a gradient of the deployed network, and an answer of it."""

    gradient: float
    forward: float


@dataclass(frozen=True)
class Subject:
    """A network with its thresholds and the images it is judged on.

    Attributes:
        name: "" for the network that is audited, otherwise the control's name.
        run: the network whose class is attacked, the clean images and the answers to them.
        target: who rejects, and what an attacker at T3 has of it; None where nobody does.
        speed: of the network whose class is attacked.
        domains: those of the calibration; none where pristine images are all that it was calibrated on.
        classifier: of a control that rejects, the static network by itself: T1 and T2 attack that.
    """

    name: str
    run: Evaluation
    target: Target | None
    speed: Speed
    domains: Sequence[Domain] = ()
    classifier: Subject | None = None

    @property
    def threshold(self) -> float:
        """The score that an evading image may not exceed: of the largest false-positive rate."""
        thresholds = self.run.judge.thresholds
        return thresholds[max(thresholds)]

    def part(self, what: str) -> str:
        """The name of one of its parts in the report."""
        return f"{self.name}:{what}" if self.name else what

    def answers(self, images: Tensor) -> Answers:
        """To uint8 images [n,3,H,W], whose labels are those of the first n clean ones."""
        split = Split(images, self.run.split.labels[: len(images)])
        return concatenated([answered(self.run.net, self.target, x, y) for x, y in self.run.batches(split)])

    def control(
        self,
        name: str,
        target: Target,
        validation: Split,
        thresholds: dict[float, float] | None = None,
        domains: Sequence[Domain] = (),
    ) -> Subject:
        """This static network with somebody who rejects; thresholds are the validation images' where none are given."""
        run, answers = self.run, []
        for split in (run.split, validation) if thresholds is None else (run.split,):
            answers.append(concatenated([answered(run.net, target, x, y) for x, y in run.batches(split)]))
        if thresholds is None:
            assert answers[1].scores is not None
            thresholds = {fpr: detection.threshold_at(answers[1].scores, fpr) for fpr in detection.FPRS}
        run = replace(run, judge=Judge(answers[0], thresholds))
        return Subject(name, run, target, self.speed, domains, self)

    def figures(self, images: Tensor) -> dict[str, Any]:
        """One part of the report for adversarial images, uint8 [n,3,H,W]: `Judge.figures`, bits and curves.

        `correct_bits`, `flagged_bits` and `evaded_bits` (misclassified and not flagged) are per image, the latter
        two at the threshold of the largest false-positive rate.
        """
        answers, clean = self.answers(images), self.run.judge.clean
        out = self.run.judge.figures(answers) | {"correct_bits": to_hex(answers.correct)}
        if answers.scores is not None and clean.scores is not None:
            flagged = answers.scores > self.threshold
            out |= {
                "flagged_bits": to_hex(flagged),
                "evaded_bits": to_hex(~answers.correct & ~flagged),
                "roc": measures.roc(clean.scores[: len(images)], answers.scores),
                "histogram": measures.histogram(answers.scores),
                "risk_coverage": measures.risk_coverage(answers.correct, answers.scores),
            }
            out |= self.served(images, answers)
        return out

    def natural(self, images: Tensor) -> dict[str, Any]:
        """One part for natural images, uint8 [n,3,H,W], whose labels are those of the first n clean ones."""
        answers = self.answers(images)
        return self.run.judge.natural(answers) | self.served(images, answers)

    def served(self, images: Tensor, answers: Answers) -> dict[str, Any]:
        """What a server says of these images, each by the thresholds of the first domain that holds its pixels.

        `uncalibrated`: the share that no domain holds, which the last domain's thresholds judge. `served`: the share
        flagged at each rate; `served_sr`: misclassified and not flagged. Nothing without domains.
        """
        if not self.domains or answers.scores is None:
            return {}
        which = torch.from_numpy(assigned(statistics_of(images), self.domains))
        out: dict[str, Any] = {"uncalibrated": float((which < 0).double().mean()), "served": {}, "served_sr": {}}
        out["first_domain"] = float((which == 0).double().mean())
        for fpr in self.run.judge.thresholds:
            limits = torch.tensor([domain.thresholds[fpr] for domain in self.domains])
            flagged = answers.scores > limits[which]  # -1 is the last domain
            out["served"][str(fpr)] = float(flagged.double().mean())
            out["served_sr"][str(fpr)] = float((~answers.correct & ~flagged).double().mean())
        return out

    def probabilities(self, images: Tensor, scores: Tensor) -> Tensor:
        """P(attacked) at the maps' prior, float64 [N], each image by the map of its domain, or of the last one."""
        maps = [ScoreMap(d.map_scores, d.map_probabilities)(scores) for d in self.domains]
        which = assigned(statistics_of(images), self.domains) % len(maps)
        return torch.from_numpy(np.stack(maps)[which, np.arange(len(scores))])

    def made(self, file: Path, about: str, limit: int, make: Make, title: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Adversarial images of the first `limit` clean ones: uint8 [n,3,H,W], and what `make` gave beside them.

        They are kept in `file` (.npz with `images`, `labels`, `clean`, `about`) and taken from there where it tells
        the same `about`; batches of an interrupted run are gone on with.
        """
        if file.is_file():
            with np.load(file) as kept:
                if str(kept["about"]) == about:
                    extra = {k: torch.from_numpy(v) for k, v in kept.items() if k.startswith("extra")}
                    return torch.from_numpy(kept["images"]), extra
        split = self.run.split.head(limit)

        def batch(_i: int, x: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
            x_adv, *more = make(x, y)
            return to_bytes(x_adv).cpu(), *(m.cpu() for m in more)

        columns = [column for column in self.run.joined(batch, split, title) if column is not None]
        extra = {f"extra{i}": column for i, column in enumerate(columns[1:])}
        arrays = {"images": columns[0], "labels": split.labels, "clean": split.images} | extra
        with whole(file) as partial, partial.open("wb") as f:
            np.savez_compressed(f, about=about, **{k: v.cpu().numpy() for k, v in arrays.items()})
        return columns[0], extra


def answered(net: Network, target: Target | None, x: Tensor, y: Tensor) -> Answers:
    """One batch, x [N,3,H,W] in [0,1], y [N]: the class of `net`, or class and score of the target; on the CPU."""
    if target is None:
        return ask(net, x, y)
    with torch.inference_mode():
        logits, score = target.judge(x)
    return Answers((logits.argmax(1) == y).cpu(), score.float().cpu())


def measured(net: Network, split: Split, images: int = 32, seconds: float = 0.5) -> Speed:
    """The speed of a prepared network, from one batch of `images` repeated for about `seconds` each."""
    x, y = to_pixels(split.images[:images]), split.labels[:images]
    x, y = (t.to(next(net.parameters()).device) for t in (x, y))
    model = attackers_copy(net, "T2")

    def gradient() -> None:
        z = x.clone().requires_grad_(True)
        torch.autograd.grad(cross_entropy(model(z), y).sum(), z)

    def forward() -> None:
        ask(net, x, y)

    found = []
    for work in (gradient, forward):
        work()
        began, rounds = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            work()
            rounds += 1
        found.append((time.perf_counter() - began) / rounds / len(x))
    return Speed(*found)


def finite_differences(net: Network, x: Tensor, y: Tensor, directions: int = 4, step: float = 1e-6) -> dict[str, Any]:
    """The attacker's float32 gradient against differences of the deployed network in float64.

    For each image and each of `directions` random sign vectors v: the derivative along v as autograd gives it,
    and (f(x + h v) - f(x - h v)) / 2h. `class` is the cross-entropy, `type` the difference of the type logits. Per
    kind: the median relative difference, and the share of images and directions where it exceeds 10 %.

    A kink between the two points is improbable at h = 1e-6; a network that rounds its input has differences of 0.
    """
    double = copy.deepcopy(net).double()
    detecting, double_detecting = net.detecting, double.detecting

    def of_class(model: Network, z: Tensor) -> Tensor:
        logits: Tensor = model(z)
        picked = logits.gather(1, y[:, None]).squeeze(1)
        return torch.logsumexp(logits, 1) - picked

    pairs: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
        "class": (lambda z: of_class(net, z), lambda z: of_class(double, z))
    }
    if detecting is not None and double_detecting is not None:

        def of_type(logits: Tensor) -> Tensor:
            return logits[:, NATURAL] - logits[:, ADVERSARIAL]

        one, two = detecting, double_detecting
        pairs["type"] = (lambda z: of_type(one.type_logits(z)), lambda z: of_type(two.type_logits(z)))
    out: dict[str, Any] = {"images": len(x)}
    for kind, (single, exact) in pairs.items():
        z = x.clone().requires_grad_(True)
        gradient = input_gradient(single(z).sum(), z)
        found = []
        for _ in range(directions):
            v = torch.randint(0, 2, x.shape, device=x.device).double() * 2 - 1
            along = (gradient.double() * v).flatten(1).sum(1)
            with torch.no_grad():
                ahead, behind = (exact(x.double() + sign * step * v) for sign in (1, -1))
            difference = (ahead - behind) / (2 * step)
            size = torch.maximum(along.abs(), difference.abs()).clamp(min=1e-12)
            found.append((along - difference).abs() / size)
        errors = torch.cat(found)
        out[kind] = {"median": float(errors.median()), "over_10_percent": float((errors > 0.1).double().mean())}
    return out

"""Evaluates one network on one set of images: outputs of the deployed network, and figures from them.

Adversarial images of T0 to T2 are rounded to 8 bits before they are judged; figures named `float_...` are before that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..attacks.ascent import Budget, cross_entropy, project, quantise
from ..attacks.catalogue import ATTACKS
from ..attacks.copies import attackers_copy
from ..attacks.evasion import evade, evasions_of
from ..attacks.worst_case import broken_first_by, members_of, worst_case
from ..core import files
from ..data.images import Split
from ..networks.network import ADVERSARIAL, NATURAL, Network, must_detect
from . import detection
from .attackers import Surrogate, prepared
from .pictures import changed
from .report import PartProgress, to_hex, w_robust


@dataclass(frozen=True)
class Answers:
    """Outputs of the deployed network for N images: `correct` bool [N], `scores` float32 [N] or None (static)."""

    correct: Tensor
    scores: Tensor | None

    @property
    def accuracy(self) -> float:
        return float(self.correct.double().mean())


def ask(net: Network, x: Tensor, y: Tensor) -> Answers:
    """One batch, x [N,3,H,W] in [0,1], y [N]; float32, results on the CPU."""
    detecting = net.detecting
    with torch.inference_mode():
        if detecting is None:
            return Answers((net(x).argmax(1) == y).cpu(), None)
        signals = detecting.detect(x)
        correct = detecting.classify(x, signals).argmax(1) == y
        return Answers(correct.cpu(), signals.p_type[:, ADVERSARIAL].float().cpu())


def input_gradient(loss: Tensor, x: Tensor) -> Tensor:
    """Of a scalar with respect to x [N,3,H,W]; zero where none flows, as in a network that detaches."""
    if not loss.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def concatenated(parts: Sequence[Answers]) -> Answers:
    scores = [p.scores for p in parts if p.scores is not None]
    return Answers(torch.cat([p.correct for p in parts]), torch.cat(scores) if scores else None)


@dataclass(frozen=True)
class Judge:
    """Figures of adversarial answers, relative to the answers to natural images.

    Attributes:
        clean: answers to the clean images.
        thresholds: false-positive rate -> score; empty for a static network.
    """

    clean: Answers
    thresholds: dict[float, float]

    def flagged(self, scores: Tensor) -> dict[str, float]:
        """False-positive rate -> share of scores [n] over its threshold."""
        return {str(f): detection.flagged(scores, t) for f, t in self.thresholds.items()}

    def natural(self, answers: Answers) -> dict[str, Any]:
        """One line of the report for natural images: accuracy, and the share flagged at each threshold."""
        out: dict[str, Any] = {"images": len(answers.correct), "accuracy": answers.accuracy}
        return out if answers.scores is None else out | {"fpr": self.flagged(answers.scores)}

    def figures(self, rounded: Answers, unrounded: Answers | None = None) -> dict[str, Any]:
        """One line of the report: adversarial answers to the first len(rounded.correct) clean images.

        accuracy, w_robust; with a detector also auroc and its 95 % bootstrap interval, tpr at each FPR (the
        threshold fixed on held-out images), sr_at (misclassified and not flagged), joint_at (right or flagged),
        and `successful`: auroc and tpr over those adversarial images alone that turned a right answer wrong.
        """
        n = len(rounded.correct)
        clean = Answers(self.clean.correct[:n], None if self.clean.scores is None else self.clean.scores[:n])
        out: dict[str, Any] = {
            "images": n,
            "accuracy": rounded.accuracy,
            "w_robust": w_robust(clean.accuracy, rounded.accuracy),
        }
        if unrounded is not None:
            out["float_accuracy"] = unrounded.accuracy
        if rounded.scores is None or clean.scores is None:
            return out
        out["auroc"] = detection.auroc(clean.scores, rounded.scores)
        out["auroc_interval"] = list(detection.bootstrap(detection.auroc, clean.scores, rounded.scores, resamples=100))
        if unrounded is not None and unrounded.scores is not None:
            out["float_auroc"] = detection.auroc(clean.scores, unrounded.scores)
        wrong = ~rounded.correct
        turned = rounded.scores[wrong & clean.correct]
        out["successful"] = {"images": len(turned)}
        if len(turned):
            out["successful"]["auroc"] = detection.auroc(clean.scores, turned)
            out["successful"]["tpr"] = self.flagged(turned)
        out["tpr"] = self.flagged(rounded.scores)
        missed = {f: wrong & (rounded.scores <= t) for f, t in self.thresholds.items()}
        out["sr_at"] = {str(f): float(m.double().mean()) for f, m in missed.items()}
        out["joint_at"] = {str(f): 1 - float(m.double().mean()) for f, m in missed.items()}
        return out


@dataclass(frozen=True)
class Evaluation:
    """One network against one set of images; each method is one part of the report."""

    net: Network
    split: Split
    judge: Judge
    batch_size: int
    device: torch.device
    bf16: bool = False
    progress: PartProgress | None = None

    @classmethod
    def start(
        cls,
        net: Network,
        split: Split,
        thresholds: dict[float, float],
        batch_size: int = 128,
        device: torch.device | str = "cpu",
        bf16: bool = False,
        progress: PartProgress | None = None,
    ) -> Evaluation:
        """Prepares the network (see `prepared`) and asks it about the clean images."""
        device = torch.device(device)
        judge = Judge(Answers(torch.ones(0), None), thresholds)
        one = cls(prepared(net, device), split, judge, batch_size, device, bf16, progress)
        clean = concatenated([ask(one.net, x, y) for x, y in one.batches(split)])
        return replace(one, judge=Judge(clean, thresholds))

    @property
    def detects(self) -> bool:
        return self.net.detecting is not None

    def batches(self, split: Split, title: str = "") -> Iterator[tuple[Tensor, Tensor]]:
        total = math.ceil(len(split) / self.batch_size)
        for x, y in tqdm(split.batches(self.batch_size), title, total, leave=False, disable=None if title else True):
            yield x.to(self.device), y.to(self.device)

    def clean(self) -> dict[str, Any]:
        """Accuracy, realised false-positive rates and which images are right (`report.to_hex`), on the clean images."""
        answers = self.judge.clean
        return self.judge.natural(answers) | {"correct_bits": to_hex(answers.correct)}

    def white_box(self, level: str, attack: str, budget: Budget, limit: int | None = None) -> dict[str, Any]:
        """T1 or T2 under an attack of `ATTACKS`."""
        model, run = attackers_copy(self.net, level, self.bf16), ATTACKS[attack][0]
        return self._judged(lambda _i, x, y: run(model, x, y, budget), self.split.head(limit), f"{level} {attack}")

    def worst_case(self, budget: Budget, limit: int | None = None) -> dict[str, Any]:
        """The worst case over T1, T2 and forced branches (`attacks.worst_case`), with who broke how many images first.

        Scores are those of the best iterate of each image, whether it is misclassified or not; an image that is
        misclassified as it is was not attacked. `correct_bits` say which images are left, see `report.to_hex`.
        """
        members = members_of(self.net)

        def search(_i: int, x: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
            found = worst_case(self.net, x, y, budget, members, self.bf16)
            answers = ask(self.net, found.nearest, y)
            return answers.correct, answers.scores, found.by.cpu()

        correct, scores, by = self.joined(search, self.split.head(limit), "worst case")
        assert correct is not None and by is not None
        about = {"steps": budget.steps, "restarts": budget.restarts, "broken_first_by": broken_first_by(by, members)}
        return self.judge.figures(Answers(correct, scores)) | about | {"correct_bits": to_hex(correct)}

    def transfer(
        self, surrogate: Surrogate, attack: str, budget: Budget, limit: int | None = None, cache: Path | None = None
    ) -> dict[str, Any]:
        """T0: adversarial images of `surrogate`, which do not depend on the network judged.

        `cache`, a file, keeps them for the next network: as float16 differences from x, which are right to two
        thousandths of a grey level.
        """
        split = self.split.head(limit)
        title = f"T0 {surrogate.name} {attack}"
        model, run = attackers_copy(surrogate.network, "T2", self.bf16), ATTACKS[attack][0]
        deltas: Sequence[Tensor] | None = None
        if cache is not None:
            if not cache.is_file():
                made = torch.cat([(run(model, x, y, budget) - x).half().cpu() for x, y in self.batches(split, title)])
                files.save(cache, made.contiguous())
            deltas = torch.load(cache, weights_only=True).split(self.batch_size)

        def passed_on(i: int, x: Tensor, y: Tensor) -> Tensor:
            delta = (run(model, x, y, budget) - x).half() if deltas is None else deltas[i]
            return project(x + delta.to(x), x, budget.eps)

        return self._judged(passed_on, split, title) | {"surrogate_sha256": surrogate.sha256}

    def _judged(self, attack: Callable[[int, Tensor, Tensor], Tensor], split: Split, title: str) -> dict[str, Any]:
        """Figures of `attack`, (batch number, x, y) -> x_adv, rounded to 8 bits and as it is."""

        def both(i: int, x: Tensor, y: Tensor) -> list[Answers]:
            x_adv = attack(i, x, y)
            return [ask(self.net, quantise(x_adv), y), ask(self.net, x_adv, y)]

        return self.judge.figures(*self._answers(both, split, title))

    def _answers(
        self, work: Callable[[int, Tensor, Tensor], list[Answers]], split: Split, title: str
    ) -> tuple[Answers, ...]:
        """The answers that `work` gives for each batch, joined."""

        def flat(i: int, x: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
            return tuple(t for answers in work(i, x, y) for t in (answers.correct, answers.scores))

        joined = self.joined(flat, split, title)
        pairs = zip(joined[::2], joined[1::2], strict=True)
        return tuple(Answers(correct, scores) for correct, scores in pairs if correct is not None)

    def joined(
        self, work: Callable[[int, Tensor, Tensor], tuple[Tensor | None, ...]], split: Split, title: str
    ) -> tuple[Tensor | None, ...]:
        """What `work` gives for each batch, joined; batches that an earlier run finished are taken from it."""
        done = self.progress.restored() if self.progress else []
        for i, (x, y) in enumerate(self.batches(split, title)):
            if i >= len(done):
                done.append(work(i, x, y))
                if self.progress:
                    self.progress.keep(done)
        columns = [[t for t in column if t is not None] for column in zip(*done, strict=True)]
        return tuple(torch.cat(column) if column else None for column in columns)

    def evasion(self, name: str, budget: Budget, limit: int | None = None, restarts: int = 1) -> dict[str, Any]:
        """T3 by one attack of `evasions_of`, aimed at the 5 % threshold; successes as bits, image by image."""
        net = must_detect(self.net)
        target, how = self.judge.thresholds[max(self.judge.thresholds)], evasions_of(net)[name]

        def search(_i: int, x: Tensor, y: Tensor) -> list[Answers]:
            return [ask(net, evade(net, x, y, budget, how, target, restarts).x_adv, y)]

        (answers,) = self._answers(search, self.split.head(limit), f"T3 {name}")
        assert answers.scores is not None
        success = {f: ~answers.correct & (answers.scores <= t) for f, t in self.judge.thresholds.items()}
        return {
            "images": len(answers.correct),
            "sr_at": {str(f): float(s.double().mean()) for f, s in success.items()},
            "success_bits": {str(f): to_hex(s) for f, s in success.items()},
        }

    def corruption(self, name: str, strength: int = 3, seed: int = 0, limit: int | None = None) -> dict[str, Any]:
        """False-positive rate and accuracy on natural images changed by `CORRUPTIONS[name]`."""
        split = self.split.head(limit)
        after = Split(changed(split.images, name, strength, seed), split.labels)
        return self.judge.natural(concatenated([ask(self.net, x, y) for x, y in self.batches(after)]))

    def zero_gradients(self, limit: int = 500) -> dict[str, float]:
        """Share of clean images whose gradient is exactly zero, and share of zero pixels over all of them.

        `class`: of the cross-entropy through the deployed network. `type`: of the type logits' difference,
        which T3 descends. Zero gradients make an attack look weak without making the network strong.
        """
        detecting = self.net.detecting
        images = {"class": 0, "type": 0}
        pixels = {"class": 0.0, "type": 0.0}
        split = self.split.head(limit)
        for x, y in self.batches(split):
            z = x.requires_grad_(True)
            losses = {"class": cross_entropy(self.net(z), y).sum()}
            if detecting is not None:
                type_logits = detecting.detect(z).type_logits
                losses["type"] = (type_logits[:, NATURAL] - type_logits[:, ADVERSARIAL]).sum()
            for kind, loss in losses.items():
                gradient = input_gradient(loss, z)
                images[kind] += int((gradient.flatten(1) == 0).all(1).sum())
                pixels[kind] += float((gradient == 0).flatten(1).double().mean(1).sum())
        kinds = ("class", "type") if detecting is not None else ("class",)
        share = {f"{kind}_images": images[kind] / len(split) for kind in kinds}
        return share | {f"{kind}_pixels": pixels[kind] / len(split) for kind in kinds}

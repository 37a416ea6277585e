"""Accuracy under attack and detection at the threat levels T0 to T3, as one JSON report and a table beside it.

    python -m training.evaluate --ckpt best.pt --data-dir D --attacks fgsm pgd_trades --levels T1 T2 T3 \\
        --surrogate resnet56=resnet56.th --surrogate static=static.pt --limit 1000 --out report.json

Levels, side by side wherever a number stands:

* T0: the attacker has other networks only; each `--surrogate` attacks by itself and the images are passed on.
* T1: the attacker has the trunk and ignores the detector: P_type and omega are recomputed at every step, and
  their gradient is cut in the attacker's copy.
* T2: the attacker differentiates through everything and wants a wrong class (the paper's white box).
* T3: the attacker wants a wrong class *and* a score under the 5 % threshold; the best case for each image over
  `attacks.EVASIONS`.

Adversarial images of T0 to T2 are rounded to 8 bits before they are judged, since that is what a server
receives; figures named `float_...` are before rounding. T3 searches among 8-bit images to begin with. What is
judged is always the deployed network in float32. Thresholds come from the checkpoint's calibration on
validation images, or are taken from the validation split where it carries none.

The report is rewritten after every finished part, and a part's finished batches are kept beside it; started again
with the same set-up, the program goes on where it stopped.

Attacks are those of `attacks.ATTACKS`: FGSM, PGD_sat, PGD_trades and CW_inf of the paper, its adaptive attack (T2
only), PGD with restarts (`--pgd-restarts`) and AutoAttack. `--steps` gives all but FGSM another number of steps.
The data set is the one that the checkpoint was trained on.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from . import checkpoint, files
from .attacks import ATTACKS, EVASION_BUDGET, EVASIONS, Budget, cross_entropy, evade, project, quantise
from .data import SETS, Split, load_images
from .evaluation import detection
from .evaluation.corruptions import HONEST
from .evaluation.report import ONE_STEP, Progress, Report, to_hex, w_robust
from .network import ADVERSARIAL, NATURAL, DetectingNetwork, Network, must_detect
from .pretrained import FOREIGN, load_foreign
from .renames import run_table

LEVELS = ("T0", "T1", "T2", "T3")
Part = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Answers:
    """What the deployed network says about N images: `correct` bool [N], `scores` float32 [N] or None (static)."""

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


def joined(parts: Sequence[Answers]) -> Answers:
    scores = [p.scores for p in parts if p.scores is not None]
    return Answers(torch.cat([p.correct for p in parts]), torch.cat(scores) if scores else None)


@dataclass(frozen=True)
class AttackersCopy:
    """A network as an attacker differentiates it, x -> logits: the whole of one without a detector.

    bf16 computes the attacker's gradients (nothing else) in bfloat16.
    """

    net: Network
    bf16: bool = False

    def __call__(self, z: Tensor) -> Tensor:
        with self.arithmetic(z):
            logits: Tensor = self.net(z)
            return logits

    def arithmetic(self, z: Tensor) -> torch.autocast:
        return torch.autocast(z.device.type, torch.bfloat16, enabled=self.bf16)


@dataclass(frozen=True)
class BlindCopy(AttackersCopy):
    """A T1 copy: the detector answers, but its gradient is cut."""

    net: DetectingNetwork

    def __call__(self, z: Tensor) -> Tensor:
        with self.arithmetic(z):
            with torch.no_grad():
                signals = self.net.detect(z)
            return self.net.classify(z, signals)


@dataclass(frozen=True)
class DetectorsCopy(AttackersCopy):
    """A T2 copy that says its type logits too, which the paper's adaptive attack differentiates."""

    net: DetectingNetwork

    def with_type(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, K] and type logits [N, 2]."""
        with self.arithmetic(z):
            signals = self.net.detect(z)
            return self.net.classify(z, signals), signals.type_logits


def attackers_copy(net: Network, level: str, bf16: bool = False) -> AttackersCopy:
    """What an attacker of T1 or T2 has of `net`."""
    detecting = net.detecting
    if detecting is None:
        return AttackersCopy(net, bf16)
    return BlindCopy(detecting, bf16) if level == "T1" else DetectorsCopy(detecting, bf16)


@dataclass(frozen=True)
class Judge:
    """The clean side of a report: what adversarial answers are compared with.

    Attributes:
        clean: answers to the clean images.
        thresholds: false-positive rate -> score; empty for a static network.
    """

    clean: Answers
    thresholds: dict[float, float]

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
            out["successful"]["tpr"] = {str(f): detection.flagged(turned, t) for f, t in self.thresholds.items()}
        out["tpr"] = {str(f): detection.flagged(rounded.scores, t) for f, t in self.thresholds.items()}
        missed = {f: wrong & (rounded.scores <= t) for f, t in self.thresholds.items()}
        out["sr_at"] = {str(f): float(m.double().mean()) for f, m in missed.items()}
        out["joint_at"] = {str(f): 1 - float(m.double().mean()) for f, m in missed.items()}
        return out


@dataclass
class Surrogate:
    """A network that a T0 attacker has; `sha256` of its weights file names it in the report and the cache."""

    name: str
    network: Network
    sha256: str


def load_surrogate(spec: str, device: torch.device) -> Surrogate:
    """NAME=FILE (a checkpoint of ours, or the weights of a network in `FOREIGN`), or the name 'pyautoattack'."""
    name, _, file = spec.partition("=")
    if name in FOREIGN:
        network: Network = load_foreign(name, Path(file) if file else None)
    elif file:
        network = checkpoint.load(Path(file)).network
    else:
        raise ValueError(f"a surrogate is NAME=FILE, or one of {sorted(FOREIGN)}; {spec!r} is neither")
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return Surrogate(name, prepared(network, device), digest.hexdigest())


def prepared(net: Network, device: torch.device) -> Network:
    """Evaluation mode, no weight gradients (only the image's is wanted), channels last."""
    return net.eval().requires_grad_(False).to(device=device, memory_format=torch.channels_last)


@dataclass(frozen=True)
class Evaluation:
    """One network against one set of images; each method is one part of the report."""

    net: Network
    split: Split
    judge: Judge
    batch_size: int
    device: torch.device
    bf16: bool = False
    progress: Progress | None = None

    @classmethod
    def start(
        cls,
        net: Network,
        split: Split,
        thresholds: dict[float, float],
        batch_size: int = 128,
        device: torch.device | str = "cpu",
        bf16: bool = False,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Prepares the network (see `prepared`) and asks it about the clean images."""
        device = torch.device(device)
        judge = Judge(Answers(torch.ones(0), None), thresholds)
        one = cls(prepared(net, device), split, judge, batch_size, device, bf16, progress)
        clean = joined([ask(one.net, x, y) for x, y in one.batches(split)])
        return replace(one, judge=Judge(clean, thresholds))

    @property
    def detects(self) -> bool:
        return self.net.detecting is not None

    def batches(self, split: Split, title: str = "") -> Iterator[tuple[Tensor, Tensor]]:
        total = math.ceil(len(split) / self.batch_size)
        for x, y in tqdm(split.batches(self.batch_size), title, total, leave=False, disable=None if title else True):
            yield x.to(self.device), y.to(self.device)

    def clean(self) -> dict[str, Any]:
        """Accuracy and realised false-positive rates on the clean images."""
        answers = self.judge.clean
        out: dict[str, Any] = {"images": len(answers.correct), "accuracy": answers.accuracy}
        if answers.scores is not None:
            out["fpr"] = {str(f): detection.flagged(answers.scores, t) for f, t in self.judge.thresholds.items()}
        return out

    def white_box(self, level: str, attack: str, budget: Budget, limit: int | None = None) -> dict[str, Any]:
        """T1 or T2 under an attack of `ATTACKS`."""
        model, run = attackers_copy(self.net, level, self.bf16), ATTACKS[attack][0]
        return self._judged(lambda _i, x, y: run(model, x, y, budget), self.split.head(limit), f"{level} {attack}")

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
        """What `work` gives for each batch, joined; batches that an earlier run finished are taken from it."""
        done = self.progress.restored() if self.progress else []
        for i, (x, y) in enumerate(self.batches(split, title)):
            if i >= len(done):
                done.append(tuple(t for answers in work(i, x, y) for t in (answers.correct, answers.scores)))
                if self.progress:
                    self.progress.keep(done)
        answers = [[Answers(b[k], b[k + 1]) for k in range(0, len(b), 2)] for b in done if b[0] is not None]
        return tuple(joined(parts) for parts in zip(*answers, strict=True))

    def evasion(self, name: str, budget: Budget, limit: int | None = None, restarts: int = 1) -> dict[str, Any]:
        """T3 by one attack of `EVASIONS`, aimed at the 5 % threshold; successes as bits, image by image."""
        net = must_detect(self.net)
        target = self.judge.thresholds[max(self.judge.thresholds)]

        def search(_i: int, x: Tensor, y: Tensor) -> list[Answers]:
            return [ask(net, evade(net, x, y, budget, EVASIONS[name], target, restarts).x_adv, y)]

        (answers,) = self._answers(search, self.split.head(limit), f"T3 {name}")
        assert answers.scores is not None
        success = {f: ~answers.correct & (answers.scores <= t) for f, t in self.judge.thresholds.items()}
        return {
            "images": len(answers.correct),
            "sr_at": {str(f): float(s.double().mean()) for f, s in success.items()},
            "success_bits": {str(f): to_hex(s) for f, s in success.items()},
        }

    def honest(self, name: str, limit: int | None = None) -> dict[str, Any]:
        """False positives and accuracy on clean images changed by `HONEST[name]`."""
        split = self.split.head(limit)
        changed = Split(HONEST[name](split.images), split.labels)
        answers = joined([ask(self.net, x, y) for x, y in self.batches(changed)])
        out: dict[str, Any] = {"images": len(changed), "accuracy": answers.accuracy}
        if answers.scores is not None:
            out["fpr"] = {str(f): detection.flagged(answers.scores, t) for f, t in self.judge.thresholds.items()}
        return out

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
                (gradient,) = torch.autograd.grad(loss, z)
                images[kind] += int((gradient.flatten(1) == 0).all(1).sum())
                pixels[kind] += float((gradient == 0).flatten(1).double().mean(1).sum())
        kinds = ("class", "type") if detecting is not None else ("class",)
        share = {f"{kind}_images": images[kind] / len(split) for kind in kinds}
        return share | {f"{kind}_pixels": pixels[kind] / len(split) for kind in kinds}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m training.evaluate", description="Measure a network at T0 to T3.")
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, help="checkpoint of an AW-Net or a static network")
    add("--data-dir", type=Path, required=True, help="folder that holds the data set, e.g. cifar-10-batches-py/")
    add("--data-set", choices=list(SETS), help="default: the one that the checkpoint was trained on")
    add("--out", type=Path, required=True, help="report (.json); tables are written beside it (.md)")
    add("--attacks", nargs="+", default=["fgsm", "pgd_trades"], choices=list(ATTACKS))
    add("--levels", nargs="+", default=["T1", "T2"], choices=list(LEVELS))
    add("--surrogate", nargs="+", action="extend", default=[], metavar="NAME=FILE", help="networks of T0")
    add("--split", default="test", choices=["test", "validation"])
    add("--limit", type=int, help="first N images (default: all)")
    add("--t0-limit", type=int, help="first N images for T0 (default: as --limit)")
    add("--t3-limit", type=int, default=1000, help="first N images for T3 (default: 1000)")
    add("--eps", type=float, default=8.0, help="L-infinity radius in units of 1/255 (default: 8)")
    add("--steps", type=int, help="steps of the iterative attacks at T0 to T2 (default: each attack's own)")
    add("--pgd-restarts", type=int, metavar="N", help="tries of pgd_restarts (default: 10)")
    add("--t3-steps", type=int, default=EVASION_BUDGET.steps, help="steps of each T3 attack (default: 60)")
    add("--evasions", nargs="+", default=list(EVASIONS), choices=list(EVASIONS), help="T3 attacks (default: all)")
    add("--restarts", type=int, default=1, help="tries of each T3 attack (default: 1)")
    add("--no-honest", action="store_true", help="leave out the honest images")
    add("--cache", type=Path, help="folder that keeps T0 images for the next network")
    add("--batch-size", type=int, default=128)
    add("--threads", type=int, help="CPU threads (default: torch's)")
    add("--device", default="cpu")
    add("--bf16", action="store_true", help="attackers' gradients at T0 to T2 in bfloat16; judgement stays float32")
    add("--seed", type=int, default=0)
    add("--fresh", action="store_true", help="replace a report instead of going on with it")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns the report's document."""
    given = sys.argv[1:] if argv is None else list(argv)
    if any(option.split("=")[0] == "--table" for option in given):
        raise SystemExit(run_table(given))
    parser = arguments()
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        return evaluate(args)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"error: {error}\n")


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Every part that the options ask for and the report does not hold yet."""
    if "T0" in args.levels and not args.surrogate:
        raise ValueError("T0 needs at least one --surrogate")
    loaded = checkpoint.load(args.ckpt)
    name = args.data_set or loaded.recipe.get("data", {}).get("set", "cifar10")
    dataset = load_images(name, args.data_dir)
    split: Split = getattr(dataset, args.split).head(args.limit)
    thresholds, source = {}, "none: no detector"
    if (detecting := loaded.network.detecting) is not None:
        calibration, source = loaded.calibration, "checkpoint"
        if calibration is None:
            calibration = detection.calibrate(detecting, dataset.validation.images.split(args.batch_size))
            source = "validation split, taken by this program"
        thresholds = calibration.thresholds
    setup = {
        "checkpoint": args.ckpt.name,
        "sha256": hashlib.sha256(args.ckpt.read_bytes()).hexdigest(),
        "kind": loaded.kind,
        "split": args.split,
        "images": len(split),
        "eps": args.eps,
        "steps": args.steps,
        "t0_limit": args.t0_limit,
        "t3": {"steps": args.t3_steps, "restarts": args.restarts, "limit": args.t3_limit},
        "bf16": args.bf16,
        "seed": args.seed,
        "thresholds": {str(f): t for f, t in thresholds.items()},
        "thresholds_from": source,
    }
    if name != "cifar10":
        setup["set"] = name
    if args.pgd_restarts:
        setup["pgd_restarts"] = args.pgd_restarts
    report = Report(args.out, setup, fresh=args.fresh)
    progress = Progress(args.out.with_suffix(".progress.pt"), setup | {"batch_size": args.batch_size})
    if args.fresh:
        progress.end()
    device = torch.device(args.device)
    run = Evaluation.start(loaded.network, split, thresholds, args.batch_size, device, args.bf16, progress)
    for name, make in planned(run, args, device):
        if name in report.parts:
            continue
        torch.manual_seed(args.seed + zlib.crc32(name.encode()))  # a resumed run repeats what it would have done
        progress.begin(name)
        part = make()
        report.put(name, part | {"seconds": round(progress.seconds, 1)})
        progress.end()
        tqdm.write(f"{name}: {summary(part)} ({report.parts[name]['seconds']:.0f} s)")
    document = report.write()
    for check in document["checks"]:
        if not check["holds"]:
            tqdm.write(f"warning: does not hold: {check['check']} ({check['detail']})")
    return document


def planned(run: Evaluation, args: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Part]]:
    """(name, function that makes the part) of everything asked for, cheap parts first."""
    yield "clean", run.clean
    yield "zero_gradients", run.zero_gradients
    if not args.no_honest:
        for name in HONEST:
            yield f"honest/{name}", partial(run.honest, name)
    budgets = {}
    for attack in args.attacks:
        own = ATTACKS[attack][1]
        steps = own.steps if attack in ONE_STEP else args.steps or own.steps
        restarts = args.pgd_restarts or own.restarts if attack == "pgd_restarts" else 1
        budgets[attack] = Budget(args.eps / 255, own.step, steps, restarts)
    if "T0" in args.levels:
        for surrogate in [load_surrogate(spec, device) for spec in args.surrogate]:
            for attack, budget in budgets.items():
                limit = len(run.split.head(args.t0_limit))
                if attack == "adaptive":  # about a detector, which these networks have not
                    continue
                made_by = (surrogate.sha256, attack, budget, args.split, limit, args.batch_size, args.bf16, args.seed)
                text = repr(made_by).replace(", restarts=1)", ")")  # as keys were before there were restarts
                key = hashlib.sha256(text.encode()).hexdigest()[:16]
                file = args.cache / f"{surrogate.name}-{attack}-{key}.pt" if args.cache else None
                yield f"T0/{surrogate.name}/{attack}", partial(run.transfer, surrogate, attack, budget, limit, file)
    for level in ("T1", "T2"):
        if level in args.levels and (level == "T2" or run.detects):
            for attack, budget in budgets.items():
                if level == "T2" or attack != "adaptive":  # whoever ignores the detector gains nothing by fooling it
                    yield f"{level}/{attack}", partial(run.white_box, level, attack, budget)
    if "T3" in args.levels and run.detects:
        budget = Budget(args.eps / 255, EVASION_BUDGET.step, args.t3_steps)
        for name in args.evasions:
            yield f"T3/{name}", partial(run.evasion, name, budget, args.t3_limit, args.restarts)
    if not run.detects and {"T1", "T3"} & set(args.levels):
        tqdm.write("T1 and T3 are about a detector: a static network has T0 and T2 only")


def summary(part: dict[str, Any]) -> str:
    """A finished part in a few words."""
    words = [f"{k.replace('_', ' ')} {part[k]:.4f}" for k in ("accuracy", "auroc") if k in part]
    for key in ("tpr", "fpr", "sr_at"):
        if key in part:
            words += [f"{key.removesuffix('_at')}@{float(f):.0%} {v:.3f}" for f, v in part[key].items()]
    return ", ".join(words) or ", ".join(f"{k} {v}" for k, v in part.items())


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last finished batches", file=sys.stderr)
        sys.exit(130)

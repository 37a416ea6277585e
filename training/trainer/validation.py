"""Measures a network on the validation split while it is trained, and packs best.pt.

Accuracies and AUROC by which epochs are compared; exits, temperature and thresholds that belong to a checkpoint.
Nothing here reads a test image.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attacks.ascent import Budget, quantise
from ..attacks.pgd import pgd_trades
from ..attacks.worst_case import MISSED, WRONG_AS_IT_IS, members_of, worst_case
from ..data.images import ImageSet, Split
from ..evaluation.calibration import calibrate_domains
from ..evaluation.detection import auroc
from ..networks import checkpoint
from ..networks.network import ADVERSARIAL, DetectingNetwork, Network, must_detect
from .distributed import SINGLE_PROCESS, World
from .objectives import Objective
from .pretraining import DetectorPretraining
from .step import Runtime

WORST_CASE_IMAGES = 500  # how many images of the validation split are attacked after an epoch


def measure(
    net: Network, objective: Objective, split: Split, steps: int, runtime: Runtime, world: World = SINGLE_PROCESS
) -> dict[str, float]:
    """The figures of an epoch: AUROC where a detector is pretrained, otherwise what `validate` finds with `steps`.

    A multi-exit network chooses its exits first; from then on they are part of it.
    """
    if isinstance(objective, DetectorPretraining):
        return detector_figures(must_detect(net), split, runtime, world)
    if net.multi_exit:
        set_exits(net, split.head(500), runtime)
    return validate(net, split, steps, runtime, world=world)


def selection_score(figures: Mapping[str, float]) -> float:
    """What best.pt is chosen by: the first measured of W-Robust, clean accuracy and AUROC; -inf without any."""
    return next((figures[key] for key in ("w_robust", "clean", "auroc") if key in figures), float("-inf"))


@torch.no_grad()
def validate(
    net: Network, split: Split, steps: int, runtime: Runtime, batch: int = 250, world: World = SINGLE_PROCESS
) -> dict[str, float]:
    """Clean accuracy, worst-case accuracy, their mean W-Robust (Eq. 25) and AUROC, in percent but the last.

    The worst case is that of the quick members with `steps` each, on the first `WORST_CASE_IMAGES`, and AUROC is over
    its best iterates of images that are right unattacked, if there are any. With `steps` 0 nothing is attacked and
    W-Robust is left out. Each process measures some of the batches.
    """
    was_training, detecting = net.training, net.detecting
    net.eval()
    right, resisting = 0, 0
    scores: dict[str, list[Tensor]] = {"nat": [], "adv": []}
    for x, y in shared_batches(split, batch, runtime, world):
        with runtime.autocast():
            if detecting is None:
                logits = net(x)
            else:
                signals = detecting.detect(x)
                logits = detecting.classify(x, signals)
                scores["nat"].append(signals.p_type[:, ADVERSARIAL].cpu())
        right += int((logits.argmax(1) == y).sum())
    attacked = split.head(WORST_CASE_IMAGES)
    if steps:
        members = members_of(net, quick=True)
        for x, y in shared_batches(attacked, batch, runtime, world):
            found = worst_case(net, x, y, Budget(steps=steps), members, runtime.bf16)
            resisting += int((found.by == MISSED).sum())
            if detecting is not None:
                x_adv = found.nearest[found.by != WRONG_AS_IT_IS]
                scores["adv"].append(detecting.detect(x_adv).p_type[:, ADVERSARIAL].cpu())
    net.train(was_training)
    parts = world.gather((right, resisting, scores["nat"], scores["adv"]))
    right, resisting = sum(part[0] for part in parts), sum(part[1] for part in parts)
    scores = {"nat": [s for part in parts for s in part[2]], "adv": [s for part in parts for s in part[3]]}
    clean = 100 * right / len(split)
    if not steps:
        return {"clean": clean}
    adv = 100 * resisting / len(attacked)
    figures = {"clean": clean, "worst_case": adv, "w_robust": (clean + adv) / 2}
    if any(len(one) for one in scores["adv"]):
        figures["auroc"] = auroc(torch.cat(scores["nat"]), torch.cat(scores["adv"]))
    return figures


def shared_batches(split: Split, size: int, runtime: Runtime, world: World) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of `split` that this process measures; the global generator is seeded by the batch's number."""
    for i, (x, y) in enumerate(split.batches(size)):
        if i % world.size == world.rank:
            torch.manual_seed(i)
            yield x.to(runtime.device), y.to(runtime.device)


def detector_figures(
    net: DetectingNetwork, split: Split, runtime: Runtime, world: World = SINGLE_PROCESS
) -> dict[str, float]:
    """AUROC on PGD-10 examples against the trunk, rounded to 8 bits: the selection score of the detection stage."""
    net.eval()
    nat, adv = [], []
    for x, y in shared_batches(split, 250, runtime, world):
        with runtime.autocast():
            signals = net.detect(x).detach()
            naturally = partial(net.classify, signals=signals, branch="nat")
            x_adv = pgd_trades(naturally, x, y, Budget(8 / 255, 2 / 255, 10))
            with torch.no_grad():
                nat.append(signals.p_type[:, ADVERSARIAL].cpu())
                adv.append(net.detect(quantise(x_adv)).p_type[:, ADVERSARIAL].cpu())
    parts = world.gather((nat, adv))
    return {"auroc": auroc(torch.cat([s for p in parts for s in p[0]]), torch.cat([s for p in parts for s in p[1]]))}


def set_exits(net: Network, split: Split, runtime: Runtime) -> None:
    """Entropy thresholds of a multi-exit network, on validation images; they are part of its checkpoint."""
    was_training = net.training
    net.eval()
    for x, _ in split.batches(len(split)):
        net.set_exits(x.to(runtime.device))
    net.train(was_training)


def finalise(net: Network, objective: Objective, split: Split, world: World = SINGLE_PROCESS) -> None:
    """Set what best.pt fixes: after the detection stage, the temperature of the type head."""
    if isinstance(objective, DetectorPretraining):
        net.eval()
        set_type_temperature(must_detect(net), split)
        world.synchronise(net)


@torch.no_grad()
def set_type_temperature(net: DetectingNetwork, split: Split, spread: float = 8.0) -> None:
    """Fix the type head's temperature: 99 % of its logit margins on clean images then lie within +-`spread`.

    Scores then stay well inside what float32 and six printed digits can tell apart (1/(1+e^8) is 3e-4).
    """
    margins, device = [], next(net.parameters()).device
    for x, _ in split.batches(500):
        logits = net.detect(x.to(device)).type_logits
        margins.append((logits[:, 0] - logits[:, 1]).abs())
    reach = torch.cat(margins).quantile(0.99).item()
    net.temper(max(1.0, reach / spread))


def pack_best(
    net: Network,
    images: ImageSet,
    recipe: Mapping[str, Any],
    name: str,
    metrics: Mapping[str, Any],
    device: torch.device | None = None,
) -> dict[str, Any]:
    """The document of best.pt: weights rounded to float16, thresholds of both domains measured on exactly those.

    The domains cost a pass over 4,250 images and ten gradient steps on 125 beside that over the validation images.
    """
    document = checkpoint.pack(
        net,
        labels=images.labels,
        recipe={"name": name, **recipe},
        metrics=metrics,
        provenance={"commit": git_commit(), "report": f"training/reports/{name.replace('/', '-')}.json"},
        half=True,
    )
    if net.detecting is not None:
        rounded = must_detect(checkpoint.BUILDERS[net.kind](document["config"])).eval()
        rounded.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in document["state"].items()})
        rounded.to(device or torch.device("cpu")).to(memory_format=torch.channels_last)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # float32 as the server has it, on a GPU too
            document["calibration"] = asdict(calibrate_domains(rounded, images.validation, per_kind=250))
    return document


def git_commit() -> str:
    """The repository's commit, or 'unknown' outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],  # noqa: S607 - git is where whoever trains has it
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()

"""Accuracy under attack and detection at the threat levels T0 to T3, as one JSON report and a table beside it.

    python -m training.evaluate --ckpt best.pt --data-dir D --attacks fgsm pgd_trades --levels T1 T2 T3 \\
        --surrogate resnet56=resnet56.th --surrogate static=static.pt --limit 1000 --out report.json
    python -m training.evaluate --ckpt best.pt --data-dir D --attacks worst_case --limit 500 --out worst-case.json

Levels, side by side wherever a number stands:

* T0: the attacker has other networks only; each `--surrogate` attacks by itself and the images are passed on.
* T1: the attacker has the trunk and ignores the detector: P_type and omega are recomputed at every step, and
  their gradient is cut in the attacker's copy.
* T2: the attacker differentiates through everything and wants a wrong class (the paper's white box).
* T3: the attacker wants a wrong class *and* a score under the 5 % threshold; the best case for each image over
  `attacks.evasion.EVASIONS`.

Adversarial images of T0 to T2 are rounded to 8 bits before they are judged, since that is what a server
receives; figures named `float_...` are before rounding. T3 searches among 8-bit images to begin with. What is
judged is always the deployed network in float32. Thresholds come from the checkpoint's calibration on
validation images, or are taken from the validation split where it carries none.

The report is rewritten after every finished part, and a part's finished batches are kept beside it; started again
with the same set-up, the program goes on where it stopped.

Attacks are those of `attacks.catalogue.ATTACKS`: FGSM, PGD_sat, PGD_trades and CW_inf of the paper, its adaptive
attack (T2 only), each with its last iterate; PGD with restarts (`--pgd-restarts`), AutoAttack and its Square alone,
with the best one. `worst_case` is a part of its own, since it is the best case for the attacker over T1, T2 and forced
branches: what a table should quote as accuracy under attack. `--steps` gives all but FGSM another number of steps.
The data set is the one that the checkpoint was trained on. `--mode robust` judges the network as it answers by its
adversarial branch alone, whatever its detector says (the score is the same in all modes).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from domain.corruptions import CORRUPTIONS

from .attacks.ascent import Budget
from .attacks.catalogue import ATTACKS
from .attacks.evasion import EVASIONS, evasions_of
from .attacks.search import STEP
from .attacks.worst_case import WORST_CASE_BUDGET
from .core import files
from .core.hardware import device_of, multiplies_bfloat16
from .data.images import Split
from .data.sets import SETS, load_images
from .evaluation import detection
from .evaluation.attackers import load_surrogate
from .evaluation.judge import Evaluation
from .evaluation.report import ONE_STEP, PartProgress, Report
from .networks import checkpoint
from .networks.network import MODES, in_mode, must_detect
from .options import DATA_DIR_HELP, DEVICES
from .renames import OPTIONS, REPORT_PARTS, RenamedOption, run_table

LEVELS = ("T0", "T1", "T2", "T3")
WORST_CASE = "worst_case"
Part = Callable[[], dict[str, Any]]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m training.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, help="checkpoint of an AW-Net or a static network")
    add("--data-dir", type=Path, required=True, metavar="DIR", help=DATA_DIR_HELP)
    add("--data-set", choices=list(SETS), help="data set (default: the one that the checkpoint was trained on)")
    add("--out", type=Path, required=True, help="report (.json); tables are written beside it (.md)")
    add(
        "--attacks",
        nargs="+",
        default=["fgsm", "pgd_trades"],
        choices=[*ATTACKS, WORST_CASE],
        help="attacks at T0 to T2; worst_case is over T1 and T2 (default: fgsm pgd_trades)",
    )
    add("--levels", nargs="+", default=["T1", "T2"], choices=list(LEVELS), help="threat levels (default: T1 T2)")
    add(
        "--surrogate",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=FILE",
        help="networks whose adversarial images T0 passes on; needed there (default: none)",
    )
    add(
        "--mode", default="auto", choices=list(MODES), help="which branch answers, see docs/glossary.md (default: auto)"
    )
    add("--split", default="test", choices=["test", "validation"], help="images to judge on (default: test)")
    add("--limit", type=int, help="first N images (default: all)")
    add("--t0-limit", type=int, help="first N images for T0 (default: as --limit)")
    add("--t3-limit", type=int, default=1000, help="first N images for T3 (default: 1000)")
    add("--eps", type=float, default=8.0, help="L-infinity radius in units of 1/255 (default: 8)")
    add("--steps", type=int, help="steps of the iterative attacks at T0 to T2 (default: each attack's own)")
    add("--pgd-restarts", type=int, metavar="N", help="tries of pgd_restarts (default: 10)")
    add("--worst-case-restarts", type=int, metavar="N", help="rounds of all attacks of worst_case (default: 1)")
    add("--t3-steps", type=int, help="steps of each T3 attack (default: each attack's own)")
    add("--evasions", nargs="+", default=list(EVASIONS), choices=list(EVASIONS), help="T3 attacks (default: all)")
    add("--restarts", type=int, default=1, help="tries of each T3 attack (default: 1)")
    corruptions = parser.add_mutually_exclusive_group()
    corruptions.add_argument(
        "--no-corruptions", action="store_true", help="leave out the benign corruptions (all at strength 3)"
    )
    for old, new in OPTIONS["training.evaluate"].items():
        corruptions.add_argument(old, action=RenamedOption, dest=new.lstrip("-").replace("-", "_"), new=new)
    add("--cache", type=Path, help="folder that keeps T0 images for the next network (default: none are kept)")
    add("--batch-size", type=int, default=128, help="images computed at once (default: 128)")
    add("--threads", type=int, help="CPU threads (default: torch's)")
    add("--device", default="cpu", help=DEVICES)
    add("--bf16", action="store_true", help="attackers' gradients at T0 to T2 in bfloat16; judgement stays float32")
    add("--seed", type=int, default=0, help="seed of the attacks' random numbers (default: 0)")
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
        parser.exit(2, f"error: {error}\n")


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Every part that the options ask for and the report does not hold yet."""
    device = device_of(args.device)
    if args.bf16 and not multiplies_bfloat16(device):
        args = argparse.Namespace(**{**vars(args), "bf16": False})
        tqdm.write("--bf16: this CPU has no instructions for bfloat16, so attackers' gradients are in float32")
    if "T0" in args.levels and not args.surrogate:
        raise ValueError("T0 needs at least one --surrogate")
    loaded = checkpoint.load(args.ckpt)
    network = in_mode(loaded.network, args.mode)
    trained_on = replace(loaded.source, set=args.data_set) if args.data_set else loaded.source
    dataset = load_images(trained_on, args.data_dir)
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
        "sha256": files.sha256(args.ckpt),
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
    if trained_on.set != "cifar10":
        setup["set"] = trained_on.set
    if args.mode != "auto":
        setup["mode"] = args.mode
    if args.pgd_restarts:
        setup["pgd_restarts"] = args.pgd_restarts
    if args.worst_case_restarts:
        setup["worst_case_restarts"] = args.worst_case_restarts
    report = Report(args.out, setup, fresh=args.fresh)
    progress = PartProgress(args.out.with_suffix(".progress.pt"), setup | {"batch_size": args.batch_size})
    if args.fresh:
        progress.end()
    run = Evaluation.start(network, split, thresholds, args.batch_size, device, args.bf16, progress)
    for name, make in planned(run, args, device):
        if name in report.parts:
            continue
        torch.manual_seed(args.seed + part_seed(name))  # a resumed run repeats what it would have done
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


def part_seed(name: str) -> int:
    """The seed of a part's random numbers: a hash of the first name that the part had, so that renames move none."""
    for old, new in REPORT_PARTS.items():
        if name.startswith(f"{new}/"):
            name = old + name.removeprefix(new)
    return zlib.crc32(name.encode())


def planned(run: Evaluation, args: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Part]]:
    """(name, function that makes the part) of everything asked for, cheap parts first."""
    yield "clean", run.clean
    yield "zero_gradients", run.zero_gradients
    if not args.no_corruptions:
        for name in CORRUPTIONS:
            yield f"corruptions/{name}", partial(run.corruption, name, seed=args.seed)
    budgets = {}
    for attack in args.attacks:
        if attack == WORST_CASE:
            continue
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
    if WORST_CASE in args.attacks:
        own = WORST_CASE_BUDGET
        restarts = args.worst_case_restarts or own.restarts
        budget = replace(own, eps=args.eps / 255, steps=args.steps or own.steps, restarts=restarts)
        yield WORST_CASE, partial(run.worst_case, budget)
    if "T3" in args.levels and run.detects:
        there = evasions_of(must_detect(run.net))
        for name in args.evasions:
            if name not in there:
                tqdm.write(f"T3/{name} is another one's attack where one branch answers: left out")
                continue
            steps = args.t3_steps or there[name].steps
            budget = Budget(args.eps / 255, STEP, steps)
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

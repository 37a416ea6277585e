"""Calibrates a checkpoint again: thresholds and a score map for each domain of natural images, and a report of them.

    python -m training.calibrate --ckpt best.pt --data-dir D --out calibrated.pt --report report.json \\
        --surrogate vgg11=surrogate.pt
    python -m training.calibrate --ckpt best.pt --data-dir D --out calibrated.pt --images 100 --attacked 40 --evaded 4

The weights stay as they are; `export.onnx --ckpt calibrated.pt` makes a model file of the result. Everything is
measured on the validation split: false-positive rates of every benign corruption and of images from elsewhere before
and after, true-positive rates at T0, the share of attacked images that the ranges leave out, and how far score and
probability are from the truth (Brier, ECE), on images that the map was not fitted on.

Exit status: 0; 2 where nothing could be calibrated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from domain.corruptions import CORRUPTIONS, STRENGTHS
from domain.statistics import STATISTICS

from .attacks.ascent import Budget, Model
from .attacks.copies import attackers_copy
from .attacks.evasion import EVASIONS, evade
from .core import files
from .core.hardware import device_of
from .data.images import Split, to_bytes, to_pixels
from .data.sets import load_images
from .evaluation.attackers import load_surrogate, prepared
from .evaluation.calibration import STRETCH, Sample, assigned, attacked, calibrate_domains, rates_of
from .evaluation.calibration_report import MIDDLE, described, left_by, microseconds, row, rows, table, tolerance_table
from .evaluation.detection import calibrate
from .evaluation.pictures import PICTURES, changed
from .evaluation.probability import Groups, brier, expected_calibration_error, fit_score_map
from .evaluation.tolerance import MOST_FLAGGED, chosen, compared, of_group, tolerant
from .networks import checkpoint
from .networks.checkpoint import Domain
from .networks.network import DetectingNetwork
from .options import DATA_DIR_HELP, DEVICES

T3_SAMPLE = ("selective_nat", "lambda_1", "two_gradients")  # evasions whose images are looked at
AFTERWARDS = ("contrast", "brightness", "jpeg", "median", "posterise")  # what an attacker may do last of all


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m training.calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, help="checkpoint of a network with a detector")
    add("--data-dir", type=Path, required=True, metavar="DIR", help=DATA_DIR_HELP)
    add("--out", type=Path, required=True, help="the checkpoint with its new calibration (.pt)")
    add("--report", type=Path, help="what was measured (.json); a table is written beside it (default: none)")
    add(
        "--surrogate",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=FILE",
        help="networks whose adversarial images are T0 (default: none, and the map is fitted on T2 alone)",
    )
    add("--images", type=int, default=1500, help="images of each kind at strength 3; a fifth at others (default: 1500)")
    add("--attacked", type=int, default=1000, help="images that are attacked at T0 and T2 (default: 1000)")
    add("--evaded", type=int, default=200, help="images that are attacked at T1 and T3 (default: 200)")
    add("--steps", type=int, default=20, help="steps of PGD (default: 20)")
    add(
        "--tolerated",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="SHARE",
        help="raise adversarial thresholds until no training kind of corruption, at no strength, has more than this "
        "share of its images over its domain's; of several, each domain takes the largest one with which no judging "
        f"kind has more than {100 * MOST_FLAGGED:g} %% of its images over them (default: 1, they are quantiles of each "
        "domain's images)",
    )
    add("--threads", type=int, help="CPU threads (default: torch's)")
    add("--device", default="cpu", help=DEVICES)
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns the report."""
    parser = arguments()
    args = parser.parse_args(argv)
    try:
        return recalibrate(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


def recalibrate(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, then writes the checkpoint and the report."""
    for name, least in (("images", 10), ("attacked", 4), ("evaded", 1), ("steps", 1)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} must be at least {least}")
    if not all(0 < share <= 1 for share in args.tolerated):
        raise ValueError("--tolerated is a share, above 0 and at most 1")
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError("--threads must be at least 1")
        torch.set_num_threads(args.threads)
    if args.report and args.report.suffix != ".json":
        raise ValueError(f"--report {args.report} is no .json file")
    device = device_of(args.device)
    loaded = checkpoint.load(args.ckpt)
    net = loaded.network.detecting
    if net is None:
        raise ValueError(f"{args.ckpt} holds a {loaded.kind} network, which has no detector to calibrate")
    prepared(net, device)
    split = load_images(loaded.source, args.data_dir).validation
    surrogates = [load_surrogate(spec, device) for spec in args.surrogate]
    for path in filter(None, (args.out, args.report)):
        files.check_writable(path)
    models: dict[str, Model] = {f"T0 {s.name}": attackers_copy(s.network, "T2") for s in surrogates}
    models["T2"] = attackers_copy(net, "T2")
    before = (loaded.calibration or calibrate(net, split.images.split(500))).thresholds
    images = hostile_images(net, models, split.on(device), args, before)
    calibration = calibrate_domains(net, split, [images[f"{name} 8/255"] for name in models])
    hostile = {name: Sample.of(net, x) for name, x in images.items()}
    for name in (name for name in images if name.startswith("T0") and not name.endswith(" 2/255")):
        hostile |= {f"{name}, then {k}": Sample.of(net, changed(images[name], k, MIDDLE)) for k in AFTERWARDS}
    for name in (f"{model} 8/255" for model in models):
        hostile[f"{name}, then {STRETCH[0]}"] = Sample.of(net, changed(images[name], *STRETCH))
    natural = natural_samples(net, split, args)
    training, judging = (of_group(natural, group) for group in ("training", "judging"))
    tolerated = chosen(calibration.domains, training, judging, args.tolerated)
    tolerances = compared(calibration.domains, natural, hostile, args.tolerated, tolerated)
    domains, maps = with_maps(tolerant(calibration.domains, training, tolerated), natural, hostile)
    kinds = {(name, strength): s for (name, strength), s in natural.items() if strength}
    rates = [
        rates_of(i, domains, natural["pristine", 0], kinds, t0_of(hostile, domain)) for i, domain in enumerate(domains)
    ]
    calibration = replace(calibration, domains=[replace(d, rates=r) for d, r in zip(domains, rates, strict=True)])
    report = {
        "setup": {
            "checkpoint": args.ckpt.name,
            "sha256": files.sha256(args.ckpt),
            "split": "validation",
            "surrogates": {s.name: s.sha256 for s in surrogates},
            **{name: getattr(args, name) for name in ("images", "attacked", "evaded", "steps", "tolerated")},
        },
        "tolerances": tolerances,
        "thresholds_before": {str(f): t for f, t in before.items()},
        "domains": [described(domain) for domain in calibration.domains],
        "natural": {
            name: rows(name, natural, calibration.domains, before)
            for name in dict.fromkeys(name for name, _ in natural)
        },
        "attacked": {name: row(s, calibration.domains, before) for name, s in hostile.items()},
        "statistics": {name: left_by(i, natural, hostile, calibration.domains[0]) for i, name in enumerate(STATISTICS)},
        "score_map": maps,
        "measure_microseconds": microseconds(split.images),
    }
    document = checkpoint.read(args.ckpt)
    checkpoint.save(args.out, {**document, "calibration": asdict(calibration)})
    if args.report:
        files.write_json(args.report, report)
        title = f"# Calibration of {args.ckpt.name}"
        files.write_text(args.report.with_suffix(".md"), f"{title}\n\n{tolerance_table(report)}\n\n{table(report)}\n")
    return report


def hostile_images(
    net: DetectingNetwork,
    models: Mapping[str, Model],
    split: Split,
    args: argparse.Namespace,
    before: Mapping[float, float],
) -> dict[str, Tensor]:
    """Name -> uint8 images: T0 and T2 at 8, 4 and 2/255; T1 and some evasions at 8/255, of fewer images."""
    found = {}
    work = [(name, eps, args.attacked if eps == 8 else args.attacked // 2) for name in models for eps in (8, 4, 2)]
    for name, eps, n in tqdm([*work, ("T1", 8, args.evaded)], desc="attacks", disable=None):
        model = models[name] if name in models else attackers_copy(net, "T1")
        found[f"{name} {eps}/255"] = attacked(model, split.head(n), eps, args.steps).cpu()
    few, target = split.head(args.evaded), before[max(before)]
    for name in tqdm(T3_SAMPLE, desc="evasions", disable=None):
        torch.manual_seed(0)
        budget = Budget(8 / 255, 2 / 255, 2 * args.steps)
        parts = [
            evade(net, to_pixels(x), y, budget, EVASIONS[name], target).x_adv
            for x, y in zip(few.images.split(100), few.labels.split(100), strict=True)
        ]
        found[f"T3 {name} 8/255"] = to_bytes(torch.cat(parts)).cpu()
    return found


def natural_samples(net: DetectingNetwork, split: Split, args: argparse.Namespace) -> dict[tuple[str, int], Sample]:
    """(name, strength) -> sample: all pristine images, every corruption, images from elsewhere; strength 0 is none."""
    images = split.images.cpu()
    found = {("pristine", 0): Sample.of(net, images)}
    for name in tqdm(CORRUPTIONS, desc="corruptions", disable=None):
        for strength in STRENGTHS:
            n = args.images if strength == MIDDLE else args.images // 5
            start = (strength - 1) * len(images) // len(STRENGTHS)
            chosen = images.roll(-start, 0)[:n]
            found[name, strength] = Sample.of(net, changed(chosen, name, strength, seed=1))
    for name, (_, load) in PICTURES.items():
        try:
            found[name, 0] = Sample.of(net, load(args.data_dir, args.images, images.shape[-1]))
        except FileNotFoundError as error:
            tqdm.write(f"left out: {name}: {error}")
    return found


def with_maps(
    domains: Sequence[Domain], natural: Mapping[tuple[str, int], Sample], hostile: Mapping[str, Sample]
) -> tuple[list[Domain], dict[str, Any]]:
    """Maps fitted on every other image, and the errors of score and probability on the rest.

    T0 (of each surrogate) and T2 at 8/255 in equal parts are the attacked half, in "stretched" after a change of
    contrast. The benign half is, of "pristine", the pristine images in it, of the others those of all training kinds
    that belong to them; of "served" pristine images and training kinds at all strengths in equal parts, where each
    image, attacked ones too, is mapped by its own domain.
    """
    training = [s for (name, _), s in natural.items() if name in CORRUPTIONS and CORRUPTIONS[name].group == "training"]
    fit, held_out = slice(None, None, 2), slice(1, None, 2)
    mapped, maps, errors = [], [], {}
    for number, domain in enumerate(domains):
        attacks = [s.scores for s in eight(hostile, domain)]
        groups = training if number else [natural["pristine", 0]]
        own = [s[assigned(s.statistics, domains) == number].scores for s in groups]
        fitted = fit_score_map(torch.cat([s[fit] for s in own]), [a[fit] for a in attacks])
        maps.append(fitted)
        mapped.append(replace(domain, map_scores=fitted.scores, map_probabilities=fitted.probabilities))
        benign, left = [torch.cat([s[held_out] for s in own])], [a[held_out] for a in attacks]
        errors[domain.name] = _errors(benign, left, [fitted(s) for s in benign], [fitted(a) for a in left])

    def served(sample: Sample) -> NDArray[np.float64]:
        where = assigned(sample.statistics, domains)
        return np.choose(where, [m(sample.scores) for m in maps], mode="wrap")  # -1, in none, is the last one

    sides = [[s[held_out] for s in side] for side in ([natural["pristine", 0], *training], eight(hostile, domains[0]))]
    scores = [[s.scores for s in side] for side in sides]
    errors["served"] = _errors(scores[0], scores[1], [served(s) for s in sides[0]], [served(s) for s in sides[1]])
    return mapped, errors


def eight(hostile: Mapping[str, Sample], domain: Domain) -> list[Sample]:
    """T0 and T2 at 8/255 as they come to a domain: to "stretched" after a change of contrast."""
    end = " 8/255" + (f", then {STRETCH[0]}" if domain.name == "stretched" else "")
    return [s for name, s in hostile.items() if name.startswith(("T0", "T2")) and name.endswith(end)]


def _errors(benign: Sequence[Tensor], attacks: Sequence[Tensor], p_benign: Groups, p_attacks: Groups) -> dict[str, Any]:
    """Brier and ECE of scores read as probabilities, and of the probabilities."""
    raw = ([s.double().numpy() for s in benign], [s.double().numpy() for s in attacks])
    return {
        "images": [sum(map(len, side)) for side in raw],
        "brier": {"score": brier(*raw), "probability": brier(p_benign, p_attacks)},
        "ece": {
            "score": expected_calibration_error(*raw),
            "probability": expected_calibration_error(p_benign, p_attacks),
        },
    }


def t0_of(hostile: Mapping[str, Sample], domain: Domain) -> dict[str, Tensor]:
    """Scores of T0 images as they come to a domain, see `eight`, by eps in 255ths."""
    found = {}
    for eps in ("8", "4"):
        end = f" {eps}/255" + (f", then {STRETCH[0]}" if domain.name == "stretched" else "")
        if scores := [s.scores for name, s in hostile.items() if name.startswith("T0") and name.endswith(end)]:
            found[eps] = torch.cat(scores)
    return found


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        sys.exit(130)

"""`training.audit`: every threat level, its controls, false positives, and whether the audit itself can be believed."""

from __future__ import annotations

import argparse
import datetime
import math
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from ..attacks.rejection import MaxSoftmax, SeparateDetector
from ..attacks.search import Detecting
from ..core.files import sha256, write_json
from ..core.hardware import device_of
from ..data.images import ImageSet
from ..data.sets import load_images
from ..evaluation import detection
from ..evaluation.attackers import load_surrogate, prepared
from ..evaluation.judge import Evaluation
from ..evaluation.report import PartProgress
from ..networks import checkpoint
from ..networks.network import Network, in_mode
from . import linter, plots
from .card import card
from .groups import Group, groups
from .options import PROG, audit_parser
from .parts import EPS, Audit
from .plan import plan
from .report import AuditReport
from .subject import Speed, Subject, measured


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """The command line, as `prog`; returns the exit status."""
    parser = audit_parser(prog)
    args = parser.parse_args(argv)
    try:
        document = audit(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    failing = linter.failures([linter.Finding(**f) for f in document["findings"]])
    for check in failing:
        print(f"the linter fails: {check}", file=sys.stderr)
    for name, reason in document["failed"].items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    print(args.out / "audit.md")
    return 1 if failing or document["failed"] else 0


def audit(args: argparse.Namespace) -> dict[str, Any]:
    """Every part that the report does not hold yet; returns its document."""
    counts = [n for n in (args.limit, args.threads, args.batch_size) if n is not None]
    if not 0 < args.budget < math.inf or min(counts) < 1:
        raise ValueError("--budget, --limit, --threads and --batch-size are positive, and none of them is infinite")
    device = device_of(args.device)
    loaded = checkpoint.load(args.ckpt)
    static = checkpoint.load(args.static) if args.static else None
    if static is not None and static.network.detecting is not None:
        raise ValueError(f"--static takes a network without a detector; {args.static} has one")
    detector = checkpoint.load(args.detector) if args.detector else loaded
    if args.detector and detector.network.detecting is None:
        raise ValueError(f"--detector takes a network with a detector; {args.detector} has none")
    data = load_images(loaded.source, args.data_dir)
    surrogates = [load_surrogate(spec, device) for spec in args.surrogate]
    one = prepared(in_mode(loaded.network, args.mode), device)
    setup = setup_of(args, loaded, data) | {
        "surrogates": {s.name: s.sha256 for s in surrogates},
        "thresholds": {str(f): t for f, t in thresholds(one, loaded.calibration, data, args.batch_size).items()},
    }
    report = AuditReport(args.out / "audit.json", setup, args.fresh)
    progress = PartProgress(args.out / "audit.progress.pt", setup)
    if args.fresh:
        progress.end()
    torch.set_num_threads(args.threads or report.plan.get("threads") or faster_threads(one, data))

    test = data.test.head(args.limit)
    kept = report.plan.get("images", {}).get("clean")  # the first group is never left out
    test = test.head(kept or affordable(measured(one, data.validation), 60 * args.budget, len(test)))

    def subject(title: str, net: Network, calibration: checkpoint.Calibration | None) -> Subject:
        rates = thresholds(net, calibration, data, args.batch_size)
        run = Evaluation.start(net, test, rates, args.batch_size, device, progress=progress)
        target = Detecting(net.detecting) if net.detecting is not None else None
        domains = calibration.domains if calibration else []
        return Subject(title, run, target, measured(run.net, data.validation), domains)

    tqdm.write("answers to the clean images", file=sys.stderr)
    first = subject("", one, loaded.calibration)
    controls = [] if static is None else [subject("static", static.network, None)]
    classifier = controls[0] if controls else first if first.target is None else None
    if classifier is not None:
        net = classifier.run.net
        controls.append(classifier.control("max_softmax", MaxSoftmax(net), data.validation))
        if (other := detector.network.detecting) is not None:
            prepared(other, device)
            target, calibration = SeparateDetector(net, other), detector.calibration
            rates = thresholds(other, calibration, data, args.batch_size)
            domains = calibration.domains if calibration else []
            controls.append(classifier.control("separate_detector", target, data.validation, rates, domains))
    attackers = [(s, measured(s.network, data.validation)) for s in surrogates]
    made_by = {"network": setup["sha256"]} | ({"mode": args.mode} if args.mode != "auto" else {})
    made_by |= {c: setup[c]["sha256"] for c in ("static", "detector") if setup[c]}
    made_by |= {f"surrogate {s.name}": s.sha256 for s in surrogates}
    about = ", ".join([*(f"{who} {sum_[:16]}" for who, sum_ in made_by.items()), f"seed {args.seed}"])
    bench = Audit(first, controls, attackers, args.out, about, args.data_dir, args.onnx)
    chosen = chosen_of(groups(bench), args.parts)
    if not report.plan:
        report.plan = planned(chosen, 60 * args.budget)
    if not surrogates:
        report.notes.append("No --surrogate: T0 was not measured")
    if static is None and loaded.network.detecting is not None:
        report.notes.append("No --static: there is no control beside this network")
    run_parts(chosen, report, progress, args.seed)
    document = report.write()
    plots.draw(document, args.out)
    write_json(args.out / "card.json", card(document))
    return document


def setup_of(args: argparse.Namespace, loaded: checkpoint.Checkpoint, data: ImageSet) -> dict[str, Any]:
    """What every part of the report depends on, but for surrogates and thresholds."""
    setup = {
        "checkpoint": args.ckpt.name,
        "sha256": sha256(args.ckpt),
        "kind": loaded.kind,
        "mode": args.mode,
        "recipe": loaded.recipe.get("name", ""),
        "parameters": sum(p.numel() for p in loaded.network.parameters()),
        "labels": loaded.labels,
        "image_size": data.test.images.shape[-1],
        "set": loaded.source.set,
        "eps": EPS,
        "seed": args.seed,
        "budget_minutes": args.budget,
        "limit": args.limit,
        "groups": args.parts,
        "batch_size": args.batch_size,
    }
    for control, path in (("static", args.static), ("detector", args.detector), ("onnx", args.onnx)):
        setup[control] = {"file": path.name, "sha256": sha256(path)} if path else None
    return setup


def chosen_of(there: Sequence[Group], names: Sequence[str] | None) -> list[Group]:
    """The groups of these names, all where none are given; ValueError where there is no such group."""
    if unknown := sorted(set(names or ()) - {g.name for g in there}):
        raise ValueError(f"no group {', '.join(unknown)}: there are {', '.join(g.name for g in there)}")
    return [g for g in there if not names or g.name in names]


def planned(chosen: Sequence[Group], budget: float) -> dict[str, Any]:
    """`plan` for a budget in seconds, as the report keeps it: with the parts of each group, threads and date."""
    return plan([g.cost for g in chosen], budget).document() | {
        "groups": {g.name: [n for n, _ in g.parts] for g in chosen},
        "wanted": {g.name: g.cost.wanted for g in chosen},
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def affordable(speed: Speed, budget: float, images: int) -> int:
    """How many clean images are asked about: what the network answers in a hundredth of the budget (seconds), and at
    least as many as any other part wants."""
    return min(images, max(1000, int(0.01 * budget / speed.forward)))


def run_parts(chosen: Sequence[Group], report: AuditReport, progress: PartProgress, seed: int) -> None:
    """Each planned part once, in order; a part that raises is noted, and tried again by the next run."""
    images, seconds = report.plan["images"], report.plan["seconds"]
    todo = [(g, name, make) for g in chosen if g.name in images for name, make in g.parts]
    expected = {name: seconds[g.name] / len(g.parts) for g, name, _ in todo}
    for i, (group, name, make) in enumerate(todo):
        if name in report.parts:
            continue
        torch.manual_seed(seed + zlib.crc32(name.encode()))  # a resumed audit repeats what it would have done
        progress.begin(name)
        try:
            part = make(images[group.name])
        except Exception as error:  # named in the report and in the exit status
            report.failed[name] = f"{type(error).__name__}: {error}"
            report.write()
            tqdm.write(f"{name} failed: {report.failed[name]}", file=sys.stderr)
            continue
        report.put(name, part | {"seconds": round(progress.seconds, 1)})
        progress.end()
        tqdm.write(f"{name}: {words(part)}; {i + 1} of {len(todo)}, {left(report, expected)}", file=sys.stderr)


def left(report: AuditReport, expected: dict[str, float]) -> str:
    """About how long the rest takes, from what the finished parts took against what was expected of them."""
    finished = [name for name in expected if name in report.parts]
    took = sum(report.parts[name].get("seconds", 0.0) for name in finished)
    planned = sum(expected[name] for name in finished)
    ratio = min(5.0, max(0.2, took / planned)) if planned else 1.0
    rest = sum(s for name, s in expected.items() if name not in report.parts and name not in report.failed)
    return f"about {max(1, round(rest * ratio / 60))} min left" if rest else "done"


def words(part: dict[str, Any]) -> str:
    """A finished part in a few words."""
    if part.get("missing"):
        return "left out, the data set is not in --data-dir"
    found = [f"{key} {part[key]:.3f}" for key in ("accuracy", "auroc", "brier") if key in part]
    for key in ("tpr", "fpr", "sr_at"):
        if "0.05" in part.get(key, {}):
            found.append(f"{key.removesuffix('_at')}@5% {part[key]['0.05']:.3f}")
    return ", ".join(found) or "finished"


def thresholds(
    net: Network, calibration: checkpoint.Calibration | None, data: ImageSet, batch_size: int
) -> dict[float, float]:
    """False-positive rate -> score: the checkpoint's, or those of the validation images; none without a detector."""
    if net.detecting is None:
        return {}
    if calibration is None:
        calibration = detection.calibrate(net.detecting, data.validation.images.split(batch_size))
    return dict(calibration.thresholds)


def faster_threads(net: Network, data: ImageSet) -> int:
    """One thread, or torch's own number where a gradient is faster with it: it is not where others use the cores."""
    many = torch.get_num_threads()
    speeds: dict[int, Speed] = {}
    for threads in {1, many}:
        torch.set_num_threads(threads)
        speeds[threads] = measured(net, data.validation, seconds=1.0)
    return min(speeds, key=lambda t: speeds[t].gradient)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last finished batches", file=sys.stderr)
        sys.exit(130)

"""Chooses what a checkpoint answers with: clean and worst-case accuracy, AutoAttack and false positives of each point.

    python -m training.operating_points --ckpt best.pt --data-dir D --out points
    python -m training.operating_points --ckpt best.pt --data-dir D --out points --limits 0.4 0.49 --temperatures 1 2 4
    python -m training.operating_points --ckpt best.pt --data-dir D --out points --write chosen.pt

The points are the modes "robust" and "natural" (one branch answers), "auto" with Eq. 16, and "auto" with bounded mixing
at every limit (a_max) and every temperature (T) given. Everything is measured on the validation split. Clean accuracy
comes from logits that are computed once; the worst case is searched for every point that no other one beats, and each
image that is found is tried on all points. The default is, by docs/decisions/0019-the-operating-point.md, the point of
mode "auto" with the highest worst case among those whose clean accuracy is at least --least-clean.

Writes OUT/points.json, OUT/points.md and OUT/frontier.svg (.png); OUT/points.pt keeps what was found, so that the same
command, or one with other limits and temperatures, goes on from there after Ctrl-C. --write copies the checkpoint with
the mixing of the point chosen; its weights and its calibration stay, since the detector does not depend on the mixing.

Exit status: 0; 1 where no point is clean enough to be chosen; 2 where nothing could be measured; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .attacks.ascent import Budget
from .attacks.catalogue import ATTACKS
from .attacks.worst_case import WORST_CASE_BUDGET, members_of, worst_case
from .core import files
from .core.hardware import device_of, multiplies_bfloat16
from .data.images import Split, to_bytes, to_pixels
from .data.sets import load_images
from .evaluation.attackers import prepared, weights_sha256
from .evaluation.calibration import Sample
from .evaluation.detection import calibrate
from .evaluation.frontier import Attacked, Frontier, beaten, next_point, who_broke
from .evaluation.natural import false_positives, flagged_as_served, share
from .evaluation.points import FIXED, Point, grid, outputs_of
from .evaluation.points_report import LEAST_CLEAN, chosen_of, draw, markdown, tied
from .networks import checkpoint
from .networks.network import Network
from .options import DATA_DIR_HELP, DEVICES

LIMITS = (0.4, 0.49)
TEMPERATURES = (0.5, 0.75, 1.0, 2.0, 4.0)
FORMAT = 1


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m training.operating_points", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, metavar="FILE", help="checkpoint of an AW-Net with two branches")
    add("--data-dir", type=Path, required=True, metavar="DIR", help=DATA_DIR_HELP)
    add("--out", type=Path, required=True, metavar="DIR", help="receives the report, the plot and what was found")
    add("--limits", type=float, nargs="+", default=LIMITS, metavar="A", help=f"a_max (default: {words(LIMITS)})")
    add("--temperatures", type=float, nargs="+", default=TEMPERATURES, metavar="T", help=f"({words(TEMPERATURES)})")
    add("--images", type=int, default=300, metavar="N", help="validation images that are attacked (default: 300)")
    add("--autoattack", type=int, default=40, metavar="N", help="of them by AutoAttack, 0: none (default: 40)")
    add("--natural", type=int, default=60, metavar="N", help="images of each kind and strength (default: 60)")
    add("--static", type=Path, metavar="FILE", help="a static network as control (default: none)")
    add("--least-clean", type=float, default=LEAST_CLEAN, metavar="SHARE", help=f"of the rule (default: {LEAST_CLEAN})")
    add("--write", type=Path, metavar="FILE", help="the checkpoint with the mixing of the point chosen (.pt)")
    add("--eps", type=float, default=8.0, help="L-infinity radius in units of 1/255 (default: 8)")
    add("--steps", type=int, default=WORST_CASE_BUDGET.steps, help="of each attack (default: %(default)s)")
    add("--batch-size", type=int, default=100, metavar="N", help="images computed at once (default: 100)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    add("--device", default="cpu", help=DEVICES)
    add("--bf16", action="store_true", help="attackers' gradients in bfloat16; judgement stays float32")
    add("--seed", type=int, default=0, help="seed of the attacks' random numbers (default: 0)")
    add("--fresh", action="store_true", help="begin anew instead of going on from what --out holds")
    return parser


def words(numbers: Sequence[float]) -> str:
    return " ".join(f"{n:g}" for n in numbers)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = arguments()
    args = parser.parse_args(argv)
    try:
        document = measure(args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(args.out / "points.md")
    if document["chosen"] is None:
        print(f"no point of mode auto has {args.least_clean:.1%} clean accuracy: none is chosen", file=sys.stderr)
        return 1
    print(f"chosen: {document['chosen']}")
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that `--out` does not hold yet; returns the report's document."""
    check(args)
    device = device_of(args.device)
    bf16 = args.bf16 and multiplies_bfloat16(device)
    if args.threads:
        torch.set_num_threads(args.threads)
    loaded = checkpoint.load(args.ckpt)
    net, weights = loaded.awnet, weights_sha256(loaded.network)
    prepared(net, device)
    points = grid(args.limits, args.temperatures)
    for point in points:
        point.network(net)  # refuses what this network cannot be
    static = checkpoint.load(args.static).network if args.static else None
    if static is not None and static.detecting is not None:
        raise ValueError(f"--static takes a network without a detector; {args.static} has one")
    split = load_images(loaded.source, args.data_dir).validation
    attacked = split.head(args.images)
    calibration = loaded.calibration or calibrate(net, split.images.split(500))
    setup = {
        "weights": weights,  # all that the search depends on: a new calibration moves no class
        "set": loaded.source.set,
        "images": len(attacked),
        "eps": args.eps,
        "steps": args.steps,
        "members": {p.name: [m.name for m in members_of(p.network(net))] for p in grid([0.25], [1.0])},
        "bf16": bf16,
        "seed": args.seed,
    }
    kept = Kept.read(args.out, setup, args.fresh)
    about = {"checkpoint": args.ckpt.name, "sha256": files.sha256(args.ckpt)}
    about |= {"parameters": sum(p.numel() for p in net.parameters()), "clean_images": len(split)}

    tqdm.write("clean answers", file=sys.stderr)
    outputs = outputs_of(net, (to_pixels(x.to(device)) for x in split.images.split(250)))
    labels = split.labels.to(device)
    clean = [share((point.logits(outputs).argmax(1) == labels).cpu()) for point in points]
    x, y = to_pixels(attacked.images.to(device)), attacked.labels.to(device)
    start = [c for c, _, _ in clean]
    frontier = Frontier(
        net, points, start, x, y, args.eps / 255, args.steps, args.seed, args.batch_size, bf16, kept.found
    )

    def document() -> dict[str, Any]:
        found = {k: v for k, v in kept.parts.items() if k != "flagged"} | {"points": rows(frontier, clean, kept.parts)}
        chosen = chosen_of(found["points"], args.least_clean)
        done = {"done": next_point(frontier.standings()) is None, "chosen": chosen}
        return {"format": FORMAT, **about, "setup": setup, "least_clean": args.least_clean, **found, **done}

    if static is not None and kept.parts["static"] is None:
        kept.parts["static"] = control(static, args.static, split, attacked, args, device)
        kept.write(frontier.state(), document())
    if args.natural and kept.parts["calibrated"] != about["sha256"]:
        kinds = false_positives(net, calibration, split.images, args.data_dir, args.natural)
        kept.parts |= {"false_positives": kinds, "calibrated": about["sha256"]}
        kept.write(frontier.state(), document())
    search(frontier, lambda: kept.write(frontier.state(), document()))
    for name in asked_of_autoattack(document()) if args.autoattack else []:
        if kept.parts["autoattack"].get(name, {}).get("images") != args.autoattack:
            one = next(a for a in frontier.attacked if a.point.name == name)
            kept.parts["autoattack"][name] = autoattacked(one.net, attacked.head(args.autoattack), args)
            kept.write(frontier.state(), document())
    kept.parts["flagged"] = {a.point.name: alarms(a, calibration) for a in frontier.attacked if a.run == len(a.members)}
    whole = document()
    kept.write(frontier.state(), whole)
    draw(whole, args.out / "frontier")
    if args.write and whole["chosen"] is not None:
        point = next(p for p in points if p.name == whole["chosen"])
        write(args.ckpt, args.write, point, about["sha256"])
    return whole


def check(args: argparse.Namespace) -> None:
    """ValueError or OSError for what could not end well."""
    for name in ("images", "steps", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if min(args.autoattack, args.natural) < 0 or (args.threads or 1) < 1:
        raise ValueError("--autoattack and --natural are not negative, and --threads is at least 1")
    if not 0 <= args.least_clean <= 1:
        raise ValueError("--least-clean is a share from 0 to 1")
    if args.eps < 1:
        raise ValueError("--eps must be at least 1 (of 255): a smaller ball holds no other 8-bit image")
    for path in filter(None, (args.out / "points.json", args.write)):
        files.check_writable(path)


class Kept:
    """What --out holds of the same set-up: finished parts of the report, and what the search found."""

    def __init__(self, folder: Path, parts: dict[str, Any], found: dict[str, Any] | None) -> None:
        self.folder, self.parts, self.found = folder, parts, found

    @classmethod
    def read(cls, folder: Path, setup: Mapping[str, Any], fresh: bool) -> Kept:
        """ValueError where the folder holds another set-up's, or what is no report."""
        parts: dict[str, Any] = {
            "static": None,
            "false_positives": {},
            "calibrated": None,
            "autoattack": {},
            "flagged": {},
        }
        report, state = folder / "points.json", folder / "points.pt"
        if fresh or not report.is_file():
            return cls(folder, parts, None)
        try:
            old = json.loads(report.read_text("utf-8"))
            was, parts = old["setup"], {key: old.get(key, default) for key, default in parts.items()}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{report} is no report of this program; choose another --out") from error
        now = json.loads(json.dumps(setup))
        if differing := sorted(k for k in now.keys() | was.keys() if now.get(k) != was.get(k)):
            raise ValueError(
                f"{report} was made with another set-up ({', '.join(differing)}): another --out, or --fresh"
            )
        try:
            found = torch.load(state, weights_only=True)
        except Exception:  # torch raises half a dozen types; what a missing or damaged file held is searched for again
            found = {"setup": None}
        return cls(folder, parts, found["points"] if found["setup"] == now else None)

    def write(self, found: Mapping[str, Any], document: Mapping[str, Any]) -> None:
        """All files, each whole or not at all."""
        setup = json.loads(json.dumps(document["setup"]))
        files.save(self.folder / "points.pt", {"setup": setup, "points": dict(found)})
        files.write_json(self.folder / "points.json", document)
        files.write_text(self.folder / "points.md", markdown(document))


def search(frontier: Frontier, write: Any) -> None:
    """Steps until every point that is not beaten is finished, with a line after each."""
    began, runs, written = time.perf_counter(), 0, time.perf_counter()
    while (one := frontier.step()) is not None:
        runs += 1
        standings = frontier.standings()
        rest = sum(s.members - s.run for i, s in enumerate(standings) if not s.finished and not beaten(standings, i))
        minutes = rest * (time.perf_counter() - began) / runs / 60
        tqdm.write(
            f"{one.point.name}: {one.members[one.run - 1].name}, {one.left:.1%} of {len(frontier.y)} images left; "
            f"some {rest} runs and about {max(1, round(minutes))} min to go",
            file=sys.stderr,
        )
        if time.perf_counter() - written > 30 or next_point(standings) is None:
            write()
            written = time.perf_counter()


def alarms(one: Attacked, calibration: checkpoint.Calibration) -> dict[str, Any]:
    """Rate -> [share, low, high] of the worst-case images that a server flags, the attackers having ignored that."""
    flags = flagged_as_served(Sample.of(one.net, to_bytes(one.best.x_adv)), calibration)
    return {str(fpr): share(found) for fpr, found in flags.items()}


def rows(frontier: Frontier, clean: Sequence[Sequence[float]], parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a point, as the report has them."""
    standings, found = frontier.standings(), []
    for i, (one, of_clean) in enumerate(zip(frontier.attacked, clean, strict=True)):
        found.append(
            {
                "name": one.point.name,
                "mode": one.point.mode,
                **one.point.changes(),
                "clean": list(of_clean),
                "worst_case": share(one.best.margin.cpu() <= 0),
                "finished": standings[i].finished,
                "beaten": beaten(standings, i),
                "members_run": one.run,
                "broken_first_by": who_broke(one),
                "autoattack": parts["autoattack"].get(one.point.name),
                "flagged": parts["flagged"].get(one.point.name),
            }
        )
    return found


def asked_of_autoattack(document: Mapping[str, Any]) -> list[str]:
    """The points of the highest worst case, whose tie it breaks, and the fixed ones but for the natural branch."""
    fixed = [p.name for p in FIXED if p.mode != "natural"]
    return [*tied(document["points"], document["least_clean"]), *fixed]


def autoattacked(net: Network, split: Split, args: argparse.Namespace) -> dict[str, Any]:
    """AutoAttack's accuracy on the first images, [share, low, high]."""
    device = next(net.parameters()).device
    run, own = ATTACKS["autoattack"]
    budget, right = Budget(args.eps / 255, own.step, own.steps), []
    torch.manual_seed(args.seed)
    batches = split.batches(args.batch_size)
    for x, y in tqdm(batches, "AutoAttack", -(-len(split) // args.batch_size), leave=False, disable=None):
        x, y = x.to(device), y.to(device)
        x_adv = run(net, x, y, budget)
        with torch.no_grad():
            right.append((net(x_adv).argmax(1) == y).cpu())
    return {"images": args.autoattack, "accuracy": share(torch.cat(right))}


def control(
    static: Network, path: Path, split: Split, attacked: Split, args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Clean and worst-case accuracy of a static network on the same images."""
    prepared(static, device)
    with torch.no_grad():
        right = [(static(x.to(device)).argmax(1) == y.to(device)).cpu() for x, y in split.batches(250)]
    torch.manual_seed(args.seed)
    budget = Budget(args.eps / 255, steps=args.steps)
    left = [
        (worst_case(static, x.to(device), y.to(device), budget).margin <= 0).cpu()
        for x, y in attacked.batches(args.batch_size)
    ]
    return {"checkpoint": path.name, "clean": share(torch.cat(right)), "worst_case": share(torch.cat(left))}


def write(source: Path, out: Path, point: Point, digest: str) -> None:
    """The checkpoint `source` with the mixing of `point`; all else stays but one line of its provenance."""
    document = checkpoint.read(source)
    config = {**document["config"], **point.changes()}
    provenance = {**document["provenance"], "operating_point": f"{point.name}, of the checkpoint {digest[:16]}"}
    checkpoint.save(out, {**document, "config": config, "provenance": provenance})


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last finished attacks", file=sys.stderr)
        sys.exit(130)

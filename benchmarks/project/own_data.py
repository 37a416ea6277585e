"""Pictures of one's own, from a folder to predictions: what docs/your-own-data.md has to say about time and figures.

Writes five groups of classes of CIFAR-100 as folders of PNG and JPEG files of many sizes, follows the page's commands
on them with the recipes as they are, and keeps how long each took and what it found. Started again it goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..harness.report import ROOT, add_out, loaded_machine, parser, publish

EXAMPLES = """examples:
  python -m benchmarks.project.own_data --data-dir data --work runs/own-data      # data holds cifar-100-python/
"""
# Superclasses of CIFAR-100 by their number in its files.
GROUPS = {2: "flowers", 8: "large carnivores", 14: "people", 17: "trees", 18: "vehicles"}
STAGES = ("trunk", "robust", "detector", "awnet")
SMALLEST, LARGEST = 32, 96  # pixels of the shorter side as written; CIFAR's own 32 are scaled up
RATES = {"fpr": "flagged unattacked", "tpr": "flagged", "sr_at": "wrong and not flagged"}  # of an audit, at 5 %
SIZE = 40  # pixels a side that the network sees


def write_folders(data_dir: Path, out: Path, train: int, test: int, own: int) -> None:
    """`train` and `test` pictures a class under out/pictures, `own` of those that nobody trained on under out/own."""
    import pickle

    rng = np.random.default_rng(0)
    for part, counts in (("train", {"pictures/train": train}), ("test", {"pictures/test": test, "own": own})):
        with (data_dir / "cifar-100-python" / part).open("rb") as f:
            stored = pickle.load(f, encoding="latin1")
        coarse = np.array(stored["coarse_labels"])
        for number, name in GROUPS.items():
            members = list(rng.permutation(np.flatnonzero(coarse == number)))
            for folder, count in counts.items():
                home = out / folder / name
                home.mkdir(parents=True, exist_ok=True)
                for n in range(count):
                    pixels = stored["data"][members.pop()].reshape(3, 32, 32).transpose(1, 2, 0)
                    save(Image.fromarray(pixels), home, n, rng)


def save(picture: Image.Image, home: Path, n: int, rng: np.random.Generator) -> None:
    """As PNG, every third as JPEG, enlarged to a side between SMALLEST and LARGEST."""
    side = int(rng.integers(SMALLEST, LARGEST + 1))
    enlarged = picture.resize((side, side), Image.Resampling.LANCZOS)
    if n % 3:
        enlarged.save(home / f"{n:04}.png")
    else:
        enlarged.save(home / f"{n:04}.jpg", quality=92)


def commands(budget: float) -> list[str]:
    """Those of the page."""
    data = "--data-dir pictures"
    return [
        *(f"awnet train --recipe own/{name} {data} --out runs/{name} --set data.size={SIZE}" for name in STAGES),
        f"awnet audit --ckpt runs/awnet/best.pt {data} --out audit --static runs/robust/best.pt --budget {budget:g}",
        "awnet export --ckpt runs/awnet/best.pt --repository models --card audit/card.json",
        "awnet calibrate own --model models/awnet/1/model.onnx --report calibrated.json",
    ]


def follow(command: str, folder: Path) -> dict[str, Any]:
    """Run one command in `folder`; how long it took, how it ended, the last lines of what it said."""
    arguments = [sys.executable, "-m", "awnet", *command.split()[1:]]
    begun = time.monotonic()
    done = subprocess.run(
        arguments, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    seconds = time.monotonic() - begun
    lines = [line for line in done.stdout.replace(str(folder), ".").splitlines() if line.strip()]
    print(f"{seconds:7.1f} s  {done.returncode}  {command}", *lines[-3:], done.stderr[-500:], sep="\n", flush=True)
    return {"command": command, "seconds": round(seconds, 1), "status": done.returncode, "said": lines[-12:]}


def figures(folder: Path) -> dict[str, Any]:
    """What the audit and the calibration found."""
    audit = json.loads((folder / "audit/audit.json").read_text("utf-8"))
    parts = {
        name: {
            key: value for key, value in part.items() if key in ("accuracy", "auroc", "fpr", "tpr", "sr_at", "images")
        }
        for name, part in audit["parts"].items()
        if name in ("clean", "worst_case@8", "T3@8", "static:clean", "static:worst_case@8")
    }
    calibrated = json.loads((folder / "calibrated.json").read_text("utf-8"))
    kept = {key: calibrated[key] for key in ("images", "thresholds", "flagged")}
    return {"parts": parts, "linter": audit["findings"], "failed": audit["failed"], "calibrated": kept}


def share(row: dict[str, Any]) -> str:
    """What is flagged at 5 %, with its interval."""
    value, low, high = (100 * one for one in row["suspicious"])
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    rows = [f"| `{step['command']}` | {step['seconds']:.0f} s | {step['status']} |" for step in report["steps"]]
    found = report["figures"]
    parts = []
    for name, part in found["parts"].items():
        rates = [f"{what} {100 * part[key]['0.05']:.1f} %" for key, what in RATES.items() if key in part]
        parts.append(f"| {name} | {part['images']} | {100 * part['accuracy']:.1f} % | {'; '.join(rates)} |")
    linter = [f"| {f['check']} | {'no' if f['holds'] else 'yes'} | {f['detail']} |" for f in found["linter"]]
    calibrated = [
        f"| {kind} | {share(rows['before'])} | {share(rows['after'])} |"
        for kind, rows in found["calibrated"]["flagged"].items()
    ]
    machine = report["machine"]
    return "\n".join(
        [
            "# Pictures of one's own",
            "",
            f"{report['pictures']} pictures of five groups of classes of CIFAR-100, {SMALLEST} to {LARGEST} pixels",
            f"a side, seen at {SIZE} x {SIZE}; {machine['cores']} cores of an {machine['cpu']}, beside other programs,",
            f"(load average {machine['load_before'][0]:.0f}), torch with {report['threads']} thread.",
            "Written by `python -m benchmarks.project.own_data`.",
            "",
            "| command | time | exit status |",
            "|---|---|---|",
            *rows,
            "",
            "| part of the audit | images | accuracy | at the threshold of 5 % |",
            "|---|---|---|---|",
            *parts,
            "",
            "| the audit's linter asks: is it so that | answer | evidence |",
            "|---|---|---|",
            *linter,
            "",
            "| pictures of their own, the half that set no threshold | flagged before | flagged after |",
            "|---|---|---|",
            *calibrated,
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where a command failed."""
    command_line = parser("project.own_data", __doc__, EXAMPLES)
    command_line.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="holds cifar-100-python/")
    command_line.add_argument("--work", type=Path, required=True, metavar="DIR", help="receives pictures and runs")
    command_line.add_argument("--train", type=int, default=600, help="training pictures a class (default: 600)")
    command_line.add_argument("--test", type=int, default=200, help="test pictures a class (default: 200)")
    command_line.add_argument(
        "--own", type=int, default=200, help="further pictures a class to calibrate on (default: 200)"
    )
    command_line.add_argument("--budget", type=float, default=6.0, help="minutes of the audit (default: 6)")
    add_out(command_line, "own_data")
    options = command_line.parse_args(arguments)
    about = loaded_machine()
    if not (options.work / "pictures").exists():
        write_folders(options.data_dir, options.work, options.train, options.test, options.own)
    kept = options.work / "steps.json"
    steps = json.loads(kept.read_text("utf-8")) if kept.exists() else []
    for command in commands(options.budget)[len(steps) :]:
        step = follow(command, options.work)
        if step["status"] not in (
            0,
            1,
        ):  # 1: the audit's linter, or a picture that could not be read, has something to say
            return 1
        steps.append(step)
        kept.write_text(json.dumps(steps), "utf-8")
    count = sum(1 for path in (options.work / "pictures").rglob("*.*g"))
    report = {
        "machine": about,
        "pictures": count,
        "size": SIZE,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "steps": steps,
        "figures": figures(options.work),
    }
    publish(options.out, report, markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())

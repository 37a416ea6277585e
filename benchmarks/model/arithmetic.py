"""How many images a second does a training step of the bundled model take in, in float32 and in bfloat16, on which CPU?

The recipes of `make train-small` as they are, but on random images and from random weights (the time does not depend on
them), one thread. A step is everything from the data set to the updated weights. Weaker CPUs are emulated: torch and
oneDNN are told to leave out instructions that this one has, each in a process of its own. Both kinds of arithmetic take
turns; figures are medians over the rounds, by the processor's seconds of the process, which is the wall's time on an
idle machine. What takes more than `--patience` seconds is measured once.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from training.core.hardware import multiplies_bfloat16
from training.data.images import ImageSet, Split
from training.trainer.recipe import read_recipe
from training.trainer.run import Run
from training.trainer.step import Runtime

from ..harness.report import ROOT, add_out, machine, parser, publish

TRAIN_IMAGES = 45_000  # of CIFAR-10; a recipe may take fewer
CPUS = {  # name -> oneDNN's limit and torch's
    "this CPU": {},
    "AVX-512 without bfloat16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}

EXAMPLES = """examples:
  python -m benchmarks.model.arithmetic                              # about five minutes of an idle core
  python -m benchmarks.model.arithmetic --rounds 1 --stages small/0-trunk --out /tmp/arithmetic
"""


def stages() -> list[str]:
    """Of `make train-small`, in order."""
    found = re.search(r"^STAGES\s*:?=\s*(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found, "the Makefile names no STAGES"
    return found[1].split()


def random_images(count: int) -> ImageSet:
    """`count` training images of CIFAR's size, and a few of the others."""

    def split(n: int) -> Split:
        return Split(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (n,)))

    return ImageSet(split(count), split(8), split(8), [f"class {i}" for i in range(10)])


def measure(stage: str, rounds: int, patience: float) -> dict[str, Any]:
    """One recipe on this process's CPU: seconds of each step in both kinds of arithmetic."""
    recipe = read_recipe(ROOT / f"training/recipes/{stage}.toml")
    recipe["init"] = {}
    batch = recipe["optim"]["batch_size"]
    images = random_images(batch * (rounds + 1))
    taken: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    with TemporaryDirectory() as folder:
        runs = {}
        for name in taken:
            run = Run(recipe, images, Path(folder) / "run", Runtime(torch.device("cpu"), name == "bfloat16"))
            run.net.train()
            runs[name] = run, run.batches()
        for k in range(rounds + 1):
            for name, (run, batches) in runs.items():
                if k and taken[name][0] > patience:
                    continue
                began = time.process_time()
                run.step(*next(batches))
                taken[name].append(time.process_time() - began)
                if k == 1:
                    del taken[name][0]  # it warmed up
    return {
        "stage": stage,
        "batch": batch,
        "images": recipe["optim"]["epochs"] * (recipe["data"]["train_images"] or TRAIN_IMAGES),
        "cpu_seconds": {name: [round(t, 4) for t in times] for name, times in taken.items()},
        "images_per_second": {name: round(batch / statistics.median(times), 2) for name, times in taken.items()},
    }


def markdown(document: dict[str, Any]) -> str:
    """The result for people."""
    host = document["machine"]
    lines = [
        "# Training the bundled model in float32 and in bfloat16",
        "",
        f"`{document['command']}`, {document['date']}: {host['cpu']}, one thread, PyTorch {host['torch']}, medians of "
        f"{document['rounds']} rounds, processor time. Steps alone: validation is not in the minutes.",
    ]
    for cpu in document["cpus"]:
        chosen = "bfloat16" if cpu["multiplies_bfloat16"] else "float32"
        options = " ".join(f"{key}={value}" for key, value in cpu["environment"].items())
        lines += ["", f"## {cpu['name']}" + (f" (`{options}`)" if options else ""), ""]
        lines += [f"A training that asks for bfloat16 gets {chosen} here.", ""]
        lines += ["| stage | float32, images/s | bfloat16, images/s | minutes of the stage |", "|---|---|---|---|"]
        total = 0.0
        for row in cpu["stages"]:
            speed = row["images_per_second"]
            minutes = row["images"] / speed[chosen] / 60
            total += minutes
            lines.append(f"| {row['stage']} | {speed['float32']:.1f} | {speed['bfloat16']:.1f} | {minutes:.0f} |")
        lines.append(f"| all | | | {total:.0f} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    command_line = parser("model.arithmetic", __doc__, EXAMPLES)
    command_line.add_argument(
        "--stages", nargs="+", default=stages(), metavar="RECIPE", help="of training/recipes (%(default)s)"
    )
    command_line.add_argument("--rounds", type=int, default=3, help="steps of each kind after the first (%(default)s)")
    command_line.add_argument("--patience", type=float, default=10.0, metavar="SECONDS", help="see above (%(default)s)")
    command_line.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # a process of the emulated CPU
    add_out(command_line, "arithmetic")
    options = command_line.parse_args(arguments)
    if options.here:
        torch.set_num_threads(1)
        rows = [measure(stage, options.rounds, options.patience) for stage in options.stages]
        print(json.dumps({"multiplies_bfloat16": multiplies_bfloat16(torch.device("cpu")), "stages": rows}))
        return 0
    shared = ["--rounds", str(options.rounds), "--patience", str(options.patience), "--stages", *options.stages]
    cpus = []
    for name, environment in CPUS.items():
        command = [sys.executable, "-m", "benchmarks.model.arithmetic", "--here", *shared]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True
        )
        cpus.append({"name": name, "environment": environment, **json.loads(done.stdout.splitlines()[-1])})
        print(f"{name}: " + "; ".join(f"{row['stage']} {row['images_per_second']}" for row in cpus[-1]["stages"]))
    argv = sys.argv[1:] if arguments is None else arguments
    document = {
        "command": shlex.join(["python", "-m", "benchmarks.model.arithmetic", *argv]),
        "date": datetime.date.today().isoformat(),
        "machine": machine(torch=torch.__version__),
        "rounds": options.rounds,
        "cpus": cpus,
    }
    publish(options.out, document, markdown(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())

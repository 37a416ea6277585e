"""What each precision of an exported model costs and changes: size, load, latency; classes, scores and detection.

Of each checkpoint four models are made as `python -m export.onnx` makes them: float32, float16-weights, int8, and, to
show why the detector stays in float32, int8 with every convolution quantised. Latency is that of one thread, in
interleaved rounds, the fastest call of a slice; ratios to float32 are medians of the ratios within a round. Changes
are measured on validation images, natural, corrupted, and attacked at T0 (with --surrogate), T1 and T2.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.graph import graph, int8
from training.attacks.ascent import Model
from training.attacks.copies import attackers_copy
from training.data.images import Split
from training.data.sets import load_cifar10
from training.evaluation.attackers import load_surrogate, prepared
from training.evaluation.calibration import attacked
from training.evaluation.detection import auroc
from training.networks.awnet import AWNet
from training.networks.checkpoint import load
from training.options import DATA_DIR_HELP

from ..harness.report import add_out, conclude, loaded_machine, parser
from .graph import Settings, ratio, seconds, session

KINDS = ("float32", "float16-weights", "int8", "int8 with the detector")
BATCHES = (1, 8, 32)
ONE_THREAD = Settings(1, "all", True)
VNNI = ("avx512_vnni", "avx_vnni")
FLAGGED_AT = 0.01  # share of natural images over the threshold that float32 scores set

EXAMPLES = """examples:
  python -m benchmarks.model.precisions --data-dir data
  python -m benchmarks.model.precisions --data-dir data --ckpt a.pt b.pt --surrogate vgg11=surrogate.pt
"""


def models(net: AWNet, images: Tensor) -> dict[str, bytes]:
    """The serialised models by kind; `images` set the ranges of 8 bits."""
    plain = graph.build(net, blocked=False)
    every = [node.name for node in plain.graph.node if node.op_type == "Conv"]
    made = {
        "float32": graph.build(net),
        "float16-weights": graph.build(net, half_weights=True),
        "int8": int8.quantised(plain, images),
        "int8 with the detector": int8.quantised(plain, images, every),
    }
    return {kind: made[kind].SerializeToString() for kind in KINDS}


def latencies(made: Mapping[str, bytes], size: int, rounds: int, slice_seconds: float) -> list[dict[str, Any]]:
    """One row a batch size: milliseconds of each kind and the ratio to float32."""
    sessions = {kind: session(model, ONE_THREAD) for kind, model in made.items()}
    rows = []
    for batch in BATCHES:
        image = np.random.default_rng(batch).integers(0, 256, (batch, 3, size, size), dtype=np.uint8)
        times: dict[str, list[float]] = {kind: [] for kind in made}
        for k in range(rounds + 1):
            for kind in list(made)[:: 1 if k % 2 else -1]:
                took = seconds(sessions[kind], image, slice_seconds)
                if k:  # the first round warms up
                    times[kind].append(took)
        rows.append(
            {
                "batch": batch,
                "milliseconds": {kind: round(1e3 * min(took), 3) for kind, took in times.items()},
                "over_float32": {kind: round(ratio(took, times["float32"]), 3) for kind, took in times.items()},
            }
        )
    return rows


LOAD = """
import os, resource, sys
import numpy as np, onnxruntime as ort

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6

options = ort.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
memory, spent = resident(), sum(os.times()[:2])
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"image": np.zeros((1, *session.get_inputs()[0].shape[1:]), np.uint8)})
print(sum(os.times()[:2]) - spent, resident() - memory)
"""


def loads(model: bytes) -> dict[str, float]:
    """Processor seconds and MB of memory that a session and its first answer add to a fresh process."""
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(model)
        file.flush()
        ended = subprocess.run([sys.executable, "-c", LOAD, file.name], capture_output=True, text=True, check=True)
    took, mb = map(float, ended.stdout.split())
    return {"seconds": round(took, 3), "mb": round(mb, 1)}


def changes(made: Mapping[str, bytes], groups: Mapping[str, Tensor]) -> dict[str, Any]:
    """By kind: same classes and largest change of the score by group, AUROC of each attack, natural images flagged."""
    found: dict[str, Any] = {}
    base: dict[str, Any] = {}
    for kind, model in made.items():
        opened = session(model, ONE_THREAD)
        got = {
            name: [
                np.concatenate(part)
                for part in zip(
                    *(opened.run(["logits", "p_type"], {"image": b.numpy()}) for b in images.split(32)), strict=True
                )
            ]
            for name, images in groups.items()
        }
        base = base or got
        scores = {name: torch.from_numpy(outputs[1][:, 0]) for name, outputs in got.items()}
        threshold = float(np.quantile(base["natural"][1][:, 0], 1 - FLAGGED_AT))
        found[kind] = {
            "same_class": {n: float((got[n][0].argmax(1) == base[n][0].argmax(1)).mean()) for n in groups},
            "score_moves": {n: float(np.abs(got[n][1][:, 0] - base[n][1][:, 0]).max()) for n in groups},
            "auroc": {n: auroc(scores["natural"], scores[n]) for n in groups if n.startswith("T")},
            "flagged": {n: float((scores[n] > threshold).float().mean()) for n in ("natural", "corrupted")},
        }
    return found


def image_groups(net: AWNet, validation: Split, surrogates: Sequence[str], count: int) -> dict[str, Tensor]:
    """Natural and corrupted images, and `count` attacked ones a threat level: PGD of 10 steps at 8/255."""
    attackers: dict[str, Model] = {
        f"T0 {s.name}": attackers_copy(s.network, "T2")
        for s in (load_surrogate(spec, torch.device("cpu")) for spec in surrogates)
    }
    attackers |= {level: attackers_copy(net, level) for level in ("T1", "T2")}
    return {
        "natural": validation.images[: 10 * count],
        "corrupted": int8.corrupted(validation.images[-2 * count :]),
        **{name: attacked(model, validation.head(count), 8, 10) for name, model in attackers.items()},
    }


def markdown(document: Mapping[str, Any]) -> str:
    """The results as tables."""
    machine = document["machine"]
    lines = [
        "# Precisions of an exported model",
        "",
        f"Made by `{document['command']}`: one thread of {machine['cpu']} "
        f"({'with' if machine['vnni'] else 'without'} VNNI), onnxruntime {machine['onnxruntime']}, load "
        f"{machine['load_before'][0]:.1f} on {machine['cores']} cores. Milliseconds are the fastest call, ratios "
        f"medians of {document['rounds']} interleaved rounds. Load: processor seconds and memory of a session "
        "in a fresh process.",
    ]
    for part in document["checkpoints"]:
        images = ", ".join(f"{n} {name}" for name, n in part["images"].items())
        lines += [
            "",
            f"## {part['checkpoint']}: width {part['width']}",
            "",
            "| precision | MB | load s | load MB | " + " | ".join(f"ms at {b}, ratio" for b in BATCHES) + " |",
            "|---|---|---|---|" + "---|" * len(BATCHES),
        ]
        for kind in KINDS:
            timed = " | ".join(f"{r['milliseconds'][kind]:.2f}, {r['over_float32'][kind]:.2f}" for r in part["latency"])
            loaded = part["load"][kind]
            lines.append(
                f"| {kind} | {part['megabytes'][kind]:.1f} | {loaded['seconds']:.2f} | {loaded['mb']:.0f} | {timed} |"
            )
        groups = list(part["images"])
        attacks = list(part["changes"]["float32"]["auroc"])
        lines += [
            "",
            f"On validation images ({images}): share with float32's class and largest change of the score by group; "
            "AUROC of each attack; natural and corrupted images over the threshold that 1 % of natural ones exceed in "
            "float32.",
            "",
            f"| precision | {' | '.join(groups)} | {' | '.join(f'AUROC {a}' for a in attacks)} | flagged |",
            "|---|" + "---|" * (len(groups) + len(attacks) + 1),
        ]
        for kind in KINDS:
            c = part["changes"][kind]
            cells = [f"{c['same_class'][g]:.2%}, {c['score_moves'][g]:.1e}" for g in groups]
            cells += [f"{c['auroc'][a]:.4f}" for a in attacks]
            flagged = c["flagged"]
            lines.append(f"| {kind} | {' | '.join(cells)} | {flagged['natural']:.2%}, {flagged['corrupted']:.2%} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    command_line = parser("model.precisions", __doc__, EXAMPLES)
    add_out(command_line, "precisions")
    add = command_line.add_argument
    add("--data-dir", type=Path, required=True, metavar="DIR", help=DATA_DIR_HELP)
    add("--ckpt", type=Path, nargs="+", default=[Path("training/checkpoints/awnet-robust-domains.pt")], metavar="FILE")
    add("--surrogate", nargs="*", default=[], metavar="NAME=FILE", help="networks whose adversarial images are T0")
    add("--attacked", type=int, default=100, help="images a threat level (%(default)s)")
    add("--rounds", type=int, default=12, help="(%(default)s)")
    add("--slice", type=float, default=0.15, metavar="SECONDS", help="of one model (%(default)s)")
    options = command_line.parse_args(argv)
    torch.set_num_threads(1)
    flags = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("flags")), "").split()
    machine = loaded_machine() | {"vnni": any(flag in flags for flag in VNNI)}
    images = load_cifar10(options.data_dir, download=False)
    checkpoints = []
    for path in options.ckpt:
        net = load(path).awnet
        prepared(net, torch.device("cpu"))
        made = models(net, images.train.images)
        groups = image_groups(net, images.validation, options.surrogate, options.attacked)
        checkpoints.append(
            {
                "checkpoint": path.name,
                "width": net.config.width,
                "megabytes": {kind: round(len(model) / 1e6, 2) for kind, model in made.items()},
                "load": {kind: loads(model) for kind, model in made.items()},
                "latency": latencies(made, net.config.image_size, options.rounds, options.slice),
                "images": {name: len(x) for name, x in groups.items()},
                "changes": changes(made, groups),
            }
        )
    names = " ".join(Path(a).name if Path(a).is_absolute() else a for a in argv)
    document = {
        "command": f"python -m benchmarks.model.precisions {names}",
        "machine": machine,
        "rounds": options.rounds,
        "checkpoints": checkpoints,
    }
    conclude(options.out, document, markdown(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())

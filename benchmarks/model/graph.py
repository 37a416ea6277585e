"""What does modulation cost at inference? The fused graph against the unfused one and against static networks.

Four graphs of the same sizes, all with random weights (the time does not depend on them), all fed bytes:

    fused     what `python -m export.onnx` publishes
    unfused   omega times each convolution's output, then two batch norms weighted by P_type (Eq. 13-16 as printed)
    static    a static ResNet trunk and a static detector of the same sizes, batch norms folded: the floor

Each runs at its own best session settings (found first, on the same inputs), then all run in interleaved
rounds, so that a noisy moment hits them alike. In a round each runs for a slice of time and its fastest call
counts; the figures are medians over the rounds, the ratios medians of the ratios within a round. With `--threads 1`
times are processor time, which other programs disturb least.
"""

from __future__ import annotations

import datetime
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from export.graph import graph
from training.networks.awnet import AWNet, AWNetConfig, fold

from ..harness.networks import randomised
from ..harness.report import RESULTS, parser, processor, publish

GOALS = {16: 1.20, 64: 1.08}  # fused over static
REORDERS = ("ReorderInput", "ReorderOutput")

EXAMPLES = """examples:
  python -m benchmarks.model.graph                              # widths 16 and 64, about three minutes
  python -m benchmarks.model.graph --widths 16 --rounds 20      # a quick look
  python -m benchmarks.model.graph --ckpt best.pt --no-write    # the weights of a checkpoint, beside the default widths
"""


@dataclass(frozen=True)
class Settings:
    """Session settings that are worth choosing; `level` all includes the blocked (NCHWc) layout."""

    threads: int
    level: str
    spinning: bool

    def options(self) -> ort.SessionOptions:
        """As onnxruntime wants them."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{self.level.upper()}")
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(self.spinning)))
        options.log_severity_level = 3
        return options


def session(model: bytes, settings: Settings) -> ort.InferenceSession:
    """A CPU session."""
    return ort.InferenceSession(model, settings.options(), providers=["CPUExecutionProvider"])


def settings_to_try(threads: Sequence[int]) -> list[Settings]:
    """Every combination; spinning only matters with several threads."""
    return [
        Settings(n, level, spinning)
        for n in threads
        for level in ("all", "extended")
        for spinning in ((True, False) if n > 1 else (True,))
    ]


def random_net(width: int) -> AWNet:
    """The same network at each call."""
    torch.manual_seed(0)
    return randomised(AWNet(AWNetConfig(width=width)))


def graphs(net: AWNet) -> dict[str, bytes]:
    """The graphs to compare, serialised."""
    return {
        "fused": graph.build(net).SerializeToString(),
        "unfused": unfused(net).SerializeToString(),
        "static": static(net).SerializeToString(),
    }


def unfused(net: AWNet) -> onnx.ModelProto:
    """The network as the equations print it: y = omega (K * x), then p_adv BN_adv(y) + p_nat BN_nat(y)."""
    write, x, psi = _begin(net)
    p_type, omega = graph.emit_detector(write, net, psi)
    names = [name for name, _ in net.modulated()]
    lengths = [unit.conv.out_channels for _, unit in net.modulated()]
    axes = write.constant("axes", [2, 3])
    signal = dict(
        zip(
            names,
            write.split(write.node("Unsqueeze", omega, axes, out="omega.map"), lengths, [f"{n}.omega" for n in names]),
            strict=True,
        )
    )
    weights = write.split(write.node("Unsqueeze", p_type, axes, out="p_type.map"), [1, 1], ["p.adv", "p.nat"])

    def norm(y: str, norm: nn.BatchNorm2d, out: str) -> str:
        fields = ("weight", "bias", "running_mean", "running_var")
        constants = [write.constant(f"{out}.{field}", getattr(norm, field)) for field in fields]
        return write.node("BatchNormalization", y, *constants, out=out, epsilon=norm.eps)

    def unit(x: str, unit: Any, at: str) -> str:
        y = write.conv(x, unit.conv, at)
        if at in signal:
            y = write.node("Mul", y, signal[at], out=f"{at}.modulated")
        parts = [
            write.node("Mul", norm(y, unit.norm_for(branch), f"{at}.{branch}"), weight, out=f"{at}.{branch}.weighted")
            for branch, weight in zip(("adv", "nat"), weights, strict=True)
        ]
        return write.node("Add", *parts, out=f"{at}.mixed")

    logits = _trunk(write, net, x, unit)
    return graph.model_of(write, net, [logits, p_type, omega])


def static(net: AWNet) -> onnx.ModelProto:
    """A static trunk and a static detector (extractor and type head) of the sizes of `net`, in one graph."""
    write, x, psi = _begin(net)
    head = net.type_head
    p_type = write.node("Softmax", write.linear(psi, head.weight, head.bias, "type_logits"), out="p_type", axis=1)
    logits = _trunk(write, net, x, lambda x, unit, at: write.conv(x, unit.conv, at, *fold(unit.nat)))
    return graph.model_of(write, net, [logits, p_type])


def _begin(net: AWNet) -> tuple[graph.Writer, str, str]:
    write = graph.Writer(torch.float32)
    x = graph.emit_pixels(write, net)
    return write, x, graph.EXTRACTORS[type(net.extractor)](write, net.extractor, x)


def _trunk(write: graph.Writer, net: AWNet, x: str, unit: Any) -> str:
    """The residual trunk with `unit` (x, ConvMixBN, name) -> y in place of every convolution and its norms."""
    h = write.node("Relu", unit(x, net.stem, "stem"), out="stem.relu")
    for i, block in enumerate(net.blocks):
        at = f"blocks.{i}"
        out = write.node("Relu", unit(h, block.conv1, f"{at}.conv1"), out=f"{at}.relu1")
        out = unit(out, block.conv2, f"{at}.conv2")
        h = h if block.shortcut is None else unit(h, block.shortcut, f"{at}.shortcut")
        h = write.node("Relu", write.node("Add", out, h, out=f"{at}.sum"), out=f"{at}.relu2")
    return write.linear(write.pool(h, "pooled"), net.classifier.weight, net.classifier.bias, "logits")


def reorders(model: bytes, settings: Settings) -> dict[str, int]:
    """How often the optimised graph changes the layout of a tensor, and its number of nodes."""
    options = settings.options()
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        kinds = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    return {"reorders": sum(kinds[kind] for kind in REORDERS), "nodes": sum(kinds.values())}


def seconds(
    run: ort.InferenceSession, image: Any, at_least: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The fastest of as many calls as fill `at_least` seconds: other processes can only add to a time.

    `time.thread_time` as `clock` leaves out, of a session with one thread, the time in which another process ran.
    """
    times: list[float] = []
    while sum(times) < at_least:
        start = clock()
        run.run(None, {"image": image})
        times.append(clock() - start)
    return min(times)


def compare(net: AWNet, batches: Sequence[int], threads: Sequence[int], rounds: int, slice_seconds: float) -> list[Any]:
    """One row a batch size: latency of each graph, ratios to static, settings chosen and reorder nodes."""
    models = graphs(net)
    size = net.config.image_size
    clock = time.thread_time if max(threads) == 1 else time.perf_counter
    rows = []
    for batch in batches:
        image = np.random.default_rng(batch).integers(0, 256, (batch, 3, size, size), dtype=np.uint8)
        best = {name: _best_settings(model, image, threads, slice_seconds, clock) for name, model in models.items()}
        sessions = {name: session(model, best[name]) for name, model in models.items()}
        times: dict[str, list[float]] = {name: [] for name in models}
        for k in range(rounds + 1):
            for name in list(models)[:: 1 if k % 2 else -1]:
                took = seconds(sessions[name], image, slice_seconds, clock)
                if k:  # the first round warms up
                    times[name].append(took)
        rows.append(
            {
                "width": net.config.width,
                "batch": batch,
                "graphs": {
                    name: {
                        "milliseconds": round(1e3 * statistics.median(times[name]), 4),
                        "over_static": round(ratio(times[name], times["static"]), 4),
                        "settings": asdict(best[name]),
                        **reorders(models[name], best[name]),
                    }
                    for name in models
                },
            }
        )
        print(_line(rows[-1]), flush=True)
    return rows


def ratio(times: Sequence[float], base: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, base, strict=True))


def _best_settings(
    model: bytes, image: Any, threads: Sequence[int], slice_seconds: float, clock: Callable[[], float]
) -> Settings:
    """The fastest settings by interleaved trials."""
    tried = settings_to_try(threads)
    sessions = [session(model, settings) for settings in tried]
    times: list[list[float]] = [[] for _ in tried]
    for _ in range(4):
        for one, run in zip(times, sessions, strict=True):
            one.append(seconds(run, image, slice_seconds / 2, clock))
    return min(zip(tried, times, strict=True), key=lambda pair: statistics.median(pair[1][1:]))[0]


def _line(row: Any) -> str:
    cells = [
        f"{name} {g['milliseconds']:.3f} ms ({g['over_static']:.3f}x, {g['reorders']} reorders, "
        f"{g['settings']['threads']} thread(s), {g['settings']['level']})"
        for name, g in row["graphs"].items()
    ]
    return f"width {row['width']}, batch {row['batch']}: " + "; ".join(cells)


def markdown(document: Any) -> str:
    """The results as a table."""
    machine = document["machine"]
    alone = all(g["settings"]["threads"] == 1 for row in document["rows"] for g in row["graphs"].values())
    took = "Processor time of the fastest call" if alone else "Fastest call"
    lines = [
        "# Cost of modulation at inference",
        "",
        f"Made by `{document['command']}` on {document['date']}: {machine['cores']} cores of {machine['processor']}, "
        f"onnxruntime {machine['onnxruntime']}. {took} of a slice, medians of {document['rounds']} interleaved "
        "rounds; ratios to the "
        "static trunk + static detector of the same sizes, each graph at its best session settings.",
        "",
        "| width | batch | graph | ms | over static | goal | layout reorders | nodes | settings |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        for name, g in row["graphs"].items():
            s = g["settings"]
            goal = f"{GOALS[row['width']]:.2f}" if name == "fused" and row["width"] in GOALS else ""
            settings = f"{s['threads']} thread(s), {s['level']}" + ("" if s["spinning"] else ", no spinning")
            lines.append(
                f"| {row['width']} | {row['batch']} | {name} | {g['milliseconds']:.3f} | {g['over_static']:.3f} "
                f"| {goal} | {g['reorders']} | {g['nodes']} | {settings} |"
            )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    cores = len(os.sched_getaffinity(0))
    about = "Latency of the fused graph, of the unfused one and of static networks of the same sizes."
    command_line = parser("model.graph", about, EXAMPLES)
    command_line.add_argument("--widths", type=int, nargs="+", default=[16, 64], help="random weights (16 64)")
    command_line.add_argument("--ckpt", type=Path, nargs="*", default=[], help="AW-Net checkpoints to time as well")
    command_line.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="(1 8 32)")
    command_line.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores}), help="to choose from")
    command_line.add_argument("--rounds", type=int, default=15, help="(%(default)s)")
    command_line.add_argument("--slice", type=float, default=0.15, metavar="SECONDS", help="of one graph (%(default)s)")
    command_line.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="for graph.json and graph.md")
    command_line.add_argument("--no-write", action="store_true", help="print only")
    options = command_line.parse_args(arguments)

    nets = [random_net(width) for width in options.widths]
    if options.ckpt:
        from training.networks.checkpoint import load

        nets += [load(path).awnet for path in options.ckpt]
    rows: list[Any] = []
    for net in nets:
        rows += compare(net, options.batches, options.threads, options.rounds, options.slice)
    document = {
        "command": "python -m benchmarks.model.graph " + " ".join(sys.argv[1:] if arguments is None else arguments),
        "date": datetime.date.today().isoformat(),
        "machine": {"processor": processor(), "cores": cores, "onnxruntime": ort.__version__},
        "rounds": options.rounds,
        "rows": rows,
    }
    if not options.no_write:
        publish(options.out / "graph", document, markdown(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())

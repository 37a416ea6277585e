"""In which form do omega and P_type cost a CPU least? The forms that `export.graph` writes against others.

All forms of one network give the same answers. What they cost depends on how ONNX Runtime lays out maps: it computes
convolutions in blocks of 16 (AVX-512) or 8 (AVX2) channels, and reorders a map before and after every operator that
it has not for that layout. The forms, for relu(scale * (K * x) + shift [+ met]) with scale and shift [N,C,1,1]:

    plain               Mul, Add, Add, Relu
    blocked             Mul with a resized scale, Add, and a 1x1 convolution of P(adversarial) as the shift
    picked              blocked; units of one size enter the layout together, a one-hot convolution picks each
    one sum             Mul, Sum of three, Relu
    channels last       Transpose, Mul, Add, Add, Relu, Transpose
    batch norm *        BatchNormalization over [1, C, H, W] with scale and shift as its parameters, Add, Relu
    grouped 1x1 *       Conv in C groups with scale and shift as its filters and bias, Add, Relu
    filters *           scale times the filters, shift as the bias of the convolution itself, Add, Relu

Those with * are for batches of one image: over [1, N*C, H, W] a group or a parameter would belong to one batch size,
or every unit would need two further Reshapes. Filters that are no constants stay out of the blocked layout, and it
does not matter whether omega multiplies those of its own or of the next convolution.

One thread; processor time of the fastest call of a slice, which other programs disturb least; ratios are medians of
the ratios within interleaved rounds.
"""

from __future__ import annotations

import copy
import datetime
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.graph import graph
from export.graph.modulation import Blocked, Plain, resized
from training.networks.awnet import AWNet
from training.networks.checkpoint import load

from ..harness.report import add_out, conclude, loaded_machine, parser
from .graph import Settings, graphs, random_net, ratio, reorders, seconds, session

BATCHES = (1, 8)
EXAMPLES = """examples:
  python -m benchmarks.model.graph_forms                                 # widths 16 and 64, some minutes
  python -m benchmarks.model.graph_forms --widths 16 --rounds 5
  python -m benchmarks.model.graph_forms --ckpt training/checkpoints/awnet-bounded.pt
"""


class OneSum(Plain):
    """The shift and what is met are added by one node."""

    def affine(self, x: str, at: str, met: str | None = None) -> str:
        terms = [self.shortcut(x, at), f"{at}.shift", *([] if met is None else [met])]
        return self.write.node("Sum", *terms, out=f"{at}.sum")


class ChannelsLast(Plain):
    """Maps are turned to [N,H,W,C], which the runtime does in one step with leaving its layout, and turned back."""

    def affine(self, x: str, at: str, met: str | None = None) -> str:
        last = {"perm": [0, 2, 3, 1]}
        y = self.write.node("Transpose", x, out=f"{at}.last", **last)
        for op, kind in (("Mul", "scale"), ("Add", "shift")):
            factor = self.write.node("Transpose", f"{at}.{kind}", out=f"{at}.{kind}.last", **last)
            y = self.write.node(op, y, factor, out=f"{at}.{op}")
        y = self.write.node("Transpose", y, out=f"{at}.first", perm=[0, 3, 1, 2])
        return y if met is None else self.write.node("Add", y, met, out=f"{at}.sum")


class OfOneImage(Plain, ABC):
    """Forms whose parameters are those of one image."""

    def affine(self, x: str, at: str, met: str | None = None) -> str:
        y = self.modulated(x, at, f"{at}.shift")
        return y if met is None else self.write.node("Add", y, met, out=f"{at}.sum")

    def shortcut(self, x: str, at: str) -> str:
        return self.modulated(x, at, None)

    @abstractmethod
    def modulated(self, x: str, at: str, shift: str | None) -> str:
        """The map `x` scaled and, with a shift, shifted: the name of the result."""

    def flat(self, x: str, channels: int, rank: int = 1) -> str:
        """[1,C,1,1] -> [C] or [C,1,1,1]."""
        shape = self.write.constant(f"shape.{channels}.{rank}", [channels, 1, 1, 1][:rank])
        return self.write.node("Reshape", x, shape, out=f"{x}.{rank}")

    def convolution(self, x: str) -> Any:
        return next(node for node in self.write.nodes if node.output[0] == x)

    def channels(self, x: str) -> int:
        filters = self.convolution(x).input[1]
        return int(next(c.dims[0] for c in self.write.constants if c.name == filters))


class BatchNorm(OfOneImage):
    def modulated(self, x: str, at: str, shift: str | None) -> str:
        c = self.channels(x)
        zeros, ones = (self.write.constant(f"{n}.{c}", t(c)) for n, t in (("zeros", torch.zeros), ("ones", torch.ones)))
        scale = self.flat(f"{at}.scale", c)
        moved = zeros if shift is None else self.flat(shift, c)
        return self.write.node("BatchNormalization", x, scale, moved, zeros, ones, out=f"{at}.normed", epsilon=0.0)


class Grouped(OfOneImage):
    def modulated(self, x: str, at: str, shift: str | None) -> str:
        c = self.channels(x)
        bias = [] if shift is None else [self.flat(shift, c)]
        return self.write.node(
            "Conv", x, self.flat(f"{at}.scale", c, 4), *bias, out=f"{at}.grouped", group=c, kernel_shape=[1, 1]
        )


class Filters(OfOneImage):
    def modulated(self, x: str, at: str, shift: str | None) -> str:
        c, conv = self.channels(x), self.convolution(x)
        self.write.nodes.remove(conv)  # and written again, behind its filters
        filters = self.write.node("Mul", conv.input[1], self.flat(f"{at}.scale", c, 4), out=f"{at}.filters")
        conv.input[1:] = [filters, *([] if shift is None else [self.flat(shift, c)])]
        self.write.nodes.append(conv)
        return x


class Picked(Blocked):
    """The scales of all units of one size as one tensor [N,C,1,units]; of each a convolution leaves one column."""

    def __init__(self, write: graph.Writer, net: AWNet, p_type: str, omega: str) -> None:
        super().__init__(write, net, p_type, omega)
        write.nodes = [n for n in write.nodes if n.op_type not in ("MaxPool", "Resize", "Split", "Unsqueeze")]
        write.value_info.clear()
        size, offset = net.config.image_size, 0
        write.shaped(self.p_adv, 1, size)
        write.node("Unsqueeze", "p.adv", "p.axes", out="p.adv.pixel")
        write.nodes.append(write.nodes.pop(next(i for i, n in enumerate(write.nodes) if n.name == self.p_adv)))
        alike: dict[tuple[int, int], list[tuple[str, int]]] = {}
        for name, unit in net.modulated():
            channels = unit.conv.out_channels
            alike.setdefault((channels, self.strides[name]), []).append((name, offset))
            offset += channels
        order = [start + c for (channels, _), units in alike.items() for c in range(channels) for _, start in units]
        rows = write.node("Gather", "by_omega.product", write.constant("order", order), out="ordered", axis=1)
        lengths = [channels * len(units) for (channels, _), units in alike.items()]
        parts = write.split(rows, lengths, [f"ordered.{k}" for k in range(len(lengths))])
        for part, ((channels, stride), units) in zip(parts, alike.items(), strict=True):
            shape = write.constant(f"{part}.shape", [0, channels, 1, len(units)])
            columns, out_size = write.node("Reshape", part, shape, out=f"{part}.columns"), -(-size // stride)
            for k, (name, _) in enumerate(units):
                one = np.zeros((channels, 1, 1, len(units)))
                one[..., k] = 1
                picked = write.node(
                    "Conv", columns, write.constant(f"{name}.one", one), out=f"{name}.picked", group=channels
                )
                self.maps[name] = resized(write, picked, f"{name}.map", channels, out_size)


FORMS: dict[str, type[Any]] = {
    "plain": Plain,
    "blocked": Blocked,
    "picked": Picked,
    "one sum": OneSum,
    "channels last": ChannelsLast,
    "batch norm": BatchNorm,
    "grouped 1x1": Grouped,
    "filters": Filters,
}


def form(net: AWNet, modulation: type[Any]) -> bytes:
    """The graph of a network that mixes norms, with this modulation, serialised."""
    write = graph.Writer(torch.float32)
    net = copy.deepcopy(net).double().eval()
    with torch.no_grad():
        x = graph.emit_pixels(write, net)
        p_type, omega = graph.emit_detector(write, net, graph.EXTRACTORS[type(net.extractor)](write, net.extractor, x))
        stem = write.conv(x, net.stem.conv, "stem")
        graph.emit_trunk(write, net, stem, modulation(write, net, p_type, omega))
    return graph.model_of(write, net, graph.outputs_of(["auto"])).SerializeToString()


def models(net: AWNet, batch: int) -> dict[str, bytes]:
    """By form; of a network that mixes probabilities the two that export writes, of others the static floor, too."""
    if net.config.mixing == "bounded":
        return {name: graph.build(net, blocked=name == "blocked").SerializeToString() for name in ("plain", "blocked")}
    made = {
        name: form(net, modulation)
        for name, modulation in FORMS.items()
        if batch == 1 or not issubclass(modulation, OfOneImage)
    }
    return made | {"static": graphs(net)["static"]}


def measured(net: AWNet, batch: int, rounds: int, slice_seconds: float) -> list[dict[str, Any]]:
    """One row a form and level of optimisation."""
    made = models(net, batch)
    levels = {name: Settings(1, "all", True) for name in made} | {"plain, extended": Settings(1, "extended", True)}
    sessions = {name: session(made[name.split(",")[0]], settings) for name, settings in levels.items()}
    size = net.config.image_size
    image = np.random.default_rng(batch).integers(0, 256, (batch, 3, size, size), dtype=np.uint8)
    expected = sessions["plain"].run(["logits"], {"image": image})[0]
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for k in range(rounds + 1):
        for name in list(sessions)[:: 1 if k % 2 else -1]:
            took = seconds(sessions[name], image, slice_seconds, time.thread_time)
            if k:  # the first round warms up
                times[name].append(took)
    rows = []
    for name, opened in sessions.items():
        difference = np.abs(opened.run(["logits"], {"image": image})[0] - expected).max() / np.abs(expected).max()
        over = {base: round(ratio(times[name], times[base]), 3) for base in ("plain", "static") if base in times}
        rows.append(
            {
                "form": name,
                "milliseconds": round(1e3 * min(times[name]), 3),
                "over": over,
                "difference": None if name == "static" else float(difference),
                **reorders(made[name.split(",")[0]], levels[name]),
            }
        )
    return rows


def markdown(document: Any) -> str:
    """The results as tables."""
    machine = document["machine"]
    lines = [
        "# Forms of modulation",
        "",
        f"Made by `{document['command']}` on {document['date']}: one thread of {machine['cpu']}, onnxruntime "
        f"{machine['onnxruntime']}, load {machine['load_before'][0]:.1f} on {machine['cores']} cores. Processor time "
        f"of the fastest call, ratios medians of {document['rounds']} interleaved rounds; what the forms are is told "
        "in `benchmarks/model/graph_forms.py`. Difference: of the logits from those of the plain form, over the "
        "largest.",
    ]
    for part in document["networks"]:
        lines += [
            "",
            f"## {part['network']}",
            "",
            "| batch | form | ms | over plain | over static | layout reorders | nodes | difference |",
            "|--:|---|--:|--:|--:|--:|--:|--:|",
        ]
        for row in part["rows"]:
            static = f"{row['over']['static']:.3f}" if "static" in row["over"] else ""
            difference = "" if row["difference"] is None else f"{row['difference']:.1e}"
            lines.append(
                f"| {row['batch']} | {row['form']} | {row['milliseconds']:.3f} | {row['over']['plain']:.3f} | {static} "
                f"| {row['reorders']} | {row['nodes']} | {difference} |"
            )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    command_line = parser("model.graph_forms", __doc__, EXAMPLES)
    add_out(command_line, "graph_forms")
    add = command_line.add_argument
    add("--widths", type=int, nargs="*", default=[16, 64], help="of networks with random weights (16 64)")
    add("--ckpt", type=Path, nargs="*", default=[], metavar="FILE", help="AW-Net checkpoints to measure as well")
    add("--rounds", type=int, default=12, help="(%(default)s)")
    add("--slice", type=float, default=0.1, metavar="SECONDS", help="of one form (%(default)s)")
    options = command_line.parse_args(argv)
    machine = loaded_machine()
    nets = {f"width {width}, random weights": random_net(width) for width in options.widths}
    nets |= {f"{path.name}: width {net.config.width}": net for path in options.ckpt for net in [load(path).awnet]}
    networks = []
    for name, net in nets.items():
        rows = [{"batch": b, **row} for b in BATCHES for row in measured(net, b, options.rounds, options.slice)]
        networks.append({"network": name, "rows": rows})
    document = {
        "command": " ".join(["python -m benchmarks.model.graph_forms", *argv]),
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "rounds": options.rounds,
        "networks": networks,
    }
    conclude(options.out, document, markdown(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""AW-Net rewritten for inference, as an ONNX graph.

In evaluation everything that modulates a convolution is one scale and one shift a channel a sample. With
s, b the folded batch norms of `training.networks.awnet.fold` and p = P_type (Eq. 13-16)::

    scale_j = omega_j * (p_adv s_adv_j + p_nat s_nat_j)      shift_j = p_adv b_adv_j + p_nat b_nat_j
    unit_j(x) = scale_j * (K_j * x) + shift_j

so the graph computes them for the channels of *all* convolutions at once: one Gemm for every signal head, one
product of P_type with all rows that omega scales, one with all others, one Split after each. The shift of a
shortcut is added to that of the convolution it meets. The extractor's batch norms disappear into its filters.

A branch alone (s_adv, b_adv or s_nat, b_nat in place of the sums) is the same trunk once more: its filters are the
same constants, its stem convolution is the same node, and its shifts are constants. Bounded mixing is two such
passes and `training.networks.awnet.bounded_mixture` of their logits; the modes of a model are outputs of its own.

The graph is written node by node rather than traced: it is small, it has no local paths to clean away, and the
choice of each node is a matter of speed (`benchmarks/graph.py`). Tests hold it against `AWNet` in float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from .options import MODES as MODES
from .options import OPSET as OPSET
from .source import ADVERSARIAL, NATURAL, AWNet, Branch, ConvMixBN, DynamicBlock, ResNet18Extractor, fold

OPSETS = range(13, 22)  # what IR version 10 can carry and the nodes below mean the same in
IR_VERSION = 10
PRODUCER = "awnet"
BRANCHES: dict[str, Branch] = {"logits_adv": "adv", "logits_nat": "nat"}

Array = npt.NDArray[Any]


class GraphError(ValueError):
    """The network has a part that the inference graph cannot express."""


class Writer:
    """Nodes and constants of a graph under construction; every method returns the name of what it made.

    Constants are written in `dtype`, float32 for a model and float64 where a test wants exactness. With `half_weights`
    filters and matrices that float16 holds without loss are written in it, with a Cast that a runtime folds at load.
    """

    def __init__(self, dtype: torch.dtype, half_weights: bool = False) -> None:
        self.half_weights = half_weights
        self.dtype = np.dtype(str(dtype).removeprefix("torch."))
        self.type = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    @property
    def constants(self) -> list[onnx.TensorProto]:
        return list(self._constants.values())

    def constant(self, name: str, value: Tensor | Array | list[int] | float) -> str:
        """A constant: integers as int64, everything else in the graph's dtype. The same one again is no second one."""
        array = np.asarray(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
        return self._store(name, array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else self.dtype))

    def weights(self, name: str, value: Tensor) -> str:
        """Filters or a matrix of the network, as `constant` or in float16."""
        if not self.half_weights or not exact_in_half(value):
            return self.constant(name, value)
        stored = f"{name}.half"
        if stored not in self._constants:
            self.node("Cast", stored, out=name, to=self.type)
        self._store(stored, value.detach().cpu().numpy().astype(np.float16))
        return name

    def _store(self, name: str, array: Array) -> str:
        made = numpy_helper.from_array(array, name)
        if self._constants.setdefault(name, made) != made:
            raise GraphError(f"two constants are called {name}")
        return name

    def node(self, op: str, *inputs: str, out: str, **attributes: Any) -> str:
        """A node with one output, called `out`."""
        self.nodes.append(helper.make_node(op, inputs, [out], name=out, **attributes))
        return out

    def split(self, x: str, lengths: list[int], names: list[str]) -> list[str]:
        """x [N, sum of lengths] cut along axis 1."""
        parts = self.constant(f"{x}.lengths", lengths)
        self.nodes.append(helper.make_node("Split", [x, parts], names, name=f"{x}.split", axis=1))
        return names

    def conv(
        self,
        x: str,
        conv: nn.Conv2d,
        out: str,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        filters: str | None = None,
    ) -> str:
        """A convolution; scale and shift [c_out] go into its filters, a constant called `filters`, and its bias.

        Where weights are in float16 they stand beside it instead, so that filters keep their exact values; runtimes
        fold both into them at load.
        """
        if self.half_weights and scale is not None and shift is not None:
            y = self.conv(x, conv, f"{out}.plain")
            factor, summand = (
                self.constant(f"{out}.{kind}", value[None, :, None, None])
                for kind, value in (("scale", scale), ("shift", shift))
            )
            return self.node("Add", self.node("Mul", y, factor, out=f"{out}.scaled"), summand, out=out)
        weight = conv.weight if scale is None else conv.weight * scale[:, None, None, None]
        inputs = [x, self.weights(filters or f"{out}.weight", weight)]
        if shift is not None:
            inputs.append(self.constant(f"{out}.bias", shift))
        if isinstance(conv.padding, str) or conv.padding_mode != "zeros" or conv.bias is not None:
            raise GraphError(f"{out}: only convolutions without bias, padded by a number of zeros, can be exported")
        pad_y, pad_x = conv.padding
        return self.node(
            "Conv",
            *inputs,
            out=out,
            kernel_shape=list(conv.kernel_size),
            strides=list(conv.stride),
            pads=[pad_y, pad_x, pad_y, pad_x],
            dilations=list(conv.dilation),
            group=conv.groups,
        )

    def linear(self, x: str, weight: Tensor, bias: Tensor, out: str, constants: str | None = None) -> str:
        """x [N, d], weight [k, d], bias [k] -> [N, k]; `constants` is what both are called, `out` where None."""
        at = constants or out
        names = [self.weights(f"{at}.weight", weight), self.constant(f"{at}.bias", bias)]
        return self.node("Gemm", x, *names, out=out, transB=1)

    def pool(self, x: str, out: str) -> str:
        """Global average: [N,C,H,W] -> [N,C]."""
        return self.node("Flatten", self.node("GlobalAveragePool", x, out=f"{out}.map"), out=out, axis=1)


def exact_in_half(value: Tensor) -> bool:
    """Whether float16 holds every element as it is."""
    return bool(torch.equal(value.half().to(value.dtype), value))


def build(
    net: AWNet, *, modes: Collection[str] = ("auto",), half_weights: bool = False, opset: int = OPSET
) -> onnx.ModelProto:
    """The inference graph of `net` in evaluation mode.

    in `image` uint8 [N,3,H,W]; out `logits` [N,K], `p_type` [N,2] = [P(adversarial), P(natural)], `omega`
    [N, sum of c_out] in the order of `omega_layout`, then `logits_adv` and `logits_nat` [N,K] of the branches, where
    `modes_of` has the modes that they answer. Floats have the dtype of the network's parameters; N is dynamic.
    Constants are folded in float64 first. `half_weights` stores filters and matrices in float16, which changes no
    number: a checkpoint of a training holds them in it already.

    Raises:
        GraphError: an extractor without an emitter in `EXTRACTORS`, modes that `modes_of` refuses, an opset outside
            `OPSETS`, or filters that float16 would round.
    """
    if opset not in OPSETS:
        raise GraphError(f"opset must be {OPSETS.start} to {OPSETS.stop - 1}, not {opset}")
    emit_extractor = EXTRACTORS.get(type(net.extractor))
    if emit_extractor is None:
        known = ", ".join(cls.__name__ for cls in EXTRACTORS)
        raise GraphError(f"export knows no graph for the extractor {type(net.extractor).__name__} (it knows {known})")
    outputs = outputs_of(modes_of(net, modes))
    if half_weights:
        for name, parameter in net.named_parameters():
            if parameter.dim() == 4 and not exact_in_half(parameter):
                raise GraphError(
                    f"float16 would round {name}: the filters of a checkpoint that is to be exported so must be in it"
                )
    write = Writer(net.classifier.weight.dtype, half_weights)
    net = copy.deepcopy(net).double().eval()
    with torch.no_grad():
        x = emit_pixels(write, net)
        psi = emit_extractor(write, net.extractor, x)
        p_type, omega = emit_detector(write, net, psi)
        stem = write.conv(x, net.stem.conv, "stem")  # of every pass
        for name in outputs:
            if branch := BRANCHES.get(name):
                _branch(write, net, stem, omega, branch, out=name)
        if net.config.mixing == "bounded":
            _bounded_mixture(write, net, "type_logits")
        else:
            _modulation(write, net, p_type, omega)
            _trunk(write, net, stem)
    return model_of(write, net, outputs, opset=opset)


def modes_of(net: AWNet, asked: Collection[str] = ()) -> list[str]:
    """The modes that a model of `net` has, in the order of `MODES`: auto, those asked for, all where mixing is bounded.

    Raises:
        GraphError: an unknown mode, or a branch of a network that has one branch only.
    """
    if unknown := sorted(set(asked) - set(MODES)):
        raise GraphError(f"no mode is called {unknown[0]!r}: {', '.join(MODES)}")
    if net.config.mixing == "bounded":  # both branches are computed anyway
        return list(MODES)
    modes = [mode for mode in MODES if mode == "auto" or mode in asked]
    if len(modes) > 1 and not net.config.mixbn:
        raise GraphError("a network without mixbn has one branch, and so no other mode than auto")
    return modes


def outputs_of(modes: Collection[str]) -> tuple[str, ...]:
    """The outputs of a model with these modes, in order."""
    further = (name for mode, name in MODES.items() if mode in modes and mode != "auto")
    return ("logits", "p_type", "omega", *further)


def omega_layout(net: AWNet) -> list[tuple[str, int, int]]:
    """(name, offset, length) of each modulated convolution's channels in the `omega` output."""
    layout, offset = [], 0
    for name, unit in net.modulated():
        layout.append((name, offset, unit.conv.out_channels))
        offset += unit.conv.out_channels
    return layout


def emit_pixels(write: Writer, net: AWNet) -> str:
    """Bytes to normalised pixels; one small pass, shared by both sub-networks."""
    x = write.node("Cast", "image", out="image.float", to=write.type)
    x = write.node("Mul", x, write.constant("pixel.scale", 1 / (255 * net.std)), out="pixels")
    if bool(net.mean.any()):
        x = write.node("Sub", x, write.constant("pixel.mean", net.mean / net.std), out="pixels.centred")
    return x


def _resnet18(write: Writer, extractor: nn.Module, x: str) -> str:
    """`ResNet18Extractor` with its batch norms folded into its filters; -> psi [N, d]."""
    assert isinstance(extractor, ResNet18Extractor)

    def unit(x: str, unit: ConvMixBN, out: str) -> str:
        return write.conv(x, unit.conv, out, *fold(unit.nat))

    h = write.node("Relu", unit(x, extractor.stem, "extractor.stem"), out="extractor.stem.relu")
    for i, block in enumerate(_blocks(extractor.blocks)):
        at = f"extractor.blocks.{i}"
        out = write.node("Relu", unit(h, block.conv1, f"{at}.conv1"), out=f"{at}.relu1")
        out = unit(out, block.conv2, f"{at}.conv2")
        h = h if block.shortcut is None else unit(h, block.shortcut, f"{at}.shortcut")
        h = write.node("Relu", write.node("Add", out, h, out=f"{at}.sum"), out=f"{at}.relu2")
    return write.pool(h, "psi")


# An extractor can be exported when its class is here: (writer, module, normalised pixels) -> psi [N, d].
EXTRACTORS: dict[type[nn.Module], Callable[[Writer, nn.Module, str], str]] = {ResNet18Extractor: _resnet18}


def emit_detector(write: Writer, net: AWNet, psi: str) -> tuple[str, str]:
    """Eq. 20 and 21 -> names of p_type [N,2] and omega [N, sum of c_out]."""
    head = net.type_head
    type_logits = write.linear(psi, head.weight / head.temperature, head.bias / head.temperature, "type_logits")
    p_type = write.node("Softmax", type_logits, out="p_type", axis=1)
    weight = torch.cat([head.get_parameter("weight") for head in net.signal_heads])
    bias = torch.cat([head.get_parameter("bias") for head in net.signal_heads])
    signal = write.node("Tanh", write.linear(psi, weight, bias, "signals"), out="signals.tanh")
    # base ** beta; by squaring where beta is a power of two, which is faster
    squarings = {1.0: 0, 2.0: 1, 4.0: 2, 8.0: 3}.get(net.config.beta)
    steps = ["signals.base"] if squarings is None else [f"signals.power{2**i}" for i in range(squarings)] + ["omega"]
    omega = write.node("Add", signal, write.constant("one", 1.0), out=steps[0])
    for step in steps[1:]:
        omega = write.node("Mul", omega, omega, out=step)
    if squarings is None:
        omega = write.node("Pow", omega, write.constant("beta", net.config.beta), out="omega")
    return p_type, omega


def _modulation(
    write: Writer, net: AWNet, p_type: str, omega: str, branch: Branch | None = None, prefix: str = ""
) -> None:
    """Every `<unit>.scale` of the trunk, and every `<unit>.shift` but those of shortcuts, [N or 1,C,1,1].

    Two products with P_type and two Splits make them all: one for what omega scales, one for the rest. Of a branch
    the latter are constants, and no product is needed for the former either.
    """
    modulated = dict(net.modulated())
    units = {**modulated, "stem": net.stem}
    met: dict[str, ConvMixBN] = {}  # convolution -> the shortcut it meets, whose shift it takes over
    for i, block in enumerate(_blocks(net.blocks)):
        if block.shortcut is not None:
            last, _ = block.modulated()[-1]
            units[f"blocks.{i}.shortcut"] = met[f"blocks.{i}.{last}"] = block.shortcut

    by_omega: dict[str, Tensor] = {}
    by_type_alone: dict[str, Tensor] = {}
    for name, unit in units.items():
        scale, shift = _mix(unit, net, branch)
        if name in met:
            shift = shift + _mix(met[name], net, branch)[1]
        by = by_omega if net.config.dynamic and name in modulated else by_type_alone
        by[f"{prefix}{name}.scale"] = scale
        if unit not in met.values():
            by_type_alone[f"{prefix}{name}.shift"] = shift

    def emit(rows: dict[str, Tensor], kind: str, factor: str | None = None) -> None:
        table = write.constant(f"{kind}.rows", torch.cat(list(rows.values()), 1))
        x = table if branch else write.node("MatMul", p_type, table, out=kind)
        if factor is not None:
            x = write.node("Mul", x, factor, out=f"{kind}.product")
        maps = write.node("Unsqueeze", x, write.constant(f"{kind}.axes", [2, 3]), out=f"{kind}.map")
        write.split(maps, [row.shape[1] for row in rows.values()], list(rows))

    if branch:
        for name, row in by_type_alone.items():
            write.constant(name, row[:, :, None, None])
    else:
        emit(by_type_alone, "by_type_alone")
    if by_omega:
        emit(by_omega, f"{prefix}by_omega", omega)


def _mix(unit: ConvMixBN, net: AWNet, branch: Branch | None) -> tuple[Tensor, Tensor]:
    """Scale and shift of both batch norms, each [2, C] with rows as the columns of P_type (Eq. 16); of a branch [1, C].

    Equal rows, because P_type sums to one, say what a network without type weighting or MixBN does.
    """
    if branch:
        scale, shift = fold(unit.norm_for(branch))
        return scale[None], shift[None]
    scales, shifts = [torch.empty(0)] * 2, [torch.empty(0)] * 2
    scales[ADVERSARIAL], shifts[ADVERSARIAL] = fold(unit.norm_for("adv"))
    scales[NATURAL], shifts[NATURAL] = fold(unit.norm_for("nat" if net.config.type_weighting else "adv"))
    return torch.stack(scales), torch.stack(shifts)


def _trunk(write: Writer, net: AWNet, stem: str, out: str = "logits", prefix: str = "") -> str:
    """Eq. 17 and 18 for every block, of two convolutions or (ResNet-50) three; -> logits [N,K], called `out`."""

    def convolved(x: str, unit: ConvMixBN, at: str) -> str:
        return write.conv(x, unit.conv, f"{prefix}{at}", filters=f"{at}.weight")

    def scaled(x: str, at: str) -> str:
        return write.node("Mul", x, f"{prefix}{at}.scale", out=f"{prefix}{at}.scaled")

    def affine(x: str, at: str) -> str:
        return write.node("Add", scaled(x, at), f"{prefix}{at}.shift", out=f"{prefix}{at}.shifted")

    def relu(x: str, at: str) -> str:
        return write.node("Relu", x, out=f"{prefix}{at}")

    h = relu(affine(stem, "stem"), "stem.relu")
    for i, block in enumerate(_blocks(net.blocks)):
        at = f"blocks.{i}"
        inner, units = h, block.modulated()
        for k, (name, unit) in enumerate(units, start=1):
            inner = affine(convolved(inner, unit, f"{at}.{name}"), f"{at}.{name}")
            if k < len(units):
                inner = relu(inner, f"{at}.relu{k}")
        if block.shortcut is not None:
            h = scaled(convolved(h, block.shortcut, f"{at}.shortcut"), f"{at}.shortcut")
        h = relu(write.node("Add", inner, h, out=f"{prefix}{at}.sum"), f"{at}.relu{len(units)}")
    pooled = write.pool(h, f"{prefix}pooled")
    return write.linear(pooled, net.classifier.weight, net.classifier.bias, out, constants="logits")


def _branch(write: Writer, net: AWNet, stem: str, omega: str, branch: Branch, out: str) -> str:
    """The logits [N,K] of one branch; what omega does not scale is constant there."""
    prefix = f"{branch}."
    _modulation(write, net, "", omega, branch, prefix)
    return _trunk(write, net, stem, out, prefix)


def _bounded_mixture(write: Writer, net: AWNet, type_logits: str) -> str:
    """`networks.awnet.bounded_mixture` of both branches -> `logits`: log p [N,K], finite wherever its inputs are."""
    limit, temperature = net.config.mixing_limit, net.config.mixing_temperature

    def log_softmax(x: str) -> str:
        return write.node("LogSoftmax", x, out=f"{x}.log_softmax", axis=1)

    column = write.constant("natural.column", [NATURAL])
    natural = write.node("Gather", log_softmax(type_logits), column, out="log_p_natural", axis=1)
    log_a = write.node("Add", natural, write.constant("log_limit", math.log(limit)), out="log_a")
    rest = write.node("Sub", write.constant("one", 1.0), write.node("Exp", log_a, out="a"), out="1-a")
    sharp = write.node("Mul", "logits_adv", write.constant("mixing.temperature", temperature), out="logits_adv.sharp")
    robust = write.node("Add", write.node("Log", rest, out="log(1-a)"), log_softmax(sharp), out="mixture.adv")
    clean = write.node("Add", log_a, log_softmax("logits_nat"), out="mixture.nat")
    # log(e^x + e^y) = max(x, y) + log(1 + e^-|x - y|)
    gap = write.node("Abs", write.node("Sub", robust, clean, out="mixture.difference"), out="mixture.gap")
    less = write.node("Softplus", write.node("Neg", gap, out="mixture.-gap"), out="mixture.less")
    return write.node("Add", write.node("Max", robust, clean, out="mixture.larger"), less, out="logits")


def _blocks(modules: nn.ModuleList) -> Iterator[DynamicBlock]:
    for module in modules:
        assert isinstance(module, DynamicBlock)
        yield module


def model_of(write: Writer, net: AWNet, outputs: Sequence[str], *, opset: int = OPSET) -> onnx.ModelProto:
    """The nodes of `write` as a model from `image` to `outputs`; `net` gives the sizes."""
    widths = dict.fromkeys(MODES.values(), net.config.num_classes)
    widths |= {"p_type": 2, "omega": sum(length for _, _, length in omega_layout(net))}
    size = net.config.image_size
    graph = helper.make_graph(
        write.nodes,
        "awnet",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 3, size, size])],
        [helper.make_tensor_value_info(name, write.type, ["N", widths[name]]) for name in outputs],
        write.constants,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION, producer_name=PRODUCER
    )

"""AW-Net rewritten for inference, as an ONNX graph.

In evaluation everything that modulates a convolution is one scale and one shift a channel a sample. With
s, b the folded batch norms of `training.awnet.fold` and p = P_type (Eq. 13-16)::

    scale_j = omega_j * (p_adv s_adv_j + p_nat s_nat_j)      shift_j = p_adv b_adv_j + p_nat b_nat_j
    unit_j(x) = scale_j * (K_j * x) + shift_j

so the graph computes them for the channels of *all* convolutions at once: one Gemm for every signal head, one
product of P_type with all rows that omega scales, one with all others, one Split after each. The shift of a
shortcut is added to that of the convolution it meets. The extractor's batch norms disappear into its filters.

The graph is written node by node rather than traced: it is small, it has no local paths to clean away, and the
choice of each node is a matter of speed (`benchmarks/graph.py`). Tests hold it against `AWNet` in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from .source import ADVERSARIAL, NATURAL, AWNet, ConvMixBN, DynamicBlock, ResNet18Extractor, fold

OPSET = 20
OPSETS = range(13, 22)  # what IR version 10 can carry and the nodes below mean the same in
IR_VERSION = 10
PRODUCER = "awnet"

Array = npt.NDArray[Any]


class GraphError(ValueError):
    """The network has a part that the inference graph cannot express."""


class Writer:
    """Nodes and constants of a graph under construction; every method returns the name of what it made.

    Constants are written in `dtype`, float32 for a model and float64 where a test wants exactness.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = np.dtype(str(dtype).removeprefix("torch."))
        self.type = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Tensor | Array | list[int] | float) -> str:
        """A constant: integers as int64, everything else in the graph's dtype."""
        array = np.asarray(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
        array = array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else self.dtype)
        self.constants.append(numpy_helper.from_array(array, name))
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

    def conv(self, x: str, conv: nn.Conv2d, out: str, scale: Tensor | None = None, shift: Tensor | None = None) -> str:
        """A convolution; scale and shift [c_out] go into its filters and its bias."""
        weight = conv.weight if scale is None else conv.weight * scale[:, None, None, None]
        inputs = [x, self.constant(f"{out}.weight", weight)]
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

    def linear(self, x: str, weight: Tensor, bias: Tensor, out: str) -> str:
        """x [N, d], weight [k, d], bias [k] -> [N, k]."""
        return self.node(
            "Gemm", x, self.constant(f"{out}.weight", weight), self.constant(f"{out}.bias", bias), out=out, transB=1
        )

    def pool(self, x: str, out: str) -> str:
        """Global average: [N,C,H,W] -> [N,C]."""
        return self.node("Flatten", self.node("GlobalAveragePool", x, out=f"{out}.map"), out=out, axis=1)


def build(net: AWNet, *, opset: int = OPSET) -> onnx.ModelProto:
    """The inference graph of `net` in evaluation mode.

    in `image` uint8 [N,3,H,W]; out `logits` [N,K], `p_type` [N,2] = [P(adversarial), P(natural)], `omega`
    [N, sum of c_out] in the order of `omega_layout`. Floats have the dtype of the network's parameters;
    N is dynamic. Constants are folded in float64 first.

    Raises:
        GraphError: an extractor without an emitter in `EXTRACTORS`, or an opset outside `OPSETS`.
    """
    if opset not in OPSETS:
        raise GraphError(f"opset must be {OPSETS.start} to {OPSETS.stop - 1}, not {opset}")
    emit_extractor = EXTRACTORS.get(type(net.extractor))
    if emit_extractor is None:
        known = ", ".join(cls.__name__ for cls in EXTRACTORS)
        raise GraphError(f"export knows no graph for the extractor {type(net.extractor).__name__} (it knows {known})")
    if net.config.mixing != "norms":
        raise GraphError(f"mixing {net.config.mixing!r} has no graph yet")
    write = Writer(net.classifier.weight.dtype)
    net = copy.deepcopy(net).double().eval()
    with torch.no_grad():
        x = emit_pixels(write, net)
        psi = emit_extractor(write, net.extractor, x)
        p_type, omega = emit_detector(write, net, psi)
        _modulation(write, net, p_type, omega)
        logits = _trunk(write, net, x)
    return model_of(write, net, [logits, p_type, omega], opset=opset)


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


def _modulation(write: Writer, net: AWNet, p_type: str, omega: str) -> None:
    """Every `<unit>.scale` of the trunk, and every `<unit>.shift` but those of shortcuts, each [N,C,1,1].

    Two products with P_type and two Splits make them all: one for what omega scales, one for the rest.
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
        scale, shift = _mix(unit, net)
        if name in met:
            shift = shift + _mix(met[name], net)[1]
        (by_omega if net.config.dynamic and name in modulated else by_type_alone)[f"{name}.scale"] = scale
        if unit not in met.values():
            by_type_alone[f"{name}.shift"] = shift

    def emit(rows: dict[str, Tensor], kind: str, factor: str | None = None) -> None:
        x = write.node("MatMul", p_type, write.constant(f"{kind}.rows", torch.cat(list(rows.values()), 1)), out=kind)
        if factor is not None:
            x = write.node("Mul", x, factor, out=f"{kind}.product")
        maps = write.node("Unsqueeze", x, write.constant(f"{kind}.axes", [2, 3]), out=f"{kind}.map")
        write.split(maps, [row.shape[1] for row in rows.values()], list(rows))

    emit(by_type_alone, "by_type_alone")
    if by_omega:
        emit(by_omega, "by_omega", omega)


def _mix(unit: ConvMixBN, net: AWNet) -> tuple[Tensor, Tensor]:
    """Scale and shift of both batch norms, each [2, C] with rows as the columns of P_type (Eq. 16).

    Equal rows, because P_type sums to one, say what a network without type weighting or MixBN does.
    """
    scales, shifts = [torch.empty(0)] * 2, [torch.empty(0)] * 2
    scales[ADVERSARIAL], shifts[ADVERSARIAL] = fold(unit.norm_for("adv"))
    scales[NATURAL], shifts[NATURAL] = fold(unit.norm_for("nat" if net.config.type_weighting else "adv"))
    return torch.stack(scales), torch.stack(shifts)


def _trunk(write: Writer, net: AWNet, x: str) -> str:
    """Eq. 17 and 18 for every block, of two convolutions or (ResNet-50) three; -> logits [N,K]."""

    def scaled(x: str, unit: ConvMixBN, at: str) -> str:
        return write.node("Mul", write.conv(x, unit.conv, at), f"{at}.scale", out=f"{at}.scaled")

    def affine(x: str, unit: ConvMixBN, at: str) -> str:
        return write.node("Add", scaled(x, unit, at), f"{at}.shift", out=f"{at}.shifted")

    h = write.node("Relu", affine(x, net.stem, "stem"), out="stem.relu")
    for i, block in enumerate(_blocks(net.blocks)):
        at = f"blocks.{i}"
        inner, units = h, block.modulated()
        for k, (name, unit) in enumerate(units, start=1):
            inner = affine(inner, unit, f"{at}.{name}")
            if k < len(units):
                inner = write.node("Relu", inner, out=f"{at}.relu{k}")
        h = h if block.shortcut is None else scaled(h, block.shortcut, f"{at}.shortcut")
        h = write.node("Relu", write.node("Add", inner, h, out=f"{at}.sum"), out=f"{at}.relu{len(units)}")
    return write.linear(write.pool(h, "pooled"), net.classifier.weight, net.classifier.bias, "logits")


def _blocks(modules: nn.ModuleList) -> Iterator[DynamicBlock]:
    for module in modules:
        assert isinstance(module, DynamicBlock)
        yield module


def model_of(write: Writer, net: AWNet, outputs: Sequence[str], *, opset: int = OPSET) -> onnx.ModelProto:
    """The nodes of `write` as a model from `image` to `outputs`; `net` gives the sizes."""
    widths = {"logits": net.config.num_classes, "p_type": 2, "omega": sum(length for _, _, length in omega_layout(net))}
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

"""AW-Net rewritten for inference, as an ONNX graph.

In evaluation everything that modulates a convolution is one scale and one shift a channel a sample, made for the
channels of all convolutions at once; `modulation` says how they meet the maps. One Gemm serves every signal head. The
extractor's batch norms disappear into its filters.

A branch alone (s_adv, b_adv or s_nat, b_nat in place of the sums) is the same trunk once more: its filters are the
same constants, its stem convolution is the same node, and its shifts are constants. Bounded mixing is two such
passes and `training.networks.awnet.bounded_mixture` of their logits; the modes of a model are outputs of its own.

The graph is written node by node rather than traced: it is small, it has no local paths to clean away, and the
choice of each node is a matter of speed (`benchmarks/model/graph.py`). Tests hold it against `AWNet` in float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Sequence

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from ..options import MODES as MODES
from ..options import OPSET as OPSET
from .modulation import Blocked, BlockedBranch, Modulation, Plain, blocks_of, fits_blocks, omega_maps
from .source import NATURAL, AWNet, Branch, ConvMixBN, ResNet18Extractor, fold
from .writer import GraphError as GraphError
from .writer import Writer as Writer
from .writer import exact_in_half

OPSETS = range(13, 22)  # what IR version 10 can carry and the nodes below mean the same in
IR_VERSION = 10
PRODUCER = "awnet"
BRANCHES: dict[str, Branch] = {"logits_adv": "adv", "logits_nat": "nat"}


def build(
    net: AWNet,
    *,
    modes: Collection[str] = ("auto",),
    half_weights: bool = False,
    blocked: bool | None = None,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """The inference graph of `net` in evaluation mode.

    in `image` uint8 [N,3,H,W]; out `logits` [N,K], `p_type` [N,2] = [P(adversarial), P(natural)], `omega`
    [N, sum of c_out] in the order of `omega_layout`, then `logits_adv` and `logits_nat` [N,K] of the branches, where
    `modes_of` has the modes that they answer. Floats have the dtype of the network's parameters; N is dynamic.
    Constants are folded in float64 first. `half_weights` stores filters and matrices in float16, which changes no
    number: a checkpoint of a training holds them in it already. `blocked` chooses the form of modulation, that which is
    faster on a CPU in float32 where None; both give the same answers.

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
    blocked = fits_blocks(net) if blocked is None else blocked
    write = Writer(net.classifier.weight.dtype, half_weights)
    net = copy.deepcopy(net).double().eval()
    with torch.no_grad():
        x = emit_pixels(write, net)
        psi = emit_extractor(write, net.extractor, x)
        p_type, omega = emit_detector(write, net, psi)
        stem = write.conv(x, net.stem.conv, "stem")  # of every pass
        branches = [name for name in outputs if name in BRANCHES]
        maps = omega_maps(write, net, omega) if blocked and branches else {}
        for name in branches:
            branch, prefix = BRANCHES[name], f"{BRANCHES[name]}."
            form: Modulation = (
                BlockedBranch(write, net, maps, branch, prefix)
                if blocked
                else Plain(write, net, p_type, omega, branch, prefix)
            )
            emit_trunk(write, net, stem, form, name, prefix)
        if net.config.mixing == "bounded":
            _bounded_mixture(write, net, "type_logits")
        else:
            emit_trunk(write, net, stem, (Blocked if blocked else Plain)(write, net, p_type, omega))
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
    for i, block in enumerate(blocks_of(extractor.blocks)):
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


def emit_trunk(write: Writer, net: AWNet, stem: str, form: Modulation, out: str = "logits", prefix: str = "") -> str:
    """Eq. 17 and 18 for every block, of two convolutions or (ResNet-50) three; -> logits [N,K], called `out`.

    `stem` is the output of the stem's convolution; `form` modulates it and those of the blocks.
    """

    def convolved(x: str, unit: ConvMixBN, at: str) -> str:
        return write.conv(x, unit.conv, f"{prefix}{at}", filters=f"{at}.weight")

    def relu(x: str, at: str) -> str:
        return write.node("Relu", x, out=f"{prefix}{at}")

    h = relu(form.affine(stem, "stem"), "stem.relu")
    for i, block in enumerate(blocks_of(net.blocks)):
        at = f"blocks.{i}"
        inner, (*first, last) = h, block.modulated()
        for k, (name, unit) in enumerate(first, start=1):
            inner = relu(form.affine(convolved(inner, unit, f"{at}.{name}"), f"{at}.{name}"), f"{at}.relu{k}")
        if block.shortcut is not None:
            h = form.shortcut(convolved(h, block.shortcut, f"{at}.shortcut"), f"{at}.shortcut")
        name, unit = last
        h = form.affine(convolved(inner, unit, f"{at}.{name}"), f"{at}.{name}", h)
        h = relu(h, f"{at}.relu{len(first) + 1}")
    pooled = write.pool(h, f"{prefix}pooled")
    return write.linear(pooled, net.classifier.weight, net.classifier.bias, out, constants="logits")


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
        value_info=write.value_info,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION, producer_name=PRODUCER
    )

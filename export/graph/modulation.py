"""What P_type and omega do to the outputs of the trunk's convolutions, in the form that a runtime computes fastest.

Of every convolution of the trunk, with s, b the folded batch norms of `training.networks.awnet.fold` (Eq. 13-16)::

    scale_j = omega_j * (p_adv s_adv_j + p_nat s_nat_j)      shift_j = p_adv b_adv_j + p_nat b_nat_j
    unit_j(x) = scale_j * (K_j * x) + shift_j

`Plain` writes that as a broadcast Mul and Add. On a CPU ONNX Runtime keeps maps in blocks of 16 (AVX-512) or 8 (AVX2)
channels from one convolution to the next, but not through a Mul or Add of [N,C,H,W] with [N,C,1,1]: it puts a map into
the usual order before them and back after them. `Blocked` and `BlockedBranch` write the same with operators that it
does compute in blocks: a Mul with a scale that Resize has made as large as the map, and as the shift a convolution of
P(adversarial), or of a single branch a BatchNormalization. The runtime computes those two as one pass that also adds
what the unit meets and applies the ReLU. `python -m benchmarks.model.graph_forms` measures these and others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .source import ADVERSARIAL, NATURAL, AWNet, Branch, ConvMixBN, DynamicBlock, fold
from .writer import Writer

BLOCK = 16  # channels


class Modulation(Protocol):
    """Scale and shift of the units of one pass over the trunk."""

    def affine(self, x: str, at: str, met: str | None = None) -> str:
        """x [N,C,H,W], what the convolution of unit `at` puts out -> scale * x + shift (+ `met`, of that shape)."""

    def shortcut(self, x: str, at: str) -> str:
        """The same of a shortcut, whose shift may be left to the unit that it meets."""


def fits_blocks(net: AWNet) -> bool:
    """Whether the trunk's maps consist of whole blocks: `Blocked` gains nothing where they do not."""
    return all(unit.conv.out_channels % BLOCK == 0 for unit in _units(net).values())


class Plain:
    """Scales and shifts [N or 1,C,1,1], all made by two products with P_type and two Splits: one for what omega scales,
    one for the rest. The shift of a shortcut is added to that of the convolution it meets. Of a branch the shifts are
    constants, and no product is needed for the scales either.
    """

    def __init__(
        self, write: Writer, net: AWNet, p_type: str, omega: str, branch: Branch | None = None, prefix: str = ""
    ) -> None:
        self.write, self.prefix = write, prefix
        modulated, met = dict(net.modulated()), _met(net)
        by_omega: dict[str, Tensor] = {}
        by_type_alone: dict[str, Tensor] = {}
        for name, unit in _units(net).items():
            scale, shift = _mix(unit, net, branch)
            by = by_omega if net.config.dynamic and name in modulated else by_type_alone
            by[f"{prefix}{name}.scale"] = scale
            if unit not in met.values():
                by_type_alone[f"{prefix}{name}.shift"] = _shift(shift, name, met, net, branch)
        if branch:
            for name, row in by_type_alone.items():
                write.constant(name, row[:, :, None, None])
        else:
            _split(write, by_type_alone, "by_type_alone", p_type)
        if by_omega:
            _split(write, by_omega, f"{prefix}by_omega", None if branch else p_type, omega)

    def affine(self, x: str, at: str, met: str | None = None) -> str:
        at = f"{self.prefix}{at}"
        y = self.write.node("Add", self._scaled(x, at), f"{at}.shift", out=f"{at}.shifted")
        return y if met is None else self.write.node("Add", y, met, out=f"{at}.sum")

    def shortcut(self, x: str, at: str) -> str:
        return self._scaled(x, f"{self.prefix}{at}")

    def _scaled(self, x: str, at: str) -> str:
        return self.write.node("Mul", x, f"{at}.scale", out=f"{at}.scaled")


class Blocked:
    """Scales as maps [N,C,H,W]; what P_type alone decides is a 1x1 convolution of a map of P(adversarial)."""

    def __init__(self, write: Writer, net: AWNet, p_type: str, omega: str) -> None:
        self.write, self.net = write, net
        self.units, self.met, self.strides = _units(net), _met(net), _strides(net)
        self.maps: dict[str, str] = {}
        modulated = dict(net.modulated())
        if net.config.dynamic:
            rows = {f"{name}.scale": _mix(unit, net, None)[0] for name, unit in modulated.items()}
            self.maps = scale_maps(write, net, _split(write, rows, "by_omega", p_type, omega))
        column = write.node("Gather", p_type, write.constant("adversarial.column", [ADVERSARIAL]), out="p.adv", axis=1)
        pixel = write.node("Unsqueeze", column, write.constant("p.axes", [2, 3]), out="p.adv.pixel")
        size = net.config.image_size
        self.p_adv = write.node("Expand", pixel, write.constant("p.adv.shape", [1, 1, size, size]), out="p.adv.map")
        write.shaped(self.p_adv, 1, size)

    def affine(self, x: str, at: str, met: str | None = None) -> str:
        y = self.shortcut(x, at)
        if met is not None:
            y = self.write.node("Add", y, met, out=f"{at}.sum")
        shift = _shift(_mix(self.units[at], self.net, None)[1], at, self.met, self.net, None)
        return self.write.node("Add", self._by_type(shift, at, "shift"), y, out=f"{at}.shifted")

    def shortcut(self, x: str, at: str) -> str:
        scale = self.maps.get(at) or self._by_type(_mix(self.units[at], self.net, None)[0], at, "scale")
        return self.write.node("Mul", x, scale, out=f"{at}.scaled")

    def _by_type(self, rows: Tensor, at: str, kind: str) -> str:
        """rows [2,C] -> the map [N,C,H,W] of P_type @ rows, as a stride lets a pixel's worth of it fall on each."""
        out = f"{at}.{kind}"
        weight = self.write.constant(f"{out}.weight", (rows[ADVERSARIAL] - rows[NATURAL])[:, None, None, None])
        bias = self.write.constant(f"{out}.bias", rows[NATURAL])
        stride = self.strides[at]
        return self.write.node("Conv", self.p_adv, weight, bias, out=out, kernel_shape=[1, 1], strides=[stride, stride])


class BlockedBranch:
    """One branch: maps of omega, which all branches share, and batch norms with constants."""

    def __init__(self, write: Writer, net: AWNet, maps: Mapping[str, str], branch: Branch, prefix: str) -> None:
        self.write, self.maps, self.branch, self.prefix = write, maps, branch, prefix
        self.units = _units(net)

    def affine(self, x: str, at: str, met: str | None = None) -> str:
        out = f"{self.prefix}{at}"
        if at in self.maps:
            x = self.write.node("Mul", x, self.maps[at], out=f"{out}.scaled")
        scale, shift = fold(self.units[at].norm_for(self.branch))
        c = len(scale)
        constants = [
            self.write.constant(f"{out}.scale", scale),
            self.write.constant(f"{out}.shift", shift),
            self.write.constant(f"zeros.{c}", torch.zeros(c)),
            self.write.constant(f"ones.{c}", torch.ones(c)),
        ]
        y = self.write.node("BatchNormalization", x, *constants, out=f"{out}.shifted", epsilon=0.0)
        return y if met is None else self.write.node("Add", y, met, out=f"{out}.sum")

    def shortcut(self, x: str, at: str) -> str:
        return self.affine(x, at)


def omega_maps(write: Writer, net: AWNet, omega: str) -> dict[str, str]:
    """omega [N, sum of c_out] -> by modulated unit a map [N,C,H,W] of its part, constant within a channel."""
    if not net.config.dynamic:
        return {}
    maps = write.node("Unsqueeze", omega, write.constant("omega.axes", [2, 3]), out="omega.map")
    lengths = [unit.conv.out_channels for _, unit in net.modulated()]
    return scale_maps(write, net, write.split(maps, lengths, [f"{name}.omega" for name, _ in net.modulated()]))


def scale_maps(write: Writer, net: AWNet, scales: list[str]) -> dict[str, str]:
    """Scales [N,C,1,1] of the modulated units, in their order -> by unit a map of the unit's size.

    The MaxPool changes nothing. It is there because the runtime begins a blocked layout at a pooling, not at a Resize.
    """
    strides, maps = _strides(net), {}
    for (name, unit), scale in zip(net.modulated(), scales, strict=True):
        size = -(-net.config.image_size // strides[name])
        pixel = write.node("MaxPool", scale, out=f"{scale}.pixel", kernel_shape=[1, 1])
        maps[name] = resized(write, pixel, f"{scale}.map", unit.conv.out_channels, size)
    return maps


def resized(write: Writer, pixel: str, out: str, channels: int, size: int) -> str:
    """pixel [N,channels,1,1] -> the same everywhere on [N,channels,size,size], called `out`."""
    factors = write.floats(f"resize.{size}", np.array([1, 1, size, size]))
    write.shaped(out, channels, size)
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return write.node("Resize", pixel, "", factors, out=out, **how)


def _split(
    write: Writer, rows: Mapping[str, Tensor], kind: str, p_type: str | None, factor: str | None = None
) -> list[str]:
    """rows name -> [2 or 1, C]: P_type @ rows, or without P_type the rows, times `factor` -> each [N,C,1,1]."""
    x = write.constant(f"{kind}.rows", torch.cat(list(rows.values()), 1))
    if p_type is not None:
        x = write.node("MatMul", p_type, x, out=kind)
    if factor is not None:
        x = write.node("Mul", x, factor, out=f"{kind}.product")
    maps = write.node("Unsqueeze", x, write.constant(f"{kind}.axes", [2, 3]), out=f"{kind}.map")
    return write.split(maps, [row.shape[1] for row in rows.values()], list(rows))


def _units(net: AWNet) -> dict[str, ConvMixBN]:
    """Every unit of the trunk by name."""
    shortcuts = {f"blocks.{i}.shortcut": b.shortcut for i, b in enumerate(blocks_of(net.blocks)) if b.shortcut}
    return {**dict(net.modulated()), "stem": net.stem, **shortcuts}


def _met(net: AWNet) -> dict[str, ConvMixBN]:
    """Convolution -> the shortcut it meets, whose shift it takes over."""
    return {
        f"blocks.{i}.{block.modulated()[-1][0]}": block.shortcut
        for i, block in enumerate(blocks_of(net.blocks))
        if block.shortcut is not None
    }


def _strides(net: AWNet) -> dict[str, int]:
    """By unit, pixels of the image from one of its outputs to the next."""
    stride, strides = net.stem.conv.stride[0], {"stem": net.stem.conv.stride[0]}
    for i, block in enumerate(blocks_of(net.blocks)):
        for name, unit in block.modulated():
            stride *= unit.conv.stride[0]
            strides[f"blocks.{i}.{name}"] = stride
        strides[f"blocks.{i}.shortcut"] = stride
    return strides


def _shift(shift: Tensor, at: str, met: Mapping[str, ConvMixBN], net: AWNet, branch: Branch | None) -> Tensor:
    return shift + _mix(met[at], net, branch)[1] if at in met else shift


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


def blocks_of(modules: nn.ModuleList) -> Iterator[DynamicBlock]:
    """The blocks, as what they are."""
    for module in modules:
        assert isinstance(module, DynamicBlock)
        yield module

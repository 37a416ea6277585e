"""An AW-Net in evaluation whose weights stand still, computed in fewer operations: what an attack on it differentiates.

`AWNet` folds the batch norms of each convolution, multiplies by each signal head and weights each pair of norms
whenever it is called, and an attack calls it ten times between two updates of the weights. Here all norms are folded
once, all signal heads are one product, and the mixed scales and shifts of the whole trunk are one product, cut once.
The extractor's norms, which nothing modulates, become part of its filters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .awnet import AWNet, ConvMixBN, DynamicBlock, Modulate, ResNet18Extractor, bounded_mixture, fold
from .network import ADVERSARIAL, NATURAL, Branch, DetectingNetwork, Signals

Part = tuple[slice, Branch | None]  # images of a batch, and the branch that answers; None: as the network is deployed


class StillNetwork(Protocol):
    """A detecting network in evaluation whose weights stand still; its signals are for itself alone."""

    def detect(self, x: Tensor) -> Signals:
        """The detector's outputs for x [N,3,H,W]."""

    def classify(self, x: Tensor, signals: Signals, branch: Branch | None = None) -> Tensor:
        """Logits [N,K] of x under given signals."""

    def classify_parts(self, x: Tensor, signals: Signals, parts: Sequence[Part]) -> Tensor:
        """`classify` of parts that make up the batch, in order, each with its own branch: logits [N,K]."""


def still(net: DetectingNetwork) -> StillNetwork:
    """`net`, in evaluation, as cheap to call as it can be until its weights move."""
    return Folded(net) if isinstance(net, AWNet) else InParts(net)


@dataclass(frozen=True)
class InParts:
    """A detecting network as it is, each part of a batch in a forward of its own."""

    net: DetectingNetwork

    def detect(self, x: Tensor) -> Signals:
        return self.net.detect(x)

    def classify(self, x: Tensor, signals: Signals, branch: Branch | None = None) -> Tensor:
        return self.net.classify(x, signals, branch)

    def classify_parts(self, x: Tensor, signals: Signals, parts: Sequence[Part]) -> Tensor:
        return torch.cat([self.net.classify(x[rows], signals.of(rows), branch) for rows, branch in parts])


class Filters(NamedTuple):
    """A convolution; `bias` is what is left of a batch norm whose scale is part of the weight."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    @classmethod
    def of(cls, unit: ConvMixBN, dtype: torch.dtype, norm: nn.BatchNorm2d | None = None) -> Filters:
        conv, weight, bias = unit.conv, unit.conv.weight.detach(), None
        if norm is not None:
            scale, shift = fold(norm)
            weight, bias = weight * scale[:, None, None, None], shift.to(dtype)
        assert not isinstance(conv.padding, str)
        return cls(weight.to(dtype), bias, conv.stride, conv.padding)

    def __call__(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class Folded:
    """`net` as it is now: its answers within rounding, and the image's gradient through them; filters, norms and signal
    heads get none. Once the weights have moved it is neither the old network nor the new one: make another.

    It is made and called in the same autocast region: the filters are cast once, here. The scales and shifts of the
    norms are float32 until they meet a convolution's output, also where `AWNet` rounds them to bfloat16 before.

    Raises:
        ValueError: `net` is in training mode, where batch norms do not fold.
    """

    def __init__(self, net: AWNet) -> None:
        if net.training:
            raise ValueError("only a network in evaluation mode folds: its batch norms stand still there")
        self.net, self.config = net, net.config
        blocks = cast(Iterable[DynamicBlock], net.blocks)
        modulated = [unit for _, unit in net.modulated()]
        static = [net.stem, *(block.shortcut for block in blocks if block.shortcut is not None)]
        units = [*modulated, *static]  # those that omega scales come first, so that it is one factor
        place = {id(unit): i for i, unit in enumerate(units)}
        self.stem = place[id(net.stem)]
        self.blocks = [
            ([place[id(unit)] for _, unit in block.modulated()], place.get(id(block.shortcut))) for block in blocks
        ]
        self.sizes = [unit.conv.out_channels for unit in units]
        self.modulated = sum(self.sizes[: len(modulated)])
        heads, weight = list(net.signal_heads), net.classifier.weight
        kind = weight.device.type
        self.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        with torch.no_grad():
            self.filters = [Filters.of(unit, self.dtype) for unit in units]
            norms = folded_norms([unit.norm_for("adv") for unit in units]), folded_norms([unit.nat for unit in units])
            self.scales, self.shifts = (torch.stack(both) for both in zip(*norms, strict=True))  # [2,C] each
            self.heads = torch.cat([cast(Tensor, head.weight) for head in heads])  # [modulated,d]
            self.biases = torch.cat([cast(Tensor, head.bias) for head in heads])
            own = net.extractor
            self.extractor = FoldedExtractor(own, self.dtype) if isinstance(own, ResNet18Extractor) else own

    def detect(self, x: Tensor) -> Signals:
        """As `AWNet.detect`, but omega is one tensor, [N, sum of c_out], the concatenation of the other's."""
        psi: Tensor = self.extractor(self.net.normalise(x))
        with torch.autocast(psi.device.type, enabled=False):
            omega = torch.tanh(F.linear(psi.to(self.heads.dtype), self.heads, self.biases)) + 1
            if self.config.beta != 1:
                omega = omega.pow(self.config.beta)
        return Signals(self.net.type_head(psi), (omega,))

    def mixed(self, x: Tensor, omega: Tensor, mix: Tensor) -> Tensor:
        """Logits [N,K] of x [N,3,H,W] where each image has its own omega [N, sum of c_out] and weights of the two
        batch norms, mix [N,2] or one row for all, (1, 0) being BN_adv alone."""
        with torch.autocast(x.device.type, enabled=False):
            mix = mix.to(self.scales.dtype)
            scale, shift = mix @ self.scales, mix @ self.shifts
            if self.config.dynamic:
                rest = scale[:, self.modulated :].expand(len(omega), -1)
                scale = torch.cat([scale[:, : self.modulated] * omega.to(scale.dtype), rest], dim=1)
            scales, shifts = (t.to(self.dtype)[:, :, None, None].split(self.sizes, dim=1) for t in (scale, shift))

        def unit(i: int, h: Tensor) -> Tensor:
            out: Tensor = Modulate.apply(self.filters[i](h), scales[i], shifts[i])
            return out

        h = F.relu_(unit(self.stem, self.net.normalise(x).to(self.dtype)))
        for modulated, shortcut in self.blocks:
            out = h
            for i in modulated[:-1]:
                out = F.relu_(unit(i, out))
            h = F.relu_(unit(modulated[-1], out).add_(h if shortcut is None else unit(shortcut, h)))
        logits: Tensor = self.net.classifier(h.mean(dim=(2, 3)))
        return logits

    def classify(self, x: Tensor, signals: Signals, branch: Branch | None = None) -> Tensor:
        """As `AWNet.classify`, also under that network's own signals."""
        return self.classify_parts(x, signals, [(slice(0, len(x)), branch)])

    def classify_parts(self, x: Tensor, signals: Signals, parts: Sequence[Part]) -> Tensor:
        """In one forward, told apart by the weights of their norms; with bounded mixing, what both branches answer is
        in it twice."""
        deployed: Branch | None = None if self.config.type_weighting else "adv"
        parts = [(rows, branch or deployed) for rows, branch in parts]
        omega = torch.cat(signals.omega, dim=1)
        if self.config.mixing == "norms":
            p_type = signals.p_type
            mix = [self.forced(rows, branch) if branch else p_type[rows] for rows, branch in parts]
            return self.mixed(x, omega, torch.cat(mix))
        both = [rows for rows, branch in parts if branch is None]
        mix = [self.forced(rows, branch or "adv") for rows, branch in parts]
        mix += [self.forced(rows, "nat") for rows in both]
        x, omega = (torch.cat([t, *(t[rows] for rows in both)]) for t in (x, omega))
        logits = self.mixed(x, omega, torch.cat(mix))
        answers, natural = [], logits[len(signals.type_logits) :]
        for rows, branch in parts:
            answer = logits[rows]
            if branch is None:
                limit, temperature, n = self.config.mixing_limit, self.config.mixing_temperature, len(answer)
                answer = bounded_mixture(answer, natural[:n], signals.type_logits[rows], limit, temperature)
                natural = natural[n:]
            answers.append(answer)
        return torch.cat(answers)

    def forced(self, rows: slice, branch: Branch) -> Tensor:
        """Weights [n,2] that leave one branch alone for these images."""
        mix = self.scales.new_zeros(rows.stop - rows.start, 2)
        mix[:, ADVERSARIAL if branch == "adv" else NATURAL] = 1
        return mix

    def __call__(self, x: Tensor, branch: Branch | None = None) -> Tensor:
        return self.classify(x, self.detect(x), branch)


class FoldedExtractor:
    """A `ResNet18Extractor` in evaluation: its batch norms, which nothing modulates, are part of the filters."""

    def __init__(self, extractor: ResNet18Extractor, dtype: torch.dtype) -> None:
        def whole(unit: ConvMixBN) -> Filters:
            return Filters.of(unit, dtype, unit.nat)

        self.dtype, self.stem = dtype, whole(extractor.stem)
        self.blocks = [
            (whole(block.conv1), whole(block.conv2), None if block.shortcut is None else whole(block.shortcut))
            for block in cast(Iterable[DynamicBlock], extractor.blocks)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        h = F.relu_(self.stem(x.to(self.dtype)))
        for first, second, shortcut in self.blocks:
            h = F.relu_(second(F.relu_(first(h))).add_(h if shortcut is None else shortcut(h)))
        return h.mean(dim=(2, 3))


def folded_norms(norms: Sequence[nn.BatchNorm2d]) -> tuple[Tensor, Tensor]:
    """The scales and shifts [sum of C] of all these norms, one after the other: `awnet.fold` of their concatenation."""
    weight, bias, mean, variance = (
        torch.cat([cast(Tensor, getattr(norm, name)) for norm in norms])
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight * torch.rsqrt(variance + norms[0].eps)
    return scale, bias - mean * scale

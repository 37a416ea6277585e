"""AW-Net, the whole network: MixBN, dynamic blocks, adversarial detector.

The paper is X. Wei and S. Zhao, "Revisiting the Trade-off between Accuracy and Robustness via Weight
Distribution of Filters"; equation and section numbers below are the paper's. Where it leaves a choice
open, the choice is a field of `AWNetConfig` and is argued in docs/reproduction.md.

How one image flows (evaluation)::

    x [N,3,H,W] in [0,1] --> extractor D --> psi [N,d] --> type head    --> P_type [N,2]
         |                                            \\-> signal heads --> omega, one [N,c_out] a convolution
         \\-> stem --> blocks: conv, times omega, MixBN weighted by P_type --> pool --> logits [N,K]

Type columns are (adversarial, natural) everywhere. The paper's scalar P_type in Eq. 16 is P(natural),
column `network.NATURAL`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.hardware import Conv2d
from .network import NATURAL, Branch, DetectingNetwork, Signals

MIXINGS = ("norms", "bounded")
BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


@dataclass(frozen=True)
class AWNetConfig:
    """Everything needed to rebuild an AW-Net. The defaults are the paper's CIFAR-10 network.

    Attributes:
        depth: ResNet depth of the trunk: 18 or 34 (two-layer blocks, Eq. 18), or 50 (bottleneck blocks).
        width: channels of the first stage; the four stages have 1, 2, 4, 8 times as many. 64 is full width.
            (The blocks of depth 50 put out four times as many.)
        num_classes: K, the number of logits.
        image_size: height and width of the square input, pixels.
        beta: the exponent of Eq. 21; 0 < beta.
        extractor: name in `EXTRACTORS`.
        extractor_width: channels of its first stage; 0 means the trunk's `width`.
        extractor_frozen: its parameters get no gradient (sec. 5.1) and its batch norms stay in evaluation
            mode. The gradient *through* it to the image is never cut: a white-box attacker has it.
        dynamic: multiply filters by omega (Eq. 13); off, omega is 1.
        mixbn: two batch norms (Eq. 15); off, one batch norm serves both kinds of image.
        type_weighting: weight the two by P_type in evaluation (Eq. 16); off, BN_adv alone is used.
        mixing: what P_type weights: 'norms', the two batch norms of every convolution (Eq. 16), or 'bounded', the
            class probabilities of the two branches, see `bounded_mixture`.
        mixing_limit, mixing_temperature: a_max and T of 'bounded'; 0 < a_max < 0.5, 0 < T.
        mean, std: per-channel normalisation inside the network; the paper uses none.
    """

    depth: int = 18
    width: int = 64
    num_classes: int = 10
    image_size: int = 32
    beta: float = 4.0
    extractor: str = "resnet18"
    extractor_width: int = 0
    extractor_frozen: bool = True
    dynamic: bool = True
    mixbn: bool = True
    type_weighting: bool = True
    mixing: str = "norms"
    mixing_limit: float = 0.45
    mixing_temperature: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.depth not in BLOCKS_PER_STAGE:
            raise ValueError(f"depth must be one of {sorted(BLOCKS_PER_STAGE)}, not {self.depth}")
        if self.extractor not in EXTRACTORS:
            raise ValueError(f"extractor must be one of {sorted(EXTRACTORS)}, not {self.extractor!r}")
        for name in ("width", "num_classes", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.beta <= 0 or self.extractor_width < 0:
            raise ValueError("beta must be positive and extractor_width not negative")
        if self.mixing not in MIXINGS:
            raise ValueError(f"mixing must be one of {', '.join(MIXINGS)}, not {self.mixing!r}")
        if self.mixing == "bounded" and not (self.mixbn and self.type_weighting):
            raise ValueError("mixing 'bounded' needs mixbn and type_weighting: without them both branches are the same")
        if not 0 < self.mixing_limit < 0.5 or self.mixing_temperature <= 0:
            raise ValueError("mixing_limit must lie between 0 and 0.5, and mixing_temperature must be positive")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("mean and std need three values each, every std positive")


class ConvMixBN(nn.Module):
    """One F_j of Eq. 17: a convolution whose filters are scaled by omega, then MixBN.

    Scaling the filters of a sample (Eq. 13-14) is computed as scaling that sample's output channels:
    (omega K) * x = omega (K * x), exactly. In evaluation omega and both batch norms fold into one scale
    and one shift a channel a sample. Stem and shortcuts use this class too, without omega.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, mixbn: bool) -> None:
        super().__init__()
        self.conv = Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
        self.nat = nn.BatchNorm2d(c_out)  # with mixbn off it serves both kinds of image
        self.adv = nn.BatchNorm2d(c_out) if mixbn else None

    def norm_for(self, branch: Branch) -> nn.BatchNorm2d:
        """The batch norm that serves `branch` (Eq. 15)."""
        return self.adv if branch == "adv" and self.adv is not None else self.nat

    def forward(self, x: Tensor, omega: Tensor | None, mix: Branch | Tensor) -> Tensor:
        """x [N,c_in,H,W], omega [N,c_out] or None, mix a branch or P_type [N,2] -> [N,c_out,H',W']."""
        pi = self.conv(x)
        if self.training:
            if isinstance(mix, Tensor):
                raise ValueError("in training MixBN selects by the known type (Eq. 15): pass branch='adv' or 'nat'")
            if omega is not None:
                pi = pi * omega[:, :, None, None].to(pi.dtype)
            normed: Tensor = self.norm_for(mix)(pi)
            return normed
        if self.adv is None and isinstance(mix, Tensor):
            mix = "nat"
        if isinstance(mix, Tensor):
            scale_adv, shift_adv = fold(self.norm_for("adv"))
            scale_nat, shift_nat = fold(self.nat)
            scale = mix @ torch.stack([scale_adv, scale_nat]).to(mix.dtype)  # [N, c_out]
            shift = mix @ torch.stack([shift_adv, shift_nat]).to(mix.dtype)
        elif omega is None:
            normed = self.norm_for(mix)(pi)
            return normed
        else:
            scale, shift = (t[None] for t in fold(self.norm_for(mix)))
        if omega is not None:
            scale = scale * omega.to(scale.dtype)
        modulated: Tensor = Modulate.apply(
            pi, scale[:, :, None, None].to(pi.dtype), shift[:, :, None, None].to(pi.dtype)
        )
        return modulated


class Modulate(torch.autograd.Function):
    """pi * scale + shift, pi [N,C,H,W], scale and shift [N or 1,C,1,1] of one dtype: `torch.addcmul`, but faster.

    The numbers are the same, bit for bit, forward and backward, and it may be differentiated twice. Forward, a row of
    scales instead of one lets the CPU go through W * C values at a time where C lie side by side (bfloat16, channels
    last, 16 channels: a fifth of the time). Backward, `addcmul` would first multiply all of pi by its factor of 1.
    """

    @staticmethod
    def forward(ctx: Any, pi: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(pi, scale)
        ctx.shift_size = shift.shape
        last = torch.channels_last
        if pi.device.type == "cpu" and pi.dtype == torch.bfloat16 and pi.is_contiguous(memory_format=last):
            scale, shift = (t.expand(-1, -1, -1, pi.shape[3]).contiguous(memory_format=last) for t in (scale, shift))
        return torch.addcmul(shift, pi, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pi, scale = ctx.saved_tensors
        for_pi, for_scale, for_shift = ctx.needs_input_grad
        return (
            gradient * scale if for_pi else None,
            (gradient * pi).sum_to_size(scale.shape) if for_scale else None,
            gradient.sum_to_size(ctx.shift_size) if for_shift else None,
        )


def fold(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A batch norm in evaluation as (scale, shift), each [C]: y = x * scale + shift."""
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


class DynamicBlock(nn.Module):
    """A residual block whose convolutions are all modulated; its shortcut is static.

    With `bottleneck` False it is Eq. 18, two 3x3 convolutions to `c` channels. With it, a 1x1, a 3x3 (which has
    the stride) and a 1x1 convolution to 4 c channels: the ResNet-50 that sec. 5.1 says can be used too.
    """

    def __init__(self, c_in: int, c: int, stride: int, mixbn: bool, bottleneck: bool = False) -> None:
        super().__init__()
        self.conv1 = ConvMixBN(c_in, c, 1 if bottleneck else 3, 1 if bottleneck else stride, mixbn)
        self.conv2 = ConvMixBN(c, c, 3, stride if bottleneck else 1, mixbn)
        self.conv3 = ConvMixBN(c, 4 * c, 1, 1, mixbn) if bottleneck else None
        self.c_out = 4 * c if bottleneck else c
        same = stride == 1 and c_in == self.c_out
        self.shortcut = None if same else ConvMixBN(c_in, self.c_out, 1, stride, mixbn)

    def modulated(self) -> list[tuple[str, ConvMixBN]]:
        """(name, unit) of the convolutions that omega scales, in forward order."""
        units = [("conv1", self.conv1), ("conv2", self.conv2)]
        return units if self.conv3 is None else [*units, ("conv3", self.conv3)]

    def forward(self, x: Tensor, omega: Sequence[Tensor | None], mix: Branch | Tensor) -> Tensor:
        """x [N,c_in,H,W], an omega a modulated convolution -> [N,c_out,H/stride,W/stride]."""
        out = x
        units = self.modulated()
        for i, ((_, unit), o) in enumerate(zip(units, omega, strict=True)):
            out = unit(out, o, mix)
            if i + 1 < len(units):
                out = F.relu(out)
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x, None, mix)))


class ResNet18Extractor(nn.Module):
    """D of Eq. 19: a ResNet-18 without its classifier; x [N,3,H,W] -> psi [N, 8 * width].

    It is the static network of Table 3's baseline, so `DynamicBlock`s with one batch norm and no omega
    are its blocks.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.feature_dim = 8 * width
        self.stem = ConvMixBN(3, width, 3, 1, mixbn=False)
        self.blocks = residual_stages(18, width, mixbn=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x, None, "nat"))
        for block in self.blocks:
            h = block(h, (None, None), "nat")
        return h.mean(dim=(2, 3))


EXTRACTORS: dict[str, Callable[[int], nn.Module]] = {"resnet18": ResNet18Extractor}


def residual_stages(depth: int, width: int, mixbn: bool) -> nn.ModuleList:
    """The residual blocks of a ResNet in forward order, four stages of width 1, 2, 4, 8 times `width`."""
    blocks, c_in = nn.ModuleList(), width
    for stage, count in enumerate(BLOCKS_PER_STAGE[depth]):
        for i in range(count):
            block = DynamicBlock(c_in, width << stage, 2 if stage and i == 0 else 1, mixbn, bottleneck=depth >= 50)
            blocks.append(block)
            c_in = block.c_out
    return blocks


class TypeHead(nn.Linear):
    """W_type of Eq. 20, psi [N,d] -> type logits [N,2], divided by a fixed temperature.

    The temperature changes no ranking. It keeps a head trained to saturation readable: without it all
    scores crowd at 0 and 1, where float32 does not resolve neighbouring thresholds.
    """

    temperature: Tensor

    def __init__(self, feature_dim: int) -> None:
        super().__init__(feature_dim, 2)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, psi: Tensor) -> Tensor:
        return super().forward(psi) / self.temperature


class SignalHead(nn.Linear):
    """W_j of Eq. 21, psi [N,d] -> omega_j [N,c_out] = (tanh(W_j psi) + 1)^beta.

    Starts at zero, so that an untrained head leaves its filters as they are (omega = 1).
    """

    def __init__(self, feature_dim: int, c_out: int, beta: float) -> None:
        super().__init__(feature_dim, c_out)
        self.beta = beta
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, psi: Tensor) -> Tensor:
        # Full precision: at beta = 4 bfloat16 rounding of tanh would be visible in omega.
        with torch.autocast(psi.device.type, enabled=False):
            out = torch.tanh(F.linear(psi.to(self.weight.dtype), self.weight, self.bias)) + 1
            return out if self.beta == 1 else out.pow(self.beta)


def bounded_mixture(
    logits_adv: Tensor, logits_nat: Tensor, type_logits: Tensor, limit: float, temperature: float
) -> Tensor:
    """log p [N,K] of p = (1 - a) softmax(T z_adv) + a softmax(z_nat), a = `limit` P(natural) an image, T `temperature`.

    Since a is at most `limit`, neither the detector nor the natural branch can turn the class of an input where the two
    largest entries of softmax(T z_adv) are further apart than limit / (1 - limit). It says nothing of other inputs: in
    the ball around this one the adversarial branch itself may be less certain, or wrong. At least float32.
    """
    exact = torch.promote_types(logits_adv.dtype, torch.float32)
    logits_adv, logits_nat, type_logits = (t.to(exact) for t in (logits_adv, logits_nat, type_logits))
    log_a = math.log(limit) + F.log_softmax(type_logits, dim=1)[:, NATURAL : NATURAL + 1]
    # Sums of logarithms: where P(natural) is too small for float32, a is still no zero with a logarithm of -inf.
    return torch.logaddexp(
        torch.log1p(-log_a.exp()) + F.log_softmax(temperature * logits_adv, dim=1),
        log_a + F.log_softmax(logits_nat, dim=1),
    )


class AWNet(DetectingNetwork):
    """The network of Fig. 2. `net(x)` returns logits [N, K] for x [N, 3, H, W] in [0, 1].

    In training mode a branch must be named (Eq. 15); in evaluation `branch` forces one batch norm, and
    None weights both by P_type, as `config.mixing` says.

    Args:
        config: the architecture.
        extractor: a module x -> [N, feature_dim] with that attribute, in place of the one `config` names.
    """

    kind = "awnet"
    config: AWNetConfig
    mean: Tensor
    std: Tensor

    def __init__(self, config: AWNetConfig | None = None, extractor: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config = config or AWNetConfig()
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self.extractor = extractor or EXTRACTORS[config.extractor](config.extractor_width or config.width)
        feature_dim = self.extractor.feature_dim
        assert isinstance(feature_dim, int)
        self.stem = ConvMixBN(3, config.width, 3, 1, config.mixbn)
        self.blocks = residual_stages(config.depth, config.width, config.mixbn)
        features = self.blocks[-1].c_out
        assert isinstance(features, int)
        self.classifier = nn.Linear(features, config.num_classes)
        self.type_head = TypeHead(feature_dim)
        self.signal_heads = nn.ModuleList(
            SignalHead(feature_dim, unit.conv.out_channels, config.beta) for _, unit in self.modulated()
        )
        if config.extractor_frozen:
            self.extractor.requires_grad_(False)
        self.train(self.training)

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        return self.config.mixing == "bounded"

    def modulated(self) -> list[tuple[str, ConvMixBN]]:
        """(name, unit) of every convolution that omega scales, in the order of `Signals.omega`."""
        return [
            (f"blocks.{i}.{name}", unit)
            for i, block in enumerate(self.blocks)
            if isinstance(block, DynamicBlock)
            for name, unit in block.modulated()
        ]

    def train(self, mode: bool = True) -> AWNet:
        """As `nn.Module.train`, but a frozen extractor keeps its batch norms in evaluation mode.

        With batch statistics in the extractor, clean and adversarial images of separate batches could be
        told apart by the batch they came in, and the detector would learn nothing else.
        """
        super().train(mode)
        if self.config.extractor_frozen:
            self.extractor.eval()
        return self

    def normalise(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1] to what the first convolutions see."""
        return (x - self.mean) / self.std

    def detect(self, x: Tensor) -> Signals:
        """The detector sub-network (sec. 4.3): x [N,3,H,W] in [0,1] -> type logits and omega."""
        psi = self.extractor(self.normalise(x))
        return Signals(self.type_head(psi), tuple(head(psi) for head in self.signal_heads))

    def type_logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.type_head(self.extractor(self.normalise(x)))
        return logits

    def temper(self, factor: float) -> None:
        self.type_head.temperature.mul_(factor)

    def classify(self, x: Tensor, signals: Signals, branch: Branch | None = None) -> Tensor:
        """The dynamic sub-network (sec. 4.2) under given signals: x [N,3,H,W] -> logits [N,K]."""
        mix: Branch | Tensor
        if branch is not None:
            if branch not in get_args(Branch):
                raise ValueError(f"branch must be one of {get_args(Branch)}, not {branch!r}")
            mix = branch
        elif self.training:
            raise ValueError("in training the branch must be named (Eq. 15): 'adv' or 'nat'")
        elif self.config.mixing == "bounded":
            adv, nat = self.classify(x, signals, "adv"), self.classify(x, signals, "nat")
            return bounded_mixture(
                adv, nat, signals.type_logits, self.config.mixing_limit, self.config.mixing_temperature
            )
        else:
            mix = signals.p_type if self.config.type_weighting else "adv"
        omega: tuple[Tensor | None, ...] = signals.omega if self.config.dynamic else (None,) * len(signals.omega)
        h = F.relu(self.stem(self.normalise(x), None, mix))
        each = len(omega) // len(self.blocks)  # two a block, three a bottleneck
        for i, block in enumerate(self.blocks):
            h = block(h, omega[each * i : each * (i + 1)], mix)
        logits: Tensor = self.classifier(h.mean(dim=(2, 3)))
        return logits

    def forward(self, x: Tensor, branch: Branch | None = None) -> Tensor:
        return self.classify(x, self.detect(x), branch)

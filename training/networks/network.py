"""The interface of all networks, which attacks, losses and measurements use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ADVERSARIAL, NATURAL = 0, 1  # columns of type_logits and P_type
Branch = Literal["adv", "nat"]
MODES: dict[str, Branch | None] = {"auto": None, "robust": "adv", "natural": "nat"}  # -> the branch that answers


class Signals(NamedTuple):
    """The detector's outputs for a batch."""

    type_logits: Tensor  # [N, 2], columns ADVERSARIAL and NATURAL
    omega: tuple[Tensor, ...]  # one [N, c_out] a modulated convolution, in forward order

    @property
    def p_type(self) -> Tensor:
        """Eq. 20: softmax of the type logits, [N, 2]."""
        return F.softmax(self.type_logits.float(), dim=1)

    def detach(self) -> Signals:
        """The same values without their gradient (an attacker who ignores the detector)."""
        return Signals(self.type_logits.detach(), tuple(o.detach() for o in self.omega))

    def of(self, rows: slice) -> Signals:
        """Those of some images of the batch."""
        return Signals(self.type_logits[rows], tuple(o[rows] for o in self.omega))

    @classmethod
    def joined(cls, parts: Sequence[Signals]) -> Signals:
        """The signals of the parts of a batch, in order, as those of the batch."""
        omega = tuple(torch.cat(pieces) for pieces in zip(*(part.omega for part in parts), strict=True))
        return cls(torch.cat([part.type_logits for part in parts]), omega)


class Network(nn.Module):
    """A classifier, `net(x)`: pixels x [N,3,H,W] in [0,1] -> logits [N,K]. By itself one without a detector.

    Attributes:
        kind: what a checkpoint calls its class.
        config: what its class needs to build it again.
        calls: the methods that attacks and losses call.
        multi_exit: it has several exits, and thresholds that choose among them.
    """

    kind: ClassVar[str]
    config: DataclassInstance
    calls: ClassVar[tuple[str, ...]] = ("forward", "exits")
    multi_exit: bool = False

    @property
    def detecting(self) -> DetectingNetwork | None:
        """This network as one that detects; None where it does not."""
        return None

    def exits(self, x: Tensor) -> list[Tensor]:
        """The logits of every exit, each [N,K], the last exit last."""
        return [self(x)]

    def set_exits(self, x: Tensor) -> None:
        """Thresholds of a multi-exit network on validation images x [N,3,H,W]; others have none to set."""


class DetectingNetwork(Network, ABC):
    """A network with a detector beside its classifier, with a branch for each kind of image.

    In training a branch must be named; in evaluation None lets the detector weight both (Eq. 16).

    Attributes:
        answering: the branch that answers where None is named, whatever the detector says; None where it weights both.
        bounded: where it weights both, it weights what they say (bounded mixing), not what is inside them (Eq. 16).
    """

    calls = ("detect", "classify")
    answering: Branch | None = None
    bounded: bool = False

    @property
    def detecting(self) -> DetectingNetwork:
        return self

    @abstractmethod
    def detect(self, x: Tensor) -> Signals:
        """The detector's outputs for x [N,3,H,W]."""

    @abstractmethod
    def type_logits(self, x: Tensor) -> Tensor:
        """`detect(x).type_logits` [N,2] without the cost of omega."""

    @abstractmethod
    def classify(self, x: Tensor, signals: Signals, branch: Branch | None = None) -> Tensor:
        """Logits [N,K] of x [N,3,H,W] under given signals."""

    @abstractmethod
    def temper(self, factor: float) -> None:
        """Divide all type logits by `factor` from here on."""


class InMode(DetectingNetwork):
    """A network in evaluation with one of its modes: the detector's score is the same, the branch that answers is not.

    It shares everything with `net`, weights too.

    Args:
        mode: of `MODES`.

    Raises:
        ValueError: there is no such mode.
    """

    def __init__(self, net: DetectingNetwork, mode: str) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"a mode is one of {', '.join(MODES)}, not {mode!r}")
        self.net, self.mode, self.answering = net, mode, MODES[mode]
        self.bounded = net.bounded
        self.eval()

    @property
    def kind(self) -> str:  # type: ignore[override]
        return self.net.kind

    @property
    def config(self) -> DataclassInstance:  # type: ignore[override]
        return self.net.config

    def detect(self, x: Tensor) -> Signals:
        return self.net.detect(x)

    def type_logits(self, x: Tensor) -> Tensor:
        return self.net.type_logits(x)

    def classify(self, x: Tensor, signals: Signals, branch: Branch | None = None) -> Tensor:
        return self.net.classify(x, signals, branch or self.answering)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(x, self.detect(x))

    def temper(self, factor: float) -> None:
        self.net.temper(factor)


def in_mode(net: Network, mode: str) -> Network:
    """`net` as it answers in a mode: itself in "auto"; ValueError for another one of a network without a detector."""
    return net if mode == "auto" else InMode(must_detect(net), mode)


def must_detect(net: Network) -> DetectingNetwork:
    """`net.detecting`; ValueError for a network without a detector."""
    if (detecting := net.detecting) is None:
        raise ValueError(f"this needs a network with a detector, and a {net.kind} one has none")
    return detecting

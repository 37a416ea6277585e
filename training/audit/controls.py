"""Controls: what a network with a detector has to beat. Each is a `DetectingNetwork`, so the same attacks judge it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..network import Branch, DetectingNetwork, Network, Signals


class Control(DetectingNetwork):
    """A static network that rejects images, by its own confidence or by the detector of another network.

    Without `detector` the score is one minus the largest softmax probability (Hendrycks and Gimpel, arXiv 1610.02136).
    Its type logits are log-odds computed without that probability, so they have a gradient where it is 1.
    """

    kind = "control"

    def __init__(self, classifier: Network, detector: DetectingNetwork | None = None) -> None:
        super().__init__()
        self.classifier, self.detector = classifier, detector

    def detect(self, x: Tensor) -> Signals:
        return Signals(self.type_logits(x), ())

    def type_logits(self, x: Tensor) -> Tensor:
        if self.detector is not None:
            return self.detector.type_logits(x)
        logits = self.classifier(x).float()
        top, index = logits.max(1)
        others = logits.scatter(1, index[:, None], float("-inf")).logsumexp(1)
        return torch.stack([others, top], 1)  # softmax: [1 - largest probability, largest probability]

    def classify(self, x: Tensor, signals: Signals, branch: Branch | None = None) -> Tensor:
        logits: Tensor = self.classifier(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x)
        return logits

    def temper(self, factor: float) -> None:
        raise NotImplementedError("a control is judged, not trained")

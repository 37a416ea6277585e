"""Static networks that reject images, as targets of T3: what an AW-Net is compared with is attacked by the same search.

A control and an AW-Net are asked the same question: which share can be made wrong *and* accepted?
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..networks.network import ADVERSARIAL, NATURAL, Branch, DetectingNetwork
from .ascent import Model
from .evasion import Evasion
from .search import Seen, Strategy
from .two_gradients import TwoGradients


@dataclass(frozen=True)
class MaxSoftmax:
    """A classifier that rejects where it is unsure: its score is 1 less its largest class probability.

    Its log-odds are the other classes' log-sum-exp less the largest logit; the score is their sigmoid, which
    resolves what `1 - p` rounds to 0.
    """

    net: Model

    def judge(self, z: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.net(z)
        return logits, doubt(logits).sigmoid()

    def see(self, z: Tensor, branch: Branch | None) -> Seen:
        """Static: there is no branch to force."""
        logits = self.net(z)
        log_odds = doubt(logits)
        return Seen(logits.detach(), log_odds.detach().sigmoid(), logits, log_odds)


@dataclass(frozen=True)
class SeparateDetector:
    """A classifier beside the detector of another network, which decides alone what is rejected.

    Nothing of the detector reaches the classifier: no omega, no weighted batch norms.
    """

    net: Model
    detector: DetectingNetwork

    def judge(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(z), self.detector.type_logits(z).float().softmax(1)[:, ADVERSARIAL]

    def see(self, z: Tensor, branch: Branch | None) -> Seen:
        """Static: there is no branch to force."""
        logits, type_logits = self.net(z), self.detector.type_logits(z).float()
        score = type_logits.detach().softmax(1)[:, ADVERSARIAL]
        return Seen(logits.detach(), score, logits, type_logits[:, ADVERSARIAL] - type_logits[:, NATURAL])


# where there is no branch to force; a sum of losses would raise a wrongly confident *true* class, too
STATIC_EVASIONS: dict[str, Strategy] = {"selective": Evasion(), "two_gradients": TwoGradients()}


def doubt(logits: Tensor) -> Tensor:
    """Log-odds [n] of 1 less the largest class probability of logits [n,K]."""
    logits = logits.float()
    top = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, top, float("-inf"))
    return others.logsumexp(1) - logits.gather(1, top).squeeze(1)

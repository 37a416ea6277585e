"""The linter fails an audit by name for each thing that makes robustness an illusion, and passes a healthy network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.audit import linter
from training.audit.linter import failures, lint
from training.audit.subject import finite_differences
from training.data.images import Split, to_pixels
from training.evaluation.judge import Evaluation
from training.evaluation.report import to_hex
from training.networks.network import Branch, DetectingNetwork, Signals


class Toy(DetectingNetwork):
    """Two small layers for the class and one for the detector, which also shifts the class; smooth everywhere."""

    kind = "toy"

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(192, 16, generator=generator) / 8)
        self.second = nn.Parameter(torch.randn(16, 4, generator=generator))
        self.type_head = nn.Parameter(torch.randn(192, 2, generator=generator) / 8)

    def type_logits(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.type_head

    def detect(self, x: Tensor) -> Signals:
        return Signals(self.type_logits(x), ())

    def classify(self, x: Tensor, signals: Signals, branch: Branch | None = None) -> Tensor:
        certainty = torch.softmax(signals.type_logits, 1)[:, :1]
        return torch.tanh((x.flatten(1) - 0.5) @ self.first + certainty) @ self.second

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(x, self.detect(x))

    def temper(self, factor: float) -> None:
        raise AssertionError("attacks and audits change no network")


class SaturatedSoftmax(Toy):
    """Its "logits" are the probabilities of a softmax that is certain of everything."""

    def classify(self, x: Tensor, signals: Signals, branch: Branch | None = None) -> Tensor:
        return torch.softmax(1e5 * super().classify(x, signals, branch), 1)


class DetachedDetector(Toy):
    """The detector answers, and no gradient reaches it."""

    def type_logits(self, x: Tensor) -> Tensor:
        return super().type_logits(x.detach())


class QuantisedInput(Toy):
    """Pixels are rounded to sixteen levels; the gradient pretends that they are not (a straight-through estimate)."""

    def classify(self, x: Tensor, signals: Signals, branch: Branch | None = None) -> Tensor:
        return super().classify(x + ((x * 15).round() / 15 - x).detach(), signals, branch)

    def type_logits(self, x: Tensor) -> Tensor:
        return super().type_logits(x + ((x * 15).round() / 15 - x).detach())


class RoundedInput(Toy):
    """The same without the estimate: no gradient at all."""

    def classify(self, x: Tensor, signals: Signals, branch: Branch | None = None) -> Tensor:
        return super().classify((x * 15).round() / 15, signals.detach(), branch)

    def type_logits(self, x: Tensor) -> Tensor:
        return super().type_logits((x * 15).round() / 15)


def gradients_of(net: DetectingNetwork) -> dict[str, Any]:
    """The two parts of an audit that look at gradients, on twenty images."""
    split = Split(torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 4, (20,)))
    run = Evaluation.start(net, split, {0.05: 0.9})
    x, y = to_pixels(split.images), split.labels
    return {"zero_gradients": run.zero_gradients(), "finite_differences": finite_differences(run.net, x, y)}


@pytest.mark.parametrize(
    ("net", "checks"),
    [
        (Toy, []),
        (SaturatedSoftmax, [linter.ZERO_GRADIENTS]),
        (DetachedDetector, [linter.ZERO_GRADIENTS, linter.DIFFERENCES]),
        (QuantisedInput, [linter.DIFFERENCES]),
        (RoundedInput, [linter.ZERO_GRADIENTS]),
    ],
)
def test_masked_gradients_are_named_and_a_healthy_network_passes(net: type[Toy], checks: list[str]) -> None:
    """Each broken network is caught by the check that its fault is about, and by no other."""
    assert failures(lint(gradients_of(net()))) == checks


def part(right: int, images: int = 100, **more: Any) -> dict[str, Any]:
    """The first `right` images keep their class."""
    bits = torch.arange(images) < right
    return {"images": images, "accuracy": right / images, "correct_bits": to_hex(bits)} | more


HEALTHY = {
    "T1/fgsm@8": part(60),
    "T2/fgsm@8": part(62),
    "T1/worst_case@8": part(40),
    "T2/worst_case@8": part(38),
    "worst_case@8": part(36, evaded_bits=to_hex(torch.arange(100) >= 60)),
    "worst_case@64": part(0),
    "T2/autoattack@8": part(35, 50),
    "T0/vgg/pgd_sat@8": part(70),
    "black_box/square@8": part(55),
    "steps/10@8": part(42),
    "steps/40@8": part(40),
    "steps/160@8": part(40),
    "T3@8": part(10, evaded_bits=to_hex(torch.arange(100) >= 30)),
}


def test_a_healthy_audit_passes_every_check() -> None:
    """The parts below in their right order: each check but those of gradients is made, and none fails."""
    findings = lint(HEALTHY)
    assert failures(findings) == []
    assert {f.check for f in findings} == set(linter.ADVICE) - {linter.ZERO_GRADIENTS, linter.DIFFERENCES}


@pytest.mark.parametrize(
    ("check", "changed"),
    [
        (linter.T2_WEAKER, {"T2/worst_case@8": part(55)}),
        (linter.AUTOATTACK_STRONGER, {"T2/autoattack@8": part(33, 50), "worst_case@8": part(36)}),
        (linter.STEPS_HELP, {"steps/160@8": part(55)}),
        (linter.ONE_STEP_STRONGER, {"T2/fgsm@8": part(20)}),
        (linter.BLACK_BOX_STRONGER, {"black_box/square@8": part(20)}),
        (linter.BLACK_BOX_STRONGER, {"T0/vgg/pgd_sat@8": part(20)}),
        (linter.LARGE_EPS_LEAVES, {"worst_case@64": part(1)}),
        (linter.PLAIN_STRONGER, {"T3@8": part(10, evaded_bits=to_hex(torch.arange(100) >= 80))}),
    ],
)
def test_an_attack_that_is_too_weak_is_named(check: str, changed: dict[str, Any]) -> None:
    """One part out of order, one name."""
    assert failures(lint(HEALTHY | changed)) == [check]


def test_attacks_named_as_the_papers_are_annotated_and_fail_nothing() -> None:
    """Their last iterate is what was published; whoever reads the report is told, and the audit goes on."""
    findings = lint(HEALTHY | {"T1/pgd_sat@8": part(30), "T2/pgd_sat@8": part(65)})
    assert failures(findings) == []
    noted = {(f.check, f.detail.split()[0]) for f in findings if not f.holds}
    assert noted == {(linter.T2_WEAKER, "T2/pgd_sat@8")}


def test_what_is_compared_are_the_same_images() -> None:
    """A part of fifty images is held against the first fifty of the other, not against its overall share."""
    parts = {"worst_case@8": part(50, 100), "T2/autoattack@8": part(49, 50)}
    (finding,) = [f for f in lint(parts) if f.check == linter.AUTOATTACK_STRONGER]
    assert finding.holds and "1.000" in finding.detail and "50 images" in finding.detail

"""A static network that rejects is judged and attacked as one with a detector is."""

from __future__ import annotations

import pytest
import torch

from training.attacks.ascent import Budget
from training.attacks.evasion import EVASIONS, evade
from training.audit.controls import Control
from training.awnet import AWNet, AWNetConfig
from training.baselines import StaticConfig, build_static

CONFIG = AWNetConfig(width=4, extractor_width=4)


def test_the_score_is_one_minus_the_largest_probability_and_keeps_a_gradient() -> None:
    """Also where that probability is 1 in float32: the type logits do not saturate with it."""
    net = build_static(StaticConfig("resnet20", 4)).eval()
    x = torch.rand(6, 3, 32, 32)
    score = Control(net).eval().detect(x).p_type[:, 0]
    torch.testing.assert_close(score, 1 - net(x).softmax(1).amax(1))
    with torch.no_grad():
        for p in list(net.parameters())[-2:]:
            p.mul_(1e4)
    z = x.clone().requires_grad_(True)
    type_logits = Control(net).type_logits(z)
    (gradient,) = torch.autograd.grad((type_logits[:, 1] - type_logits[:, 0]).sum(), z)
    assert bool((net(x).softmax(1).amax(1) == 1).all())
    assert torch.isfinite(gradient).all() and bool((gradient.flatten(1) != 0).any(1).all())


def test_a_separate_detector_scores_and_the_static_network_classifies() -> None:
    static, detector = build_static(StaticConfig("resnet20", 4)).eval(), AWNet(CONFIG).eval()
    control = Control(static, detector).eval()
    x = torch.rand(5, 3, 32, 32)
    torch.testing.assert_close(control.detect(x).p_type, detector.detect(x).p_type)
    torch.testing.assert_close(control(x), static(x))
    torch.testing.assert_close(control.classify(x, control.detect(x), "nat"), static(x))


@pytest.mark.parametrize("name", list(EVASIONS))
def test_every_evasion_attacks_a_control(name: str) -> None:
    """With a threshold that flags nothing, all that is misclassified has evaded; with none allowed, nothing has."""
    control = Control(build_static(StaticConfig("resnet20", 4))).eval().requires_grad_(False)
    x, y = (torch.rand(4, 3, 32, 32) * 255).round() / 255, torch.randint(0, 10, (4,))
    found = evade(control, x, y, Budget(64 / 255, 8 / 255, 6), EVASIONS[name], threshold=1.0)
    wrong = control(found.x_adv).argmax(1) != y
    assert bool(found.success(1.0).any()) and bool((wrong | ~found.success(1.0)).all())
    assert not bool(evade(control, x, y, Budget(), EVASIONS[name], threshold=-1.0).success(-1.0).any())

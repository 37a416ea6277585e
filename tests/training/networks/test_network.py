"""The one interface of networks: what attackers, losses and measures may ask an AW-Net and a static network alike."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from training.networks.awnet import AWNet, AWNetConfig
from training.networks.baselines import StaticConfig, build_static
from training.networks.network import MODES, InMode, Network, must_detect


@pytest.mark.parametrize(("arch", "exits"), [("resnet20", 1), ("rdi_resnet38", 7)])
def test_a_static_network_answers_every_question_and_says_that_it_has_no_detector(arch: str, exits: int) -> None:
    """Its exits end with the last; what is only about several exits does nothing to one."""
    net = build_static(StaticConfig(arch, 8)).eval()
    x = torch.rand(4, 3, 32, 32)
    assert net.kind == "static" and net.detecting is None
    with pytest.raises(ValueError, match="a static one has none"):
        must_detect(net)
    found = net.exits(x)
    assert len(found) == exits and net.multi_exit == (exits > 1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.set_exits(x)
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == ({"body.entropy"} if exits > 1 else set())
    if exits == 1:
        assert torch.equal(found[0], net(x))


def test_an_awnet_answers_the_same_questions_and_is_its_own_detector() -> None:
    """One exit, its answer; type logits alone are those that `detect` gives."""
    net = AWNet(AWNetConfig(width=8)).eval()
    torch.nn.init.normal_(net.type_head.weight)
    x = torch.rand(4, 3, 32, 32)
    assert net.kind == "awnet" and net.detecting is net and must_detect(net) is net and not net.multi_exit
    (only,) = net.exits(x)
    assert torch.equal(only, net(x))
    logits = net.type_logits(x)
    assert torch.equal(logits, net.detect(x).type_logits)
    net.temper(2.0)
    assert torch.equal(net.type_logits(x), logits / 2)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_has_the_networks_detector_and_answers_with_one_branch(mode: str) -> None:
    """Score and signals are the same in all modes; the class is that branch's, unless an attacker forces another."""
    net = AWNet(AWNetConfig(width=8)).eval()
    torch.nn.init.normal_(net.type_head.weight)
    torch.nn.init.normal_(net.stem.norm_for("adv").bias)
    x, one = torch.rand(4, 3, 32, 32), InMode(net, mode)
    assert one.detecting is one and one.kind == net.kind and one.config is net.config
    signals = one.detect(x)
    assert torch.equal(one.type_logits(x), net.type_logits(x)) and torch.equal(signals.p_type, net.detect(x).p_type)
    assert torch.equal(one(x), net(x, MODES[mode])) and torch.equal(one.classify(x, signals, "nat"), net(x, "nat"))
    assert not torch.equal(net(x, "adv"), net(x, "nat"))


def test_a_mode_that_nobody_has_is_refused() -> None:
    with pytest.raises(ValueError, match="auto, robust, natural, not 'fast'"):
        InMode(AWNet(AWNetConfig(width=8)), "fast")


@pytest.mark.parametrize("net", [AWNet(AWNetConfig(width=8)), build_static(StaticConfig("rdi_resnet38", 8))])
def test_what_a_network_says_it_is_called_by_exists(net: Network) -> None:
    """`runtime.compile` compiles exactly these methods."""
    assert net.calls and all(callable(getattr(net, call)) for call in net.calls)


def test_attackers_losses_and_measures_ask_no_network_for_its_class() -> None:
    """What is about one class stands where that class is built, loaded or studied filter by filter."""
    asked = re.compile(r"isinstance\(.*(AWNet|StaticNet)")
    training = Path(__file__).parents[3] / "training"
    files = {p.relative_to(training).as_posix() for p in training.rglob("*.py") if asked.search(p.read_text("utf-8"))}
    assert files == {
        "networks/checkpoint.py",
        "networks/folded.py",
        "interpolate.py",
        "trainer/build.py",
        "reproduction/filters.py",
    }

"""Ways in which training looks fine and is not, each met before (docs/decisions/0005, docs/reproduction.md).

What needs a training to be seen is measured in the reports; here stand the promises of the code that keep out of them.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.attacks.ascent import Budget
from training.core.rng import KeyedRng
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.baselines import StaticConfig, build_static
from training.trainer.adversary import Adversary
from training.trainer.distillation import Mtard, Rslad
from training.trainer.objectives import Mart, Objective, PgdAt, Trades
from training.trainer.pretraining import DetectorPretraining
from training.trainer.recipe import read_recipe
from training.trainer.step import Runtime, train_step

RECIPES = Path(__file__).parents[3] / "training" / "recipes"


def learning_awnet() -> AWNet:
    return AWNet(AWNetConfig(width=4, beta=1.0, extractor_frozen=False)).train()


@pytest.mark.parametrize("kind", ["pgd_at", "trades", "mart", "rslad", "mtard", "detector"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_learning_detector_sees_both_kinds_of_image_in_one_batch(kind: str, microbatches: int) -> None:
    """In separate batches their statistics give the answer away: training loss 0.003, AUROC 0.53 in evaluation mode."""
    adversary, net = Adversary(Budget(steps=1)), learning_awnet()
    teacher = build_static(StaticConfig("resnet18", 4))
    objective: Objective = {
        "pgd_at": lambda: PgdAt(adversary),
        "trades": lambda: Trades(adversary),
        "mart": lambda: Mart(adversary),
        "rslad": lambda: Rslad(adversary, teacher),
        "mtard": lambda: Mtard(adversary, teacher, teacher),
        "detector": lambda: DetectorPretraining(adversary),
    }[kind]()
    x, y = torch.rand(8, 3, 32, 32), torch.arange(8)
    batches: list[Tensor] = []

    def record(module: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        if module.training:
            batches.append(inputs[0].detach())

    net.extractor.register_forward_pre_hook(record)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    train_step(net, objective, optimizer, x, y, Runtime(torch.device("cpu"), bf16=False), microbatches=microbatches)
    n = 8 // microbatches
    assert [len(b) for b in batches] == [2 * n] * microbatches  # the attack's forwards are in evaluation mode
    for i, batch in enumerate(batches):
        assert torch.equal(batch[:n], x[i * n : (i + 1) * n])
        assert (batch[n:] != batch[:n]).flatten(1).any(1).all()


def test_in_evaluation_mode_nothing_tells_the_batch_an_image_came_in() -> None:
    """What a detector says of an image is the same alone and among images of the other kind."""
    net = learning_awnet().eval()
    x, noisy = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    together = net.detect(torch.cat([x, noisy])).type_logits
    torch.testing.assert_close(net.detect(x).type_logits, together[:4], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.toml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_no_recipe_trains_an_awnet_on_plain_one_step_adversaries(path: Path) -> None:
    """Against them it learns to spot one-step noise and nothing else: PGD-10 1 %, AUROC 0.44 after 2 epochs."""
    recipe = read_recipe(path)
    if recipe["network"]["kind"] == "awnet" and recipe["objective"]["name"] != "n_fgsm":
        assert recipe["attack"]["steps"] > 1


def test_a_detector_s_attackers_differ_from_step_to_step() -> None:
    """Radius and number of steps are drawn anew, so that it cannot learn one attack by heart."""
    net, x, y = learning_awnet(), torch.rand(4, 3, 32, 32), torch.arange(4)
    adversary = Adversary(Budget(steps=2), folded=False)  # so that the extractor itself is asked, and can be counted
    objective = DetectorPretraining(adversary, eps=(4.0, 8.0), attackers=("deployed",))
    looks = [0]
    net.extractor.register_forward_pre_hook(lambda module, inputs: looks.append(looks.pop() + 1))
    radii, steps = set(), set()
    for step in range(8):
        before = looks[0]
        x_adv = objective.prepare(net, x, y, KeyedRng.of(0, 0, step, torch.arange(4))).x_adv
        radii.add(round(float((x_adv - x).abs().max()) * 255))
        steps.add(looks[0] - before - 1)  # one look at the clean images
    assert radii == {4, 8} and steps == {1, 2, 3}


def undecided() -> AWNet:
    """P is 0.5 for every image, and the two branches are different networks."""
    net = learning_awnet()
    torch.nn.init.zeros_(net.type_head.weight)
    torch.nn.init.zeros_(net.type_head.bias)
    for _, unit in net.modulated():
        for norm in (unit.nat, unit.adv):
            assert norm is not None
            torch.nn.init.normal_(norm.weight, 1.0, 0.5)
            torch.nn.init.normal_(norm.bias, 0.0, 0.2)
    return net


def test_while_the_detector_is_undecided_forced_images_attack_the_adversarial_branch() -> None:
    """Made against the deployed network alone they go through the clean branch, and the joint loss stalls."""
    net, x, y = undecided(), torch.rand(8, 3, 32, 32), torch.arange(8)
    other = copy.deepcopy(net)
    for _, unit in other.modulated():
        torch.nn.init.normal_(unit.nat.weight, 1.0, 0.5)
    rng = KeyedRng.of(0, 0, 0, torch.arange(8))

    def made(network: AWNet, forced: float) -> Tensor:
        return Adversary(Budget(steps=5), adv_branch_share=forced).perturb(network, x, y, rng=rng)

    assert torch.equal(made(net, 1.0), made(other, 1.0))  # whatever the clean branch is
    assert not torch.equal(made(net, 0.0), made(other, 0.0))
    half = made(net, 0.5)
    torch.testing.assert_close(half[:4], made(net, 1.0)[:4], rtol=0, atol=2 / 255)
    net.eval()
    with torch.no_grad():
        forced, deployed = (F.cross_entropy(net(made(net, share), "adv"), y) for share in (1.0, 0.0))
        clean = F.cross_entropy(net(x, "adv"), y)
    assert forced - clean > 1.2 * (deployed - clean)

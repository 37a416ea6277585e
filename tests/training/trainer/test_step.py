"""What one update promises when its batch is cut into microbatches, in one process or in several."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from training.attacks.ascent import Budget
from training.core.rng import KeyedRng
from training.networks import checkpoint
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.baselines import StaticConfig, StaticNet, build_static
from training.trainer.adversary import Adversary
from training.trainer.distillation import Mtard
from training.trainer.objectives import PgdAt, Standard, Trades
from training.trainer.recipe import read_recipe
from training.trainer.step import Runtime, train_step

ROOT = Path(__file__).parents[3]
TINY_RUN = Path(__file__).with_name("tiny_run.py")
CPU = Runtime(torch.device("cpu"), bf16=False)


def linear() -> StaticNet:
    """A network without batch norms, of 8x8 pixels."""
    return StaticNet(StaticConfig(), nn.Sequential(nn.Flatten(), nn.Linear(192, 10)))


def test_accumulated_gradients_are_the_whole_batch_s() -> None:
    """Without batch norms, four microbatches of four images and one of sixteen move the weights alike."""
    x, y = torch.rand(16, 3, 8, 8), torch.arange(16) % 10
    whole = linear()
    microbatches = copy.deepcopy(whole)
    for net, count in ((whole, 1), (microbatches, 4)):
        loss = train_step(net, Standard(), torch.optim.SGD(net.parameters(), 0.1), x, y, CPU, microbatches=count)
        assert loss.total == pytest.approx(2.3, abs=0.2)
    torch.testing.assert_close(microbatches.body[1].weight, whole.body[1].weight, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="equal microbatches"):
        train_step(whole, Standard(), torch.optim.SGD(whole.parameters(), 0.1), x, y, CPU, microbatches=3)


def test_statistics_of_parts_move_once_by_their_mean() -> None:
    """Running mean and variance after a step of two microbatches: the mean of what each alone would have left."""
    x, y = torch.rand(8, 3, 32, 32), torch.arange(8)
    net = build_static(StaticConfig("resnet18", 4)).train()
    alone = [copy.deepcopy(net) for _ in range(2)]
    for one, microbatch in zip(alone, (slice(4), slice(4, 8)), strict=True):
        one(x[microbatch])
    train_step(net, Standard(), torch.optim.SGD(net.parameters(), 0.1), x, y, CPU, microbatches=2)
    for (name, moved), (_, a), (_, b) in zip(net.named_buffers(), *(n.named_buffers() for n in alone), strict=True):
        torch.testing.assert_close(moved, (a + b) // 2 if moved.dtype == torch.int64 else (a + b) / 2, msg=name)


def test_weight_perturbation_of_parts_follows_the_whole_gradient() -> None:
    """Without batch norms: the worst weights nearby are those for the batch, however it is cut."""
    x, y = torch.rand(8, 3, 8, 8), torch.arange(8)
    whole = linear()
    microbatches = copy.deepcopy(whole)
    for net, count in ((whole, 1), (microbatches, 2)):
        train_step(net, Standard(), torch.optim.SGD(net.parameters(), 0.1), x, y, CPU, awp=0.5, microbatches=count)
    torch.testing.assert_close(microbatches.body[1].weight, whole.body[1].weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", ["pgd_at", "trades"])
def test_an_image_s_adversary_does_not_depend_on_its_batch(objective: str) -> None:
    """Keyed randomness: in eval mode, each half's adversarial images are those of the whole batch."""
    net = AWNet(AWNetConfig(width=4, beta=1.0)).train()
    x, y, rng = torch.rand(8, 3, 32, 32), torch.arange(8), KeyedRng.of(0, 0, 0, torch.arange(8))
    make = {"pgd_at": PgdAt, "trades": Trades}[objective](Adversary(Budget(steps=2), start="uniform"))
    whole = make.prepare(net, x, y, rng).x_adv
    halves = [make.prepare(net, x[p], y[p], rng[p]).x_adv for p in (slice(4), slice(4, 8))]
    # Values are multiples of a grey level: convolutions of another batch size may flip a sign of a tiny gradient.
    assert (torch.cat(halves) != whole).float().mean() < 1e-3


def test_the_balance_moves_once_a_step_by_the_losses_of_the_whole_step() -> None:
    """MTARD in microbatches: each has the same weights, and the means of their losses move these afterwards."""
    x, y = torch.rand(8, 3, 32, 32), torch.arange(8)
    teachers = [build_static(StaticConfig("resnet18", 4)).eval() for _ in range(2)]
    net = AWNet(AWNetConfig(width=4, beta=1.0)).train()
    objective = Mtard(Adversary(Budget(steps=1)), *teachers)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    loss = train_step(net, objective, optimizer, x, y, CPU, microbatches=2)
    assert objective.balancer.first == pytest.approx((loss.terms["nat"], loss.terms["adv"]))
    assert objective.balancer.w_nat == 0.5 == loss.terms["w_nat"]
    loss = train_step(net, objective, optimizer, x, y, CPU, microbatches=2)
    assert loss.terms["w_nat"] == 0.5 != objective.balancer.w_nat


def test_a_loss_that_is_not_finite_leaves_the_weights_alone() -> None:
    """Whichever microbatch it was in."""
    net = linear()
    before = copy.deepcopy(net.state_dict())
    x = torch.rand(8, 3, 8, 8)
    x[6] = float("nan")
    with pytest.raises(FloatingPointError, match="nan"):
        train_step(
            net, Standard(), torch.optim.SGD(net.parameters(), 0.1), x, torch.arange(8), CPU, awp=0.1, microbatches=2
        )
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def two_process_recipe(tmp_path: Path) -> dict[str, dict[str, object]]:
    """Everything that has state or draws: MTARD's balance, noise, forced images, EMA, AWP, momentum, crops."""
    for teacher in ("nat", "adv"):
        net = build_static(StaticConfig("resnet18", 4))
        checkpoint.save(tmp_path / f"{teacher}.pt", checkpoint.pack(net, labels=[], recipe={}))
    path = tmp_path / "r.toml"
    path.write_text(
        '[network]\nwidth = 4\nbeta = 1.0\nextractor_frozen = false\n[objective]\nname = "mtard"\nnoise = 0.5\n'
        'nat_teacher = "nat.pt"\nadv_teacher = "adv.pt"\n[attack]\nsteps = 2\nforced = 0.5\nstart = "uniform"\n'
        "[optim]\nepochs = 2\nbatch_size = 16\nema = 0.9\nawp = 0.005\nawp_from = 1\n"
        "[validate]\nimages = 20\nattack_steps = 1\n"
    )
    return read_recipe(path)


@pytest.mark.process
def test_two_processes_and_one_with_two_parts_have_the_same_losses(tmp_path: Path) -> None:
    """Two gloo processes against one that normalises each half of the batch separately, two epochs of four steps:
    losses of every step within 1e-5 of each other, relatively, and weights, averages and balance within 1e-5."""
    recipe = two_process_recipe(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(TINY_RUN), json.dumps(recipe), str(tmp_path / "two"), "2"]
    two_processes = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)
    try:
        recipe["optim"]["microbatches"] = 2
        reference = runpy.run_path(str(TINY_RUN))["run"](recipe, tmp_path / "one")
        _, errors = two_processes.communicate(timeout=600)
        assert two_processes.returncode == 0, errors.decode()[-3000:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(two_processes.pid, signal.SIGKILL)
    one, two = (checkpoint.read(tmp_path / name / "last.pt")["run"] for name in ("one", "two"))
    curve = json.loads((tmp_path / "two" / "curve.json").read_text())
    assert len(curve) == len(reference) == 8 and set(curve[0]) == {"total", "nat", "adv", "type", "w_nat"}
    for losses, expected in zip(curve, reference, strict=True):
        assert losses == pytest.approx(expected, rel=1e-5)
    for row, other in zip(one["history"], two["history"], strict=True):  # validation, which the processes share
        for key in set(row) - {"train_seconds", "images_per_second"}:
            assert row[key] == pytest.approx(other[key], rel=1e-5, abs=2e-4), key
    for part in ("network", "ema_network"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert two["objective"]["w_nat"] == pytest.approx(one["objective"]["w_nat"], rel=1e-6) != 0.5

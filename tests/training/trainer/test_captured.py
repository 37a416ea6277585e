"""The captured step, uncaptured: its functions of static tensors do what a step does. Captured: `model.gpu`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training import train
from training.attacks.ascent import Budget
from training.core.rng import KeyedRng
from training.data.answers import Answers
from training.data.images import ImageSet, Split
from training.networks import checkpoint
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.baselines import StaticConfig, build_static
from training.networks.network import Network
from training.trainer import run as run_module
from training.trainer.adversary import Adversary
from training.trainer.captured import CapturedStep, StaticRng, check_capturable
from training.trainer.distillation import BoundedDistillation, Mtard, Rslad
from training.trainer.objectives import Objective, PgdAt, Standard, Trades
from training.trainer.pretraining import DetectorPretraining
from training.trainer.recipe import RecipeError, read_recipe
from training.trainer.step import Runtime, train_step

CPU = Runtime(torch.device("cpu"), bf16=False)
EVERYONE = Adversary(
    Budget(steps=2), adv_branch_share=0.25, detector_ignored_share=0.5, evading_share=0.25, evading_radii=(0.25, 0.5)
)


def awnet(mixing: str = "norms") -> AWNet:
    net = AWNet(AWNetConfig(width=4, beta=1.0, mixing=mixing, extractor_frozen=False))
    for head in net.signal_heads:
        nn.init.normal_(head.weight, std=0.2)
    return net.train()


def static() -> Network:
    return build_static(StaticConfig("resnet18", 4)).train()


OBJECTIVES: dict[str, tuple[Callable[[], Network], Callable[[], Objective]]] = {
    "everything of PGD-AT": (
        awnet,
        lambda: PgdAt(EVERYONE, nat_eps=2.0, nat_perturbed_share=0.5, nat_batch_share=0.5, sign_noise_share=0.25),
    ),
    "bounded": (lambda: awnet("bounded"), lambda: PgdAt(EVERYONE)),
    "TRADES": (awnet, lambda: Trades(Adversary(Budget(steps=1)))),
    "MTARD": (awnet, lambda: Mtard(Adversary(Budget(steps=1)), static().eval(), static().eval(), eta_decays=True)),
    "RSLAD": (static, lambda: Rslad(Adversary(Budget(steps=1)), static().eval())),
    "clean": (static, Standard),
}


def averaged(net: Network) -> AveragedModel:
    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    """The fused one for both, whose rounding the signs of the next attack would amplify."""
    return torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)


def batch(step: int) -> tuple[Tensor, Tensor, KeyedRng]:
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(step))
    return x.contiguous(memory_format=torch.channels_last), torch.arange(8), KeyedRng.of(0, 0, step, torch.arange(8))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_static_tensors_leave_the_weights_that_a_step_leaves(name: str) -> None:
    """Three steps: weights, statistics, averages, balance and losses within 1e-6 of `train_step`'s."""
    make_net, make_objective = OBJECTIVES[name]
    plain_net, plain_objective = make_net(), make_objective()
    net, objective = copy.deepcopy(plain_net), copy.deepcopy(plain_objective)
    plain_optimizer, optimizer = sgd(plain_net), sgd(net)
    plain_ema, ema = averaged(plain_net), averaged(net)
    step = CapturedStep(net, objective, optimizer, CPU, *batch(0), ema=ema, capture=False)
    expected = []
    for i in range(3):
        for one in (plain_objective, objective):
            one.set_lr_factor(1 / (i + 1))
        x, y, rng = batch(i)
        expected.append(train_step(plain_net, plain_objective, plain_optimizer, x, y, CPU, rng=rng))
        plain_ema.update_parameters(plain_net)
        step.step(x, y, rng)
    for mine, its in ((net, plain_net), (ema, plain_ema)):
        for key, value in its.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[key], value, rtol=1e-6, atol=1e-6, msg=key)
    for key, state in plain_objective.state_dict().items():
        assert objective.state_dict()[key] == pytest.approx(state, rel=1e-6)
    found = step.losses()
    assert [one.terms for one in found] == [pytest.approx(one.terms, rel=1e-5) for one in expected]
    assert [one.total for one in found] == pytest.approx([one.total for one in expected], rel=1e-5)
    assert step.losses() == []  # each is read once


def test_what_a_whole_step_shares_is_drawn_anew_into_the_same_tensor() -> None:
    """Replays read the tensor: each step must find its own radius there, and its own images' numbers."""
    values, found, expected = (0.25, 0.5, 1.0), [], []
    rng = StaticRng.like(batch(0)[2])
    tensor, keys = rng.choice(values, "radius"), rng[2:4].keys
    for step in range(12):
        own = batch(step)[2]
        rng.hold(own)
        found.append(tensor.item())
        expected.append(own.choice(values, "radius"))
        assert torch.equal(keys, own.keys[2:4])
    assert found == expected and len(set(found)) == 3
    for draw in (lambda: rng.integer(0, 2, "steps"), lambda: rng.number(0, 1, "step")):
        with pytest.raises(RecipeError, match=r"runtime\.cuda_graphs: 'step"):
            draw()


def test_a_loss_that_is_not_finite_is_found_when_losses_are_read() -> None:
    net = static()
    step = CapturedStep(net, Standard(), sgd(net), CPU, *batch(0), capture=False)
    for i in range(3):
        x, y, rng = batch(i)
        step.step(x * (float("nan") if i == 1 else 1), y, rng)
    with pytest.raises(FloatingPointError, match=r"the loss was nan .* 1 steps ago"):
        step.losses()


@pytest.mark.parametrize(
    "line, key",
    [
        ("optim.awp=0.005", "optim.awp"),
        ("optim.microbatches=2", "optim.microbatches"),
        ("runtime.compile=true", "runtime.compile"),
        ("runtime.sync_batch_norm=true", "runtime.sync_batch_norm"),
        ("runtime.threads=0", "a GPU"),
    ],
)
def test_what_cannot_be_captured_is_refused_by_its_key(tmp_path: Path, line: str, key: str) -> None:
    (tmp_path / "r.toml").write_text("[runtime]\ncuda_graphs = true\n")
    recipe = read_recipe(tmp_path / "r.toml", [line])
    with pytest.raises(RecipeError, match=rf"runtime\.cuda_graphs .*{key}"):
        check_capturable(recipe, nn.Linear(2, 2), Standard(), CPU.device)


def test_an_objective_that_needs_the_host_is_refused(tmp_path: Path) -> None:
    """In words that name its key: what is drawn, looked up or computed there would be that of the capture for good."""
    (tmp_path / "r.toml").write_text("[runtime]\ncuda_graphs = true\n")
    recipe, attack = read_recipe(tmp_path / "r.toml"), Adversary(Budget(steps=1))
    objectives: dict[str, Objective] = {
        "objective.name 'detector'": DetectorPretraining(attack),
        "objective.corruption_share": PgdAt(attack, corruption_share=0.5),
        "objective.answers": BoundedDistillation(attack, Answers(torch.zeros(2, 1, 10), torch.zeros(1).long())),
    }
    for key, objective in objectives.items():
        with pytest.raises(RecipeError, match=rf"runtime\.cuda_graphs does not go with {key}"):
            check_capturable(recipe, nn.Linear(2, 2), objective, CPU.device)


def test_a_network_with_dropout_is_refused(tmp_path: Path) -> None:
    """Its masks would be those of the capture, in every step."""
    (tmp_path / "r.toml").write_text("[runtime]\ncuda_graphs = true\n")
    with pytest.raises(RecipeError, match="dropout"):
        check_capturable(read_recipe(tmp_path / "r.toml"), nn.Sequential(nn.Dropout()), Standard(), CPU.device)


def images() -> ImageSet:
    def split(n: int) -> Split:
        return Split(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (n,)))

    return ImageSet(split(32), split(8), split(8), [f"class {i}" for i in range(10)])


def test_a_run_of_captured_steps_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of an epoch and resumed, it ends as one that was not, and as a run of plain steps: history,
    averages and TensorBoard's losses. (Uncaptured: the check that there is a GPU is taken away.)"""
    monkeypatch.setattr(run_module, "check_capturable", lambda *_: None)
    path = tmp_path / "r.toml"
    path.write_text(
        '[network]\nkind = "static"\narch = "resnet18"\nwidth = 4\n[objective]\nname = "pgd_at"\n'
        "[attack]\neps = 1e-5\nstep = 1e-5\nsteps = 1\n"  # nothing hangs on the sign of a gradient
        "[optim]\nepochs = 2\nbatch_size = 8\nlr = 0.02\nema = 0.5\n"  # larger steps amplify roundings of other CPUs
        "[validate]\nimages = 8\nattack_steps = 0\n"
    )
    data = images()

    def trained(name: str, *settings: str, stops: tuple[int, ...] = ()) -> dict[str, Any]:
        recipe, out = read_recipe(path, settings), tmp_path / name
        for steps in stops:
            run = run_module.Run(recipe, data, out, CPU)
            if steps != stops[0]:
                run.load()
            out.mkdir(exist_ok=True)
            run.net.train()
            for (x, y, rng), _ in zip(run.batches(), range(steps), strict=False):
                run.step(x, y, rng)
            run.save()
        train.train(recipe, data, out, resume=bool(stops))
        return checkpoint.read(out / "last.pt")["run"]

    plain, captured = trained("plain"), trained("captured", "runtime.cuda_graphs=true")
    resumed = trained("resumed", "runtime.cuda_graphs=true", stops=(3,))
    for row, other in zip(captured["history"], plain["history"], strict=True):
        for key in set(other) - {"train_seconds", "images_per_second"}:
            assert row[key] == pytest.approx(other[key], rel=1e-3), key
    for part in ("network", "ema_network"):
        for key, value in captured[part].items():
            assert torch.equal(resumed[part][key], value), key
            torch.testing.assert_close(value, plain[part][key], rtol=1e-2, atol=1e-4, msg=key)  # the fused optimiser
    assert [row["adv"] for row in resumed["history"]] == [row["adv"] for row in captured["history"]]
    assert json.loads((tmp_path / "captured" / "history.json").read_text())["recipe"]["runtime"]["cuda_graphs"]


def test_without_a_gpu_the_command_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[network]\nkind = "static"\narch = "resnet18"\nwidth = 4\n[runtime]\ncuda_graphs = true\n')
    with pytest.raises(RecipeError, match="needs a GPU"):
        train.train(read_recipe(path), images(), tmp_path / "run")
    assert not (tmp_path / "run").exists()

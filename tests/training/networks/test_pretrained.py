"""Weights trained by others load into our classes and compute what theirs compute."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.networks.baselines import StaticConfig
from training.networks.pretrained import PRETRAINED, load_pretrained


class TheirBlock(nn.Module):
    """A basic block in the words of the usual CIFAR ResNet code."""

    def __init__(self, c_in: int, c: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c, 3, stride, 1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c)
        self.shortcut = nn.Sequential()
        if stride != 1 or c_in != c:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c, 1, stride, bias=False), nn.BatchNorm2d(c))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class TheirResNet(nn.Module):
    """Four stages of two blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        c = width
        for stage in range(4):
            blocks = [TheirBlock(c, width << stage, 2 if stage else 1), TheirBlock(width << stage, width << stage, 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            c = width << stage
        self.linear = nn.Linear(c, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        for stage in range(4):
            out = getattr(self, f"layer{stage + 1}")(out)
        return self.linear(out.mean((2, 3)))


@pytest.fixture
def theirs() -> TheirResNet:
    net = TheirResNet(4).eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return net


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_translated_network_gives_the_same_logits(
    theirs: TheirResNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    """Bare, and as older code saved it: under `state_dict`, with `module.` before each key, without BN counters."""
    monkeypatch.setitem(PRETRAINED, "theirs", StaticConfig("resnet18", 4))
    state = dict(theirs.state_dict())
    if wrapped:
        state = {f"module.{k}": v for k, v in state.items() if "num_batches" not in k}
        state = {"state_dict": state, "best_prec1": 0.9}
    torch.save(state, tmp_path / "w.th")
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(load_pretrained("theirs", tmp_path / "w.th")(x), theirs(x))


def test_normalisation_is_part_of_the_loaded_network(
    theirs: TheirResNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network trained on normalised pixels takes plain ones here."""
    config = dataclasses.replace(PRETRAINED["resnet56"], arch="resnet18", width=4)
    monkeypatch.setitem(PRETRAINED, "theirs", config)
    torch.save(theirs.state_dict(), tmp_path / "w.th")
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (config.mean, config.std))
    torch.testing.assert_close(load_pretrained("theirs", tmp_path / "w.th")(x), theirs((x - mean) / std))


def test_wrong_names_and_files_are_clear_errors(theirs: TheirResNet, tmp_path: Path) -> None:
    """An unknown name, a missing file and weights of another network each say what is wrong."""
    with pytest.raises(ValueError, match="pretrained networks are"):
        load_pretrained("vgg")
    with pytest.raises(FileNotFoundError, match=r"none\.th"):
        load_pretrained("resnet56", tmp_path / "none.th")
    torch.save(theirs.state_dict(), tmp_path / "w.th")
    with pytest.raises(ValueError, match="does not fit resnet56"):
        load_pretrained("resnet56", tmp_path / "w.th")
    with pytest.raises(FileNotFoundError, match="NAME=FILE"):
        load_pretrained("resnet56")

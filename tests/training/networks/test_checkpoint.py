"""A checkpoint comes back as it was saved, or says clearly why it cannot."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from training.networks.awnet import AWNet, AWNetConfig
from training.networks.baselines import StaticConfig, build_static
from training.networks.checkpoint import FORMAT, Calibration, CheckpointError, Domain, load, pack, read, save

LABELS = [f"class {i}" for i in range(10)]


@pytest.fixture
def net() -> AWNet:
    net = AWNet(AWNetConfig(width=4, beta=2.0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), dynamic=True))
    with torch.no_grad():
        for head in net.signal_heads:
            head.weight.normal_(0, 0.3)
        net.type_head.temperature.fill_(3.0)
        for name, buffer in net.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(1e-9, 2)  # float16 would lose the small ones
    return net.eval()


def test_a_network_comes_back_bit_for_bit(net: AWNet, tmp_path: Path) -> None:
    """Configuration, weights, statistics and everything beside them survive the file."""
    histogram = ([0.0, 0.5, 1.0], [2, 1])
    thresholds, ranges = {0.05: 0.25, 0.01: 0.75}, {"colours": (0.25, 1.0)}
    domain = Domain("pool", "all", ["pristine"], 3, ranges, thresholds, *histogram, [0.0, 1.0], [0.1, 0.9])
    calibration = Calibration(3, thresholds, *histogram, torch.rand(4), torch.rand(4), [domain])
    path = tmp_path / "deep" / "best.pt"
    recipe = {"name": "test", "steps": [1, 2]}
    save(path, pack(net, labels=LABELS, recipe=recipe, metrics={"clean": 0.5}, calibration=calibration))
    back = load(path)
    x = torch.rand(2, 3, 32, 32)
    assert back.awnet.config == net.config
    assert torch.equal(back.network(x), net(x))
    assert not back.network.training
    assert (back.labels, back.recipe, back.metrics) == (LABELS, recipe, {"clean": 0.5})
    assert back.calibration is not None
    assert back.calibration.thresholds == calibration.thresholds
    assert back.calibration.domains == [domain]
    assert torch.equal(back.calibration.omega_std, calibration.omega_std)


def test_a_static_network_comes_back_and_is_no_awnet(tmp_path: Path) -> None:
    """The kind travels in the file, and asking for the wrong one is an error, not a surprise."""
    net = build_static(StaticConfig("resnet20", 4)).eval()
    save(tmp_path / "s.pt", pack(net, labels=LABELS, recipe={}))
    back = load(tmp_path / "s.pt")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(back.network(x), net(x))
    with pytest.raises(CheckpointError, match="static"):
        _ = back.awnet


def test_half_precision_stores_filters_small_and_statistics_whole(net: AWNet, tmp_path: Path) -> None:
    """fp16 files are about half the size, load as float32 and keep batch norms and temperature exact."""
    save(tmp_path / "full.pt", pack(net, labels=LABELS, recipe={}))
    save(tmp_path / "half.pt", pack(net, labels=LABELS, recipe={}, half=True))
    stored = read(tmp_path / "half.pt")["state"]
    assert stored["classifier.weight"].dtype == torch.float16
    state, original = load(tmp_path / "half.pt").network.state_dict(), net.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            assert value.dtype == torch.float32
            expected = original[name] if value.dim() <= 1 else original[name].half().float()
            assert torch.equal(value, expected), name
    weights = [p.numel() for p in net.parameters() if p.dim() > 1]
    saved = (tmp_path / "full.pt").stat().st_size - (tmp_path / "half.pt").stat().st_size
    assert saved > 1.9 * sum(weights)  # two bytes a weight, less the archive's padding


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "noise":
        path.write_bytes(os.urandom(2000))
    elif how == "other document":
        torch.save({"state_dict": {}}, path)
    else:
        document = torch.load(path, weights_only=True)
        if how == "unknown kind":
            document["kind"] = "transformer"
        elif how == "other width":
            document["config"]["width"] = 8
        elif how == "unknown field":
            document["config"]["colour"] = "blue"
        elif how == "missing weight":
            del document["state"]["classifier.bias"]
        elif how == "future format":
            document["format"] = 2
        torch.save(document, path)


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "empty",
        "noise",
        "other document",
        "unknown kind",
        "other width",
        "unknown field",
        "missing weight",
        "future format",
    ],
)
def test_a_damaged_file_is_a_clear_error_that_names_it(net: AWNet, tmp_path: Path, how: str) -> None:
    """Whatever is wrong with the file, it is a CheckpointError with its path, never a half-loaded network."""
    path = tmp_path / "best.pt"
    save(path, pack(net, labels=LABELS, recipe={}))
    load(path)
    damage(path, how)
    with pytest.raises(CheckpointError, match=r"best\.pt"):
        load(path)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    """No file is FileNotFoundError, with the path."""
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        load(tmp_path / "nowhere.pt")


class Malice:
    """Pickles into a call that would create a folder on loading."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


def test_loading_runs_no_code_of_whoever_made_the_file(tmp_path: Path) -> None:
    """A pickle that carries a call is refused, and the call is not made."""
    marker, path = tmp_path / "owned", tmp_path / "best.pt"
    torch.save({"format": 1, "payload": Malice(marker)}, path)
    with pytest.raises(CheckpointError):
        load(path)
    assert not marker.exists()


class Breaks:
    """Cannot be written: stands for a full disk, or a kill, in the middle of a save."""

    def __reduce__(self) -> tuple[object, ...]:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_save_that_dies_leaves_the_old_file(net: AWNet, tmp_path: Path) -> None:
    """The name `best.pt` always holds a whole checkpoint: the old one until the new one is complete."""
    path = tmp_path / "best.pt"
    save(path, pack(net, labels=LABELS, recipe={"run": "old"}))
    with pytest.raises(OSError, match="No space") as failed:
        save(path, {**pack(net, labels=LABELS, recipe={"run": "new"}), "late": Breaks()})
    assert failed.value.filename == str(path)
    assert load(path).recipe == {"run": "old"}
    save(path, pack(net, labels=LABELS, recipe={"run": "new"}))
    assert load(path).recipe == {"run": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


def test_what_is_no_network_is_refused_in_one_line(tmp_path: Path) -> None:
    """A run to resume, with the file to take in its place; any other file, without torch's advice."""
    save(tmp_path / "last.pt", {"format": FORMAT, "kind": "run", "run": {}})
    with pytest.raises(CheckpointError, match=r"last\.pt is a run to resume.*: take the best\.pt beside it$"):
        load(tmp_path / "last.pt")
    (tmp_path / "README.md").write_text("# A page\n")
    with pytest.raises(CheckpointError, match=r"README\.md is not a readable checkpoint") as refused:
        load(tmp_path / "README.md")
    assert "weights_only" not in str(refused.value) and "\n" not in str(refused.value)

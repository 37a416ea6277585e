"""Weights between an AW-Net and the static network that it started from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training import interpolate
from training.interpolate import between
from training.networks import checkpoint
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.baselines import StaticConfig, StaticNet, build_static

LABELS = [str(i) for i in range(10)]


def trained() -> AWNet:
    """An AW-Net whose weights and statistics are nobody's start."""
    torch.manual_seed(1)
    net = AWNet(AWNetConfig(width=4, extractor_width=4, beta=1.0))
    for _, value in sorted(net.state_dict().items()):
        if value.is_floating_point():
            value.add_(0.1 * torch.rand_like(value))
    return net.eval()


def static() -> StaticNet:
    torch.manual_seed(2)
    net = build_static(StaticConfig(arch="resnet18", width=4)).eval()
    assert isinstance(net, StaticNet)
    return net


def test_the_whole_way_back_is_the_static_network_and_none_of_it_is_the_awnet() -> None:
    """In both branches; extractor and type head are the AW-Net's everywhere."""
    net, trunk, x = trained(), static(), torch.rand(2, 3, 32, 32)
    back, here = between(net, trunk, 1.0), between(net, trunk, 0.0)
    with torch.no_grad():
        for branch in ("adv", "nat"):
            torch.testing.assert_close(back(x, branch), trunk(x))
            torch.testing.assert_close(here(x, branch), net(x, branch), rtol=0, atol=0)
        torch.testing.assert_close(back.type_logits(x), net.type_logits(x), rtol=0, atol=0)
    assert not torch.allclose(net(x, "adv"), trunk(x))


def test_every_weight_of_the_trunk_lies_in_between() -> None:
    """A quarter of the way is a quarter of the difference; the network given is left as it was."""
    net, trunk = trained(), static()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    quarter, back = between(net, trunk, 0.25).state_dict(), between(net, trunk, 1.0).state_dict()
    for name, value in before.items():
        assert torch.equal(net.state_dict()[name], value), name
        if value.is_floating_point():
            torch.testing.assert_close(quarter[name], 0.75 * value + 0.25 * back[name])
    moved = {name.partition(".")[0] for name, value in before.items() if not torch.equal(quarter[name], value)}
    assert moved == {"stem", "blocks", "classifier", "signal_heads"}


def test_between_two_awnets_lies_every_weight_of_both(tmp_path: Path) -> None:
    """Those of the detector and its heads as well; of another shape there is nothing in between."""
    net, start = trained(), AWNet(AWNetConfig(width=4, extractor_width=4, beta=1.0))
    for path, one in (("a.pt", net), ("s.pt", start)):
        checkpoint.save(tmp_path / path, checkpoint.pack(one, labels=LABELS, recipe={"name": "a"}))
    part = between(net, start, 0.3).state_dict()
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(part[name], 0.7 * value + 0.3 * start.state_dict()[name], msg=name)
    with pytest.raises(ValueError, match="not of one shape"):
        between(net, AWNet(AWNetConfig(width=4, extractor_width=2, beta=1.0)), 0.3)
    out = tmp_path / "between.pt"
    interpolate.main(
        ["--ckpt", str(tmp_path / "a.pt"), "--awnet", str(tmp_path / "s.pt"), "--share", "0.3", "--out", str(out)]
    )
    loaded = checkpoint.load(out)
    assert set(loaded.recipe["of"]) == {"awnet", "start"}
    torch.testing.assert_close(loaded.awnet.state_dict(), part, rtol=1e-2, atol=1e-2)  # float16 filters


def test_parts_may_come_from_an_awnet_of_another_trunk(tmp_path: Path) -> None:
    """A detector half way to another network's: the rest stays, and may be of any shape there."""
    net, other = trained(), AWNet(AWNetConfig(width=1, extractor_width=4, beta=1.0))
    for path, one in (("a.pt", net), ("s.pt", other)):
        checkpoint.save(tmp_path / path, checkpoint.pack(one, labels=LABELS, recipe={"name": "a"}))
    out, parts = tmp_path / "between.pt", ["extractor", "type_head"]
    base = ["--ckpt", str(tmp_path / "a.pt"), "--awnet", str(tmp_path / "s.pt"), "--share", "0.5", "--out", str(out)]
    interpolate.main([*base, "--parts", *parts])
    part, goal = between(net, other, 0.5, parts).state_dict(), other.state_dict()
    for name, value in net.state_dict().items():
        if name.partition(".")[0] not in parts:
            assert torch.equal(part[name], value), name
        elif value.is_floating_point():
            torch.testing.assert_close(part[name], 0.5 * value + 0.5 * goal[name], msg=name)
    loaded = checkpoint.load(out)
    assert loaded.recipe["parts"] == parts
    torch.testing.assert_close(loaded.awnet.state_dict(), part, rtol=1e-2, atol=1e-2)  # float16 filters
    with pytest.raises(ValueError, match="no part 'detector'"):
        between(net, other, 0.5, ["detector"])


def test_the_command_writes_a_checkpoint_that_says_what_it_is_made_of(tmp_path: Path) -> None:
    """Files by their hashes, and the share; it loads as the network in between."""
    net, trunk = trained(), static()
    checkpoint.save(tmp_path / "a.pt", checkpoint.pack(net, labels=LABELS, recipe={"name": "a"}))
    checkpoint.save(tmp_path / "s.pt", checkpoint.pack(trunk, labels=LABELS, recipe={"name": "s"}))
    out = tmp_path / "out" / "between.pt"
    interpolate.main(
        ["--ckpt", str(tmp_path / "a.pt"), "--static", str(tmp_path / "s.pt"), "--share", "0.5", "--out", str(out)]
    )
    loaded = checkpoint.load(out)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.awnet(x), between(net, trunk, 0.5)(x), rtol=1e-2, atol=1e-2
        )  # float16 filters
    assert loaded.recipe["share"] == 0.5 and set(loaded.recipe["of"]) == {"awnet", "static"}
    assert loaded.calibration is None and loaded.labels == LABELS


@pytest.mark.parametrize(
    ("static_width", "share", "says"), [(8, "0.5", "no trunk of this AW-Net"), (4, "1.5", "within 0 and 1")]
)
def test_what_cannot_be_made_is_one_line(
    static_width: int, share: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, and no file."""
    other = build_static(StaticConfig(arch="resnet18", width=static_width))
    checkpoint.save(tmp_path / "a.pt", checkpoint.pack(trained(), labels=LABELS, recipe={"name": "a"}))
    checkpoint.save(tmp_path / "s.pt", checkpoint.pack(other, labels=LABELS, recipe={"name": "s"}))
    command = ["--ckpt", str(tmp_path / "a.pt"), "--static", str(tmp_path / "s.pt"), "--share", share]
    with pytest.raises(SystemExit) as stopped:
        interpolate.main([*command, "--out", str(tmp_path / "out.pt")])
    assert stopped.value.code == 2 and says in capsys.readouterr().err
    assert not (tmp_path / "out.pt").exists()

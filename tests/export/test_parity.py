"""Parity: what it compares, and that it refuses what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export.graph import graph, parity
from training.networks.awnet import AWNet
from training.networks.checkpoint import load


@pytest.fixture(scope="module")
def net(tiny_checkpoint: Path) -> AWNet:
    return load(tiny_checkpoint).awnet


@pytest.fixture(scope="module")
def probes(net: AWNet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return parity.probes(net, examples=tmp_path_factory.mktemp("none"))


def test_a_faithful_graph_passes(net: AWNet, probes: dict[str, torch.Tensor]) -> None:
    """The graph of the network is within tolerance on every probe, and the report says how close it came."""
    report = parity.prove(net, graph.build(net, modes=graph.MODES).SerializeToString(), probes)
    assert report.images == {"clean": 16, "attacked": 16}
    assert set(report.worst) == {"logits", "p_type", "omega", "logits_adv", "logits_nat"} == set(parity.TOLERANCE)
    assert all(0 <= report.worst[name] <= limit for name, limit in parity.TOLERANCE.items())
    assert "attacked" in str(report)


def nudge(name: str, amount: float) -> Callable[[onnx.ModelProto], None]:
    """Add `amount` to one element of a constant."""

    def corrupt(model: onnx.ModelProto) -> None:
        (constant,) = (c for c in model.graph.initializer if c.name == name)
        value = numpy_helper.to_array(constant).copy()
        value.flat[0] += amount
        constant.CopyFrom(numpy_helper.from_array(value, name))

    return corrupt


def swap_types(model: onnx.ModelProto) -> None:
    """P(natural) where P(adversarial) belongs, in the output alone."""
    graph_ = model.graph
    (softmax,) = (node for node in graph_.node if node.op_type == "Softmax")
    softmax.output[0] = "p"
    for node in graph_.node:
        for i, name in enumerate(node.input):
            if name == "p_type":
                node.input[i] = "p"
    order = numpy_helper.from_array(np.array([1, 0]), "order")
    graph_.initializer.append(order)
    graph_.node.append(onnx.helper.make_node("Gather", ["p", "order"], ["p_type"], axis=1))


def another_activation(model: onnx.ModelProto) -> None:
    """The last ReLU turned into a Tanh."""
    next(node for node in model.graph.node if node.name == "blocks.7.relu2").op_type = "Tanh"


def nan(model: onnx.ModelProto) -> None:
    nudge("logits.bias", float("nan"))(model)


@pytest.mark.parametrize(
    ("corrupt", "output"),
    [
        (nudge("logits.bias", 2e-4), "logits"),
        (nudge("type_logits.bias", 1e-3), "p_type"),
        (nudge("signals.bias", 0.01), "omega"),
        (nudge("extractor.stem.weight", 0.5), "p_type.*omega"),
        (swap_types, "p_type"),
        (another_activation, "logits"),
        (nan, "logits"),
        (nudge("adv.stem.shift", 0.01), "logits_adv"),
        (nudge("nat.by_omega.rows", 0.1), "logits_nat"),
    ],
)
def test_a_wrong_graph_is_refused(
    net: AWNet, probes: dict[str, torch.Tensor], corrupt: Callable[[onnx.ModelProto], None], output: str
) -> None:
    """Twice the tolerance in one number is enough; the error names the output that is wrong."""
    model = graph.build(net, modes=graph.MODES)
    corrupt(model)
    onnx.checker.check_model(model)
    with pytest.raises(parity.ParityError, match=output):
        parity.prove(net, model.SerializeToString(), probes)


def test_a_model_that_lacks_an_output_is_refused(net: AWNet, probes: dict[str, torch.Tensor]) -> None:
    """What is not there cannot be compared, and is no proof."""
    model = graph.build(net)
    del model.graph.output[1]
    with pytest.raises(parity.ParityError, match="logits, omega"):
        parity.prove(net, model.SerializeToString(), probes)


def test_a_fault_that_only_attacked_images_show_is_found(net: AWNet, probes: dict[str, torch.Tensor]) -> None:
    """Every group counts: a graph that is right on clean images and wrong on others is refused, naming them."""
    model = graph.build(net)
    ceiling = parity.answers(net, probes["clean"], ["logits"])["logits"].max(axis=0)
    assert np.any(parity.answers(net, probes["attacked"], ["logits"])["logits"] > ceiling + 1e-3)
    model.graph.initializer.append(numpy_helper.from_array(ceiling, "ceiling"))
    next(node for node in model.graph.node if node.name == "logits").output[0] = "uncut"
    model.graph.node.append(onnx.helper.make_node("Min", ["uncut", "ceiling"], ["logits"]))
    with pytest.raises(parity.ParityError, match="on attacked images"):
        parity.prove(net, model.SerializeToString(), probes)


def test_probes_repeat_and_differ(net: AWNet, probes: dict[str, torch.Tensor]) -> None:
    """The same network gets the same probes; no two clean ones are alike, and each fills the byte range sensibly."""
    again = parity.probes(net, examples=Path("no such folder"))
    assert all(torch.equal(again[group], probes[group]) for group in probes)
    clean = probes["clean"]
    assert clean.dtype == torch.uint8
    assert len({picture.numpy().tobytes() for picture in clean}) == len(clean) == 16


def test_attacked_probes_are_attacks(net: AWNet, probes: dict[str, torch.Tensor]) -> None:
    """Each lies within 8 of 255 levels of its original, moves it, and together they lower the margin of the answer."""
    clean, attacked = probes["clean"], probes["attacked"]
    distance = (attacked.int() - clean.int()).abs().amax(dim=(1, 2, 3))
    assert int(distance.max()) == 8
    assert int(distance.min()) > 0
    with torch.no_grad():
        before, after = net(clean.float() / 255), net(attacked.float() / 255)
    y = before.argmax(1)
    kept = after.softmax(1).gather(1, y[:, None])
    assert float(kept.mean()) < float(before.softmax(1).gather(1, y[:, None]).mean())


def test_drawings_beside_the_code_are_probes_too(net: AWNet, tmp_path: Path) -> None:
    """Every PNG of the examples folder joins, whatever its size and mode."""
    from PIL import Image

    Image.new("RGB", (32, 32), (250, 3, 9)).save(tmp_path / "a.png")
    Image.new("L", (100, 40), 77).save(tmp_path / "b.png")
    clean = parity.probes(net, examples=tmp_path)["clean"]
    assert len(clean) == 18
    assert clean[16, :, 0, 0].tolist() == [250, 3, 9]
    assert torch.all(clean[17] == 77)


def test_making_probes_leaves_the_random_state_alone(net: AWNet, probes: dict[str, torch.Tensor]) -> None:
    """Attacks draw from a seeded state of their own."""
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    parity.attacked(net, probes["clean"][:2])
    assert torch.equal(torch.rand(3), expected)

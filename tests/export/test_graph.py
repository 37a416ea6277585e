"""The inference graph against the network it came from, in float64, and its form."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from benchmarks.harness.networks import randomised
from export import graph
from training.awnet import AWNet, AWNetConfig
from training.network import Signals


class ExactSignals(Signals):
    """Signals whose P_type keeps the dtype of its logits (the network itself rounds it to float32)."""

    @property
    def p_type(self) -> torch.Tensor:
        return torch.softmax(self.type_logits, dim=1)


def restless(net: AWNet) -> AWNet:
    """`net` far from where it started, with some negative scales and a temperature."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        for module in randomised(net).modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[::4] *= -1
        net.type_head.temperature.fill_(1.7)
    return net


def images(n: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


CONFIGS: list[dict[str, Any]] = [
    {},
    {"beta": 1.0},
    {"beta": 2.0},
    {"beta": 2.5},
    {"depth": 34},
    {"depth": 34, "beta": 1.0},
    {"depth": 50},
    {"depth": 50, "beta": 1.0, "mixbn": False},
    {"depth": 50, "dynamic": False},
    {"dynamic": False},
    {"mixbn": False},
    {"type_weighting": False},
    {"dynamic": False, "mixbn": False},
    {"dynamic": False, "type_weighting": False},
    {"mixbn": False, "type_weighting": False},
    {"dynamic": False, "mixbn": False, "type_weighting": False},
    {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), "num_classes": 7, "image_size": 12, "extractor_width": 3},
]


@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_the_graph_computes_what_the_network_computes(changes: dict[str, Any]) -> None:
    """In float64, with beta 1 to 4, all depths and every ablation, no output is off by more than rounding."""
    net = restless(AWNet(AWNetConfig(**{"width": 4, "image_size": 8, **changes}))).double()
    image = images(3, net.config.image_size)
    with torch.no_grad():
        x = image.double() / 255
        signals = ExactSignals(*net.detect(x))
        expected = [net.classify(x, signals), signals.p_type, torch.cat(signals.omega, dim=1)]
        assert not torch.allclose(expected[0], net.classify(x, signals, "nat")) or not net.config.mixbn
    got = ReferenceEvaluator(graph.build(net)).run(None, {"image": image.numpy()})
    for value, wanted in zip(got, expected, strict=True):
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, wanted.numpy(), rtol=1e-10, atol=1e-10)


def test_any_batch_size_gives_each_image_its_own_answer() -> None:
    """N is dynamic, and an image's outputs do not depend on what else is in the batch."""
    net = restless(AWNet(AWNetConfig(width=4)))
    session = ort.InferenceSession(graph.build(net).SerializeToString(), providers=["CPUExecutionProvider"])
    batch = images(5, 32).numpy()
    together = session.run(None, {"image": batch})
    for i in range(5):
        for whole, alone in zip(together, session.run(None, {"image": batch[i : i + 1]}), strict=True):
            assert alone.shape == (1, *whole.shape[1:])
            np.testing.assert_allclose(alone[0], whole[i], atol=1e-5)


def test_all_modulation_is_computed_at_once() -> None:
    """One Softmax, one Gemm for all signal heads, two products with P_type, and no batch norm is left."""
    model = graph.build(AWNet(AWNetConfig(width=4)).eval())
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Softmax"] == kinds["Tanh"] == 1
    assert kinds["Gemm"] == 3  # type head, signal heads, classifier
    assert kinds["MatMul"] == kinds["Split"] == 2
    assert "BatchNormalization" not in kinds
    assert kinds["Conv"] == 40


def test_the_outputs_are_the_contract_s() -> None:
    """Names, types, shapes and order of the tensors are those of docs/architecture.md, with a free batch axis."""
    net = AWNet(AWNetConfig(width=4, num_classes=7)).eval()
    model = graph.build(net)
    onnx.checker.check_model(model, full_check=True)

    def shape(info: onnx.ValueInfoProto) -> tuple[str, int, list[int | str]]:
        kind = info.type.tensor_type
        return info.name, kind.elem_type, [dim.dim_param or dim.dim_value for dim in kind.shape.dim]

    assert [shape(info) for info in model.graph.input] == [("image", onnx.TensorProto.UINT8, ["N", 3, 32, 32])]
    assert [shape(info) for info in model.graph.output] == [
        ("logits", onnx.TensorProto.FLOAT, ["N", 7]),
        ("p_type", onnx.TensorProto.FLOAT, ["N", 2]),
        ("omega", onnx.TensorProto.FLOAT, ["N", 240]),
    ]
    layout = graph.omega_layout(net)
    assert [name for name, _, _ in layout] == [name for name, _ in net.modulated()]
    assert layout[0] == ("blocks.0.conv1", 0, 4)
    assert sum(length for _, _, length in layout) == layout[-1][1] + layout[-1][2] == 240


@pytest.mark.parametrize("opset", [graph.OPSETS.start, graph.OPSETS.stop - 1])
def test_every_offered_opset_loads_and_agrees(opset: int) -> None:
    """The oldest and the newest opset give the default's answers, under IR version 10."""
    net = restless(AWNet(AWNetConfig(width=4)))
    image = images(2, 32).numpy()
    answers = []
    for version in (graph.OPSET, opset):
        model = graph.build(net, opset=version)
        assert model.ir_version == 10
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", version)]
        onnx.checker.check_model(model, full_check=True)
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        answers.append(session.run(None, {"image": image}))
    for ours, default in zip(*answers, strict=True):
        np.testing.assert_array_equal(ours, default)


def test_an_opset_out_of_range_is_refused() -> None:
    """Opsets that IR version 10 cannot carry, or in which nodes mean something else, are an error."""
    net = AWNet(AWNetConfig(width=4))
    for opset in (graph.OPSETS.start - 1, graph.OPSETS.stop):
        with pytest.raises(graph.GraphError, match="opset"):
            graph.build(net, opset=opset)


def test_an_extractor_without_a_graph_is_refused_by_name() -> None:
    """A pluggable extractor that export does not know is an error that names it, not a wrong graph."""

    class Strange(nn.Module):
        feature_dim = 8

    with pytest.raises(graph.GraphError, match="Strange"):
        graph.build(AWNet(AWNetConfig(width=4), extractor=Strange()))


def test_building_leaves_the_network_as_it_was() -> None:
    """The network keeps its dtype, its mode and its weights: it is still needed for parity."""
    net = restless(AWNet(AWNetConfig(width=4)))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    graph.build(net)
    assert not net.training
    for name, value in net.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])

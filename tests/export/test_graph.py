"""The inference graph against the network it came from, in float64, and its form."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from benchmarks.harness.networks import randomised
from benchmarks.model import graph as benchmark
from export.graph import graph
from server.engines.onnx_cut import cut
from server.engines.onnx_scan import scan
from training.networks.awnet import AWNet, AWNetConfig
from training.networks.network import Signals


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
    {"mixing": "bounded"},
    {"mixing": "bounded", "mixing_limit": 0.2, "mixing_temperature": 3.0, "beta": 1.0, "depth": 34},
    {"mixing": "bounded", "depth": 50},
    {"mixing": "bounded", "dynamic": False},
]


@pytest.mark.parametrize("blocked", [False, True], ids=["plain", "blocked"])
@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_the_graph_computes_what_the_network_computes(changes: dict[str, Any], blocked: bool) -> None:
    """In float64, with beta 1 to 4, all depths, both mixings, every ablation and every mode, in both forms, no output
    is off by more than rounding."""
    net = restless(AWNet(AWNetConfig(**{"width": 4, "image_size": 8, **changes}))).double()
    image = images(3, net.config.image_size)
    with torch.no_grad():
        x = image.double() / 255
        signals = ExactSignals(*net.detect(x))
        expected = [net.classify(x, signals), signals.p_type, torch.cat(signals.omega, dim=1)]
        if net.config.mixbn:
            expected += [net.classify(x, signals, "adv"), net.classify(x, signals, "nat")]
            assert not torch.allclose(expected[0], expected[4]) and not torch.allclose(expected[3], expected[4])
    modes = graph.MODES if net.config.mixbn else ("auto",)
    model = graph.build(net, modes=modes, blocked=blocked)
    assert blocked == any(node.op_type == "Resize" for node in model.graph.node) or not net.config.dynamic
    got = ReferenceEvaluator(model).run(None, {"image": image.numpy()})
    for value, wanted in zip(got, expected, strict=True):
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, wanted.numpy(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("certain", [-1.0, 1.0])
def test_a_bounded_mixture_is_finite_where_the_detector_is_certain(certain: float) -> None:
    """P(natural) of 1e-90 and of 1 - 1e-90, branches that are as certain: log p is a number, and the network's."""
    net = restless(AWNet(AWNetConfig(width=4, image_size=8, mixing="bounded")))
    image = images(3, 8)
    with torch.no_grad():
        net.classifier.weight.mul_(300)
        net.type_head.weight.zero_()
        net.type_head.bias.copy_(torch.tensor([certain, -certain]) * 177)  # over the temperature of 1.7
        expected = net(image.float() / 255)
    session = ort.InferenceSession(graph.build(net).SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(["logits"], {"image": image.numpy()})
    assert np.isfinite(got).all() and got.min() < -30
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("blocked", [False, True], ids=["plain", "blocked"])
def test_further_passes_share_filters_and_stem(blocked: bool) -> None:
    """Three modes cost no second copy of a filter, and the stem's convolution is computed once."""
    net = restless(AWNet(AWNetConfig(width=16)))
    alone, all_modes = (graph.build(net, modes=modes, blocked=blocked) for modes in ((), graph.MODES))
    assert all_modes.ByteSize() < 1.03 * alone.ByteSize()
    of_type = {"p.adv.map"}  # what P_type alone decides is made by convolutions too
    convolutions = [n for n in all_modes.graph.node if n.op_type == "Conv" and n.input[0] not in of_type]
    assert len(convolutions) == 20 + 1 + 3 * 19  # extractor, stem, and the rest of each pass
    assert len({node.input[1] for node in convolutions}) == 40
    assert len({node.name for node in all_modes.graph.node}) == len(all_modes.graph.node)


def test_the_auto_output_is_the_same_with_and_without_further_modes() -> None:
    """Asking for a mode adds outputs; it changes no number of those that were there."""
    net = restless(AWNet(AWNetConfig(width=4)))
    image = images(3, 32).numpy()
    few, many = (
        ort.InferenceSession(graph.build(net, modes=modes).SerializeToString(), providers=["CPUExecutionProvider"])
        for modes in ((), graph.MODES)
    )
    names = ["logits", "p_type", "omega"]
    assert [output.name for output in few.get_outputs()] == names
    for ours, theirs in zip(few.run(names, {"image": image}), many.run(names, {"image": image}), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("blocked", [False, True], ids=["plain", "blocked"])
def test_a_mode_that_is_not_asked_for_costs_nothing_once_it_is_cut_away(blocked: bool) -> None:
    """The server cuts a model down to the outputs of one mode: what is left is one pass, node for node."""
    net = restless(AWNet(AWNetConfig(width=16)))
    alone, together = (
        graph.build(net, modes=modes, blocked=blocked).SerializeToString() for modes in ((), graph.MODES)
    )
    left = onnx.load_from_string(cut(together, ["logits", "p_type", "omega"])).graph
    expected = onnx.load_from_string(alone).graph
    assert sorted(node.name for node in left.node) == sorted(node.name for node in expected.node)
    assert {constant.name for constant in left.initializer} == {constant.name for constant in expected.initializer}
    robust_bytes = cut(together, ["logits_adv", "p_type", "omega"])
    robust = onnx.load_from_string(robust_bytes).graph
    assert Counter(node.op_type for node in robust.node)["Conv"] == 40
    image = {"image": images(3, 32).numpy()}
    whole, half = (ort.InferenceSession(m, providers=["CPUExecutionProvider"]) for m in (together, robust_bytes))
    for ours, theirs in zip(half.run(["logits_adv"], image), whole.run(["logits_adv"], image), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)


def rounded(net: AWNet) -> AWNet:
    """`net` as a checkpoint of a training keeps it: filters and matrices are numbers of float16."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.copy_(parameter.half())
    return net


@pytest.mark.parametrize("modes", [(), graph.MODES], ids=["auto", "all modes"])
def test_float16_weights_are_gone_once_the_model_is_loaded(modes: Any, tmp_path: Path) -> None:
    """Half the file; ONNX Runtime makes the same graph of it, without a Cast, and the same answers."""
    net = rounded(restless(AWNet(AWNetConfig(width=16))))
    image = images(3, 32).numpy()
    made, kinds, answers = [], [], []
    for half in (False, True):
        made.append(graph.build(net, modes=modes, half_weights=half).SerializeToString())
        onnx.checker.check_model(onnx.load_from_string(made[-1]), full_check=True)
        scan(made[-1])
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{half}.onnx")
        options.log_severity_level = 3  # such a file is for this machine alone
        session = ort.InferenceSession(made[-1], options, providers=["CPUExecutionProvider"])
        kinds.append(Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node))
        answers.append(session.run(None, {"image": image}))
    assert kinds[0] == kinds[1] and kinds[1]["Cast"] == 1  # of the image
    assert len(made[1]) < 0.55 * len(made[0])
    for plain, half_ in zip(*answers, strict=True):
        # Sums of float32 in another order, over eighteen layers; float16 would be off by 1e-3.
        np.testing.assert_allclose(half_, plain, atol=1e-5 * np.abs(plain).max(), rtol=0)


@pytest.mark.parametrize("changes", [{}, {"mixing": "bounded"}], ids=str)
def test_float16_weights_change_no_number(changes: dict[str, Any]) -> None:
    """In float64 the graph is the network as exactly as with weights of float64."""
    net = rounded(restless(AWNet(AWNetConfig(width=4, image_size=8, **changes)))).double()
    image = {"image": images(3, 8).numpy()}
    plain, half = (
        ReferenceEvaluator(graph.build(net, modes=graph.MODES, half_weights=half)).run(None, image)
        for half in (False, True)
    )
    for value, wanted in zip(half, plain, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-10, atol=1e-10)


def test_filters_that_float16_would_round_are_refused() -> None:
    """Thresholds and audit speak for the network as it is, and not for a rounded one."""
    net = rounded(AWNet(AWNetConfig(width=4)))
    with torch.no_grad():
        net.blocks[0].conv1.conv.weight[0, 0, 0, 0] = 1 / 3
    with pytest.raises(graph.GraphError, match=r"float16 would round blocks\.0\.conv1"):
        graph.build(net, half_weights=True)


@pytest.mark.parametrize(
    ("changes", "asked", "modes"),
    [
        ({}, [], ["auto"]),
        ({}, ["natural", "robust"], ["auto", "robust", "natural"]),
        ({}, ["auto", "natural"], ["auto", "natural"]),
        ({"mixbn": False}, ["auto"], ["auto"]),
        ({"mixing": "bounded"}, ["auto"], ["auto", "robust", "natural"]),
    ],
    ids=str,
)
def test_modes_are_those_asked_for_and_all_of_a_bounded_network(
    changes: dict[str, Any], asked: list[str], modes: list[str]
) -> None:
    """auto is always one; both branches of a bounded network are computed anyway."""
    net = AWNet(AWNetConfig(width=4, **changes))
    assert graph.modes_of(net, asked) == modes
    further = {"robust": "logits_adv", "natural": "logits_nat"}
    expected = ["logits", "p_type", "omega", *(further[mode] for mode in modes[1:])]
    assert [output.name for output in graph.build(net, modes=asked).graph.output] == expected


@pytest.mark.parametrize(
    ("changes", "asked", "complaint"),
    [({}, ["robust", "fast"], "'fast': auto, robust, natural"), ({"mixbn": False}, ["robust"], "one branch")],
)
def test_modes_that_cannot_be_are_refused(changes: dict[str, Any], asked: list[str], complaint: str) -> None:
    """An unknown name, or a branch of a network that has only one."""
    with pytest.raises(graph.GraphError, match=complaint):
        graph.build(AWNet(AWNetConfig(width=4, **changes)), modes=asked)


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
    """In the plain form: one Softmax, one Gemm for all signal heads, two products with P_type, no batch norm left."""
    model = graph.build(AWNet(AWNetConfig(width=4)).eval())
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Softmax"] == kinds["Tanh"] == 1
    assert kinds["Gemm"] == 3  # type head, signal heads, classifier
    assert kinds["MatMul"] == kinds["Split"] == 2
    assert "BatchNormalization" not in kinds
    assert kinds["Conv"] == 40


@pytest.mark.parametrize(("mixing", "passes"), [("norms", 1), ("bounded", 2)])
def test_maps_stay_in_blocks_from_the_stem_to_the_pooling(mixing: str, passes: int) -> None:
    """ONNX Runtime reorders the scales before Resize makes maps of them, and what the poolings leave: never a map."""
    net = restless(AWNet(AWNetConfig(width=16, mixing=mixing)))
    plain, blocked = (
        benchmark.reorders(graph.build(net, blocked=blocked).SerializeToString(), benchmark.Settings(1, "all", True))
        for blocked in (False, True)
    )
    if not plain["reorders"]:
        pytest.skip("ONNX Runtime has no blocked layout on this CPU")
    assert blocked["reorders"] == len(net.modulated()) + passes + 1
    assert plain["reorders"] > 36 * passes
    assert blocked["nodes"] <= plain["nodes"]


def test_both_forms_agree_in_float32() -> None:
    """To a hundredth of what parity allows, one image or several, in every mode."""
    net = restless(AWNet(AWNetConfig(width=16)))
    sessions = [
        ort.InferenceSession(
            graph.build(net, modes=graph.MODES, blocked=blocked).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        for blocked in (False, True)
    ]
    for n in (1, 3):
        image = {"image": images(n, 32).numpy()}
        for plain, blocked in zip(*(session.run(None, image) for session in sessions), strict=True):
            np.testing.assert_allclose(blocked, plain, atol=1e-5 * np.abs(plain).max(), rtol=0)


@pytest.mark.parametrize(("width", "blocked"), [(16, True), (48, True), (8, False), (20, False)])
def test_blocks_are_written_where_channels_fill_them(width: int, blocked: bool) -> None:
    """A runtime that finds other numbers of channels leaves its blocked layout, and maps of scales only cost time."""
    kinds = Counter(node.op_type for node in graph.build(AWNet(AWNetConfig(width=width))).graph.node)
    assert ("Resize" in kinds) == blocked


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

"""Models whose trunk computes in 8 bits: what is quantised, what is not, and what is refused."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export.graph import graph, int8, parity
from export.graph.int8 import PrecisionError
from export.onnx import main
from server.engines.onnx_cut import cut
from server.engines.onnx_scan import scan
from training.data.images import Split
from training.networks.awnet import AWNet
from training.networks.checkpoint import load

CHECKPOINT = Path(__file__).resolve().parents[2] / "training/checkpoints/awnet-robust-domains.pt"


@pytest.fixture(scope="module")
def net() -> AWNet:
    return load(CHECKPOINT).awnet


@pytest.fixture(scope="module")
def pictures(net: AWNet) -> Split:
    """Drawings and patterns, with what the network says of them as the right class."""
    images = parity.probes(net)["clean"]
    return Split(images, torch.from_numpy(parity.answers(net, images, ["logits"])["logits"].argmax(1)))


@pytest.fixture(scope="module")
def model(net: AWNet) -> onnx.ModelProto:
    return graph.build(net, modes=["robust"], blocked=False)


@pytest.fixture(scope="module")
def quantised(model: onnx.ModelProto, pictures: Split) -> onnx.ModelProto:
    return int8.quantised(model, pictures.images)


def test_the_trunk_is_in_8_bits_and_the_detector_is_not(model: onnx.ModelProto, quantised: onnx.ModelProto) -> None:
    """38 convolutions of two passes over 19 filters; extractor, stem and every matrix stay as they are."""
    made = {constant.name: numpy_helper.to_array(constant) for constant in quantised.graph.initializer}
    filters = {name: value for name, value in made.items() if value.dtype == np.int8 and value.ndim == 4}
    assert len(filters) == 19
    assert all(value.min() >= -64 and value.max() <= 64 for value in filters.values())  # no overflow under AVX2
    for constant in model.graph.initializer:
        if constant.name.startswith(("extractor.", "stem.", "signals.", "logits.", "type_logits.")):
            np.testing.assert_array_equal(made[constant.name], numpy_helper.to_array(constant))
    inputs = {name: node.op_type for node in quantised.graph.node for name in node.output}
    dequantised = [node.name for node in quantised.graph.node if inputs.get(node.input[0]) == "DequantizeLinear"]
    assert set(int8.trunk_convolutions(model)) <= set(dequantised)
    assert not [name for name in dequantised if name.startswith("extractor.") or name == "stem"]


def test_the_file_is_one_that_servers_take(model: onnx.ModelProto, quantised: onnx.ModelProto) -> None:
    """Standard operators, the same tensors, nothing of the machine or the tool; it can be cut down to a mode."""
    onnx.checker.check_model(quantised, full_check=True)
    assert [(entry.domain, entry.version) for entry in quantised.opset_import] == [("", graph.OPSET)]
    assert quantised.producer_name == graph.PRODUCER and not quantised.metadata_props
    assert quantised.graph.output == model.graph.output and quantised.graph.input == model.graph.input
    data = quantised.SerializeToString()
    scan(data)
    robust = onnx.load_from_string(cut(data, ["logits_adv", "p_type", "omega"]))
    onnx.checker.check_model(robust, full_check=True)
    assert Counter(node.op_type for node in robust.graph.node)["Conv"] == 40


def test_scores_and_omega_are_those_of_the_network(net: AWNet, quantised: onnx.ModelProto, pictures: Split) -> None:
    """At parity's own limits, so that thresholds mean what they meant."""
    limits = {name: parity.TOLERANCE[name] for name in ("p_type", "omega")}
    report = parity.prove(net, quantised.SerializeToString(), {"clean": pictures.images}, limits)
    assert set(report.worst) == {"p_type", "omega"}
    with pytest.raises(parity.ParityError, match="logits"):
        parity.prove(net, quantised.SerializeToString(), {"clean": pictures.images})


def test_an_output_without_a_limit_must_still_be_finite(net: AWNet, pictures: Split) -> None:
    """Whatever precision: no number may be none."""
    model = graph.build(net)
    bias = next(constant for constant in model.graph.initializer if constant.name == "logits.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(10, np.nan, np.float32), bias.name))
    with pytest.raises(parity.ParityError, match=r"logits .*not finite"):
        parity.prove(net, model.SerializeToString(), {"clean": pictures.images}, {"p_type": 1e-5})


def test_a_model_that_keeps_its_classes_is_told_with_figures(
    net: AWNet, quantised: onnx.ModelProto, pictures: Split
) -> None:
    """Every class output on natural, corrupted and attacked images."""
    found = int8.judge(net, quantised, pictures)
    assert list(found.same) == ["logits", "logits_adv"]
    assert list(found.same["logits"]) == ["natural", "corrupted", "attacked"]
    assert found.accuracy[0] == 1 and 0 < found.spread <= int8.GOLDEN_TOLERANCE / 2
    assert "same class as in float32" in str(found)


def test_a_model_that_changes_its_classes_is_refused_with_figures(
    net: AWNet, model: onnx.ModelProto, pictures: Split
) -> None:
    """Ranges that black images set cut off what others need."""
    black = int8.quantised(model, torch.zeros_like(pictures.images))
    with pytest.raises(PrecisionError, match=r"nothing is published: .*logits .*% on natural images.*accuracy"):
        int8.judge(net, black, pictures)


def test_golden_images_are_those_on_which_engines_agree_best(quantised: onnx.ModelProto, pictures: Split) -> None:
    """Golden logits are compared on other CPUs, where a rounding may fall to the other side; a group at a time."""
    probes = {"clean": pictures.images[:12], "others": pictures.images[12:24]}
    chosen = int8.golden(quantised, probes, 4)
    assert len(chosen) == 8

    def apart(images: torch.Tensor) -> float:
        both = [int8.answers(quantised, images, optimised=optimised) for optimised in (True, False)]
        return max(float(np.abs(both[0][name] - both[1][name]).max()) for name in ("logits", "logits_adv"))

    for picked, images in zip(chosen.split(4), probes.values(), strict=True):
        left = [image[None] for image in images if not any(torch.equal(image, p) for p in picked)]
        assert len(left) == 8
        assert apart(picked) <= min(apart(image) for image in left)


def test_a_model_without_such_images_is_refused(
    quantised: onnx.ModelProto, pictures: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A golden test that fails on another CPU would keep the version from being served there."""
    monkeypatch.setattr(int8, "GOLDEN_TOLERANCE", 1e-9)
    with pytest.raises(
        PrecisionError, match=r"nothing is published: engines differ by .* 4 golden images from 12 clean"
    ):
        int8.golden(quantised, {"clean": pictures.images[:12]}, 4)


def test_int8_without_images_or_with_a_card_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training images set the ranges; an audit's figures are those of the network in float32."""
    options = ["--ckpt", str(CHECKPOINT), "--precision", "int8", "--repository", str(tmp_path / "models")]
    assert main(options) == 2
    assert "int8 needs --data-dir" in capsys.readouterr().err
    card = CHECKPOINT.parents[1] / "reports/audits/awnet-robust/card.json"
    assert main([*options, "--data-dir", str(tmp_path), "--card", str(card)]) == 2
    assert "cannot carry it" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


@pytest.mark.slow
def test_the_bundled_network_passes_in_int8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the checkpoint to a version that the server reads, with golden values of its own."""
    from export.repository.layout import METADATA_KEY
    from server.core.contract import parse

    data_dir = os.environ.get("AWNET_DATA_DIR")
    if not data_dir:
        pytest.skip("AWNET_DATA_DIR is not set")
    options = ["--ckpt", str(CHECKPOINT), "--precision", "int8", "--data-dir", data_dir, "--repository", str(tmp_path)]
    assert main(options) == 0
    assert "same class as in float32: logits 9" in capsys.readouterr().out
    model = onnx.load(tmp_path / "awnet/1/model.onnx")
    contract = {p.key: p.value for p in model.metadata_props}[METADATA_KEY]
    parsed = parse(contract)
    assert parsed.precision == "int8" and parsed.golden.tolerance == {"logits": 0.1, "p_type": 1e-3, "omega": 1e-3}
    got = int8.answers(model, torch.from_numpy(parsed.golden.image.copy()))
    np.testing.assert_allclose(got["logits"], parsed.golden.outputs["logits"], atol=0.05)
    calibration = load(CHECKPOINT).calibration
    assert calibration and parsed.domains[-1].thresholds.adversarial.score == calibration.domains[-1].thresholds[0.01]

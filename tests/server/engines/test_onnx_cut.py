"""Models cut down to some of their outputs."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from server.engines.onnx_cut import Cutter, cut, outputs_in, property_of
from server.errors import ContractError
from tests.server.tiny import SIZE, graph, spoilt


def model() -> onnx.ModelProto:
    made = graph()
    made.metadata_props.add(key="awnet.contract", value="kept")
    return made


@pytest.mark.parametrize(
    ("outputs", "constants"),
    [
        (["logits", "p_type"], {"scale", "mean_to_logits", "red", "red_bias"}),
        (["p_type"], {"scale", "red", "red_bias"}),
        (["omega"], {"scale", "pixels_to_omega"}),
    ],
)
def test_what_is_left_answers_as_before_and_holds_nothing_else(outputs: list[str], constants: set[str]) -> None:
    """Same numbers for the outputs that were asked for; nodes and constants of the others are gone, the rest is not."""
    data = model().SerializeToString()
    smaller = cut(data, outputs)
    loaded = onnx.load_from_string(smaller)
    onnx.checker.check_model(loaded, full_check=True)
    assert [output.name for output in loaded.graph.output] == outputs
    assert {constant.name for constant in loaded.graph.initializer} == constants
    assert [(p.key, p.value) for p in loaded.metadata_props] == [("awnet.contract", "kept")]
    assert loaded.opset_import == model().opset_import and loaded.graph.input == model().graph.input
    image = np.random.default_rng(0).integers(0, 256, (2, 3, SIZE, SIZE), np.uint8)
    before, after = (
        ort.InferenceSession(some, providers=["CPUExecutionProvider"]).run(outputs, {"image": image})
        for some in (data, smaller)
    )
    for ours, theirs in zip(after, before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_all_outputs_are_the_model_itself() -> None:
    """Nothing is written anew where nothing goes."""
    data = model().SerializeToString()
    assert cut(data, ["logits", "omega", "p_type"]) is data


def test_a_model_is_read_once_for_several_cuts() -> None:
    """What one cut leaves out the next one has."""
    data = model().SerializeToString()
    cutter = Cutter(data)
    for outputs in (["p_type"], ["omega"], ["logits", "p_type"], ["logits", "omega", "p_type"], ["p_type"]):
        assert cutter.cut(outputs) == cut(data, outputs)


def test_outputs_and_properties_are_read_without_a_runtime() -> None:
    """As the library has them; nothing of another key, and no file that is none."""
    data = model().SerializeToString()
    assert outputs_in(data) == {output.name for output in model().graph.output}
    assert (property_of(data, "awnet.contract"), property_of(data, "awnet")) == ("kept", None)
    for read in (outputs_in, lambda data: property_of(data, "awnet.contract")):
        with pytest.raises(ContractError):
            read(data[:100])


def test_an_output_that_is_not_there_is_refused() -> None:
    """By name."""
    with pytest.raises(ContractError, match="no output logits_adv"):
        cut(model().SerializeToString(), ["logits", "logits_adv"])


def test_a_model_with_subgraphs_is_refused() -> None:
    """A branch may use values of the graph around it without naming them as inputs."""
    made = model()
    inner = helper.make_graph([helper.make_node("Identity", ["mean"], ["y"])], "inner", [], [])
    made.graph.node.insert(4, helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))
    made.graph.node[5].input[0] = "z"
    with pytest.raises(ContractError, match="subgraphs"):
        cut(made.SerializeToString(), ["logits"])


def test_broken_bytes_end_in_a_refusal_or_in_some_bytes() -> None:
    """Cut anywhere, or with bytes changed at random: never another exception."""
    data = model().SerializeToString()
    refused = 0
    for some in [*spoilt(data), b"", b"\xff" * 100]:
        try:
            cut(some, ["p_type"])
        except ContractError:
            refused += 1
    assert refused > 100

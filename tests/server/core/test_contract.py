"""The contract is read whole or refused."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from server.core.contract import Mixing, parse
from server.core.domains import Histogram, ScoreMap, Threshold, Thresholds
from server.errors import ContractError
from tests.server.schema_2 import ABOUT, CARD, schema_2
from tests.server.schema_3 import BOUNDED, branches, schema_3
from tests.server.tiny import CHANNELS, LABELS, SIZE, contract_of, graph, tensor


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return contract_of(graph())


def test_a_right_contract_is_read(document: dict[str, Any]) -> None:
    """Every part of it, typed."""
    contract = parse(json.dumps(document))
    assert contract.labels == tuple(LABELS)
    assert contract.preprocessing.size == SIZE
    assert (contract.thresholds.suspicious.score, contract.thresholds.adversarial.fpr) == (0.41, 0.01)
    assert contract.omega_channels == CHANNELS
    assert [part.name for part in contract.omega] == ["blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1"]
    assert contract.golden.image.shape == (3, 3, SIZE, SIZE)
    assert contract.golden.image.dtype == np.uint8
    assert {k: v.shape[1] for k, v in contract.golden.outputs.items()} == {"logits": 10, "p_type": 2, "omega": CHANNELS}
    assert contract.card is None
    [domain] = contract.domains
    assert (domain.name, domain.ranges, domain.images, domain.histogram.counts) == ("pristine", None, 100, (90, 10))


def test_tensors_are_little_endian(document: dict[str, Any]) -> None:
    """Whatever machine reads them."""
    spoiled = copy.deepcopy(document)
    spoiled["reference"]["omega_std"] = tensor(np.arange(CHANNELS, dtype="<f4"))
    assert parse(json.dumps(spoiled)).reference.omega_std.tolist() == list(range(CHANNELS))


def set_to(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        part: Any = document
        for key in path[:-1]:
            part = part[key]
        if value is None:
            del part[path[-1]]
        else:
            part[path[-1]] = value

    return change


WRONG = {
    "a later schema": set_to("schema_version", value=4),
    "a schema that is true": set_to("schema_version", value=True),
    "domains that are not there": set_to("schema_version", value=2),
    "modes that are not there": set_to("schema_version", value=3),
    "no schema": set_to("schema_version", value=None),
    "no labels": set_to("labels", value=None),
    "one label": set_to("labels", value=["cat"]),
    "a label twice": set_to("labels", 0, value="cat"),
    "another filter": set_to("preprocessing", "filter", value="nearest"),
    "another crop": set_to("preprocessing", "crop", value="random"),
    "no size": set_to("preprocessing", "size", value=None),
    "a size as text": set_to("preprocessing", "size", value="32"),
    "no thresholds": set_to("thresholds", value=None),
    "thresholds the wrong way round": set_to("thresholds", "suspicious", "score", value=0.8),
    "rates the wrong way round": set_to("thresholds", "suspicious", "fpr", value=0.001),
    "a threshold over one": set_to("thresholds", "adversarial", "score", value=1.5),
    "a threshold that is no number": set_to("thresholds", "adversarial", "score", value=float("nan")),
    "a threshold that is true": set_to("thresholds", "adversarial", "score", value=True),
    "a gap in omega": set_to("omega", 1, "offset", value=5),
    "no omega": set_to("omega", value=[]),
    "omega too short": set_to("omega", 2, "length", value=1),
    "no reference": set_to("reference", value=None),
    "edges and counts that do not fit": set_to("reference", "score_histogram", "counts", value=[1]),
    "no golden values": set_to("golden", value=None),
    "golden values of the wrong type": set_to("golden", "logits", value=tensor(np.zeros((3, 10)))),
    "golden values of the wrong shape": set_to("golden", "p_type", value=tensor(np.zeros((2, 2), np.float32))),
    "golden values that are not finite": set_to("golden", "p_type", value=tensor(np.full((3, 2), np.nan, np.float32))),
    "golden bytes cut": set_to("golden", "omega", "base64", value="AAAA"),
    "golden bytes that are not base64": set_to("golden", "omega", "base64", value="?"),
    "a negative shape": set_to("golden", "image", "shape", value=[-1, 3, SIZE, SIZE]),
    "no golden image": set_to("golden", "image", value=tensor(np.zeros((0, 3, SIZE, SIZE), np.uint8))),
    "a tolerance that accepts anything": set_to("golden", "tolerance", "logits", value=1e9),
    "a tolerance of zero": set_to("golden", "tolerance", "logits", value=0),
}


FIRST = ("domains", 0)
RATE = {"suspicious": [0.05, 0.04, 0.06], "adversarial": [0.01, 0.0, 0.02]}
WRONG_DOMAINS = {
    "no domains": set_to("domains", value=[]),
    "a name twice": set_to(*FIRST, "name", value="pool"),
    "no name": set_to(*FIRST, "name", value=None),
    "nothing for people": set_to(*FIRST, "about", value=None),
    "no ranges": set_to(*FIRST, "ranges", value=None),
    "a statistic that is not measured": set_to(*FIRST, "ranges", "sharpness", value=[0, 1]),
    "half a range": set_to(*FIRST, "ranges", "colours", value=[0.1]),
    "a range the wrong way round": set_to(*FIRST, "ranges", "colours", value=[0.9, 0.1]),
    "an end that no float can hold": set_to(*FIRST, "ranges", "colours", value=[0, 10**400]),
    "a threshold that no float can hold": set_to(*FIRST, "thresholds", "suspicious", "score", value=-(10**400)),
    "a count that no float can hold": set_to(*FIRST, "score_histogram", "counts", value=[10**400, 1]),
    "a name that cannot be answered": set_to(*FIRST, "name", value="\ud800"),
    "a radius that cannot be answered": set_to(*FIRST, "rates", "tpr_t0", value={"\ud800": RATE}),
    "a title that cannot be answered": set_to("card", "title", value="\udfff"),
    "a range without end": set_to(*FIRST, "ranges", "colours", value=[0, float("inf")]),
    "thresholds that are not the last domain's": set_to("thresholds", "suspicious", "score", value=0.61),
    "another target": set_to(*FIRST, "thresholds", "suspicious", "fpr", value=0.04),
    "thresholds the wrong way round": set_to(*FIRST, "thresholds", "suspicious", "score", value=0.8),
    "no images": set_to(*FIRST, "images", value=0),
    "no kinds": set_to(*FIRST, "kinds", value=None),
    "no histogram": set_to(*FIRST, "score_histogram", value=None),
    "a histogram that does not fit": set_to(*FIRST, "score_histogram", "counts", value=[1]),
    "no score map": set_to(*FIRST, "score_map", value=None),
    "a score map of nothing": set_to(*FIRST, "score_map", value={"scores": [], "probabilities": [], "prior": 0.5}),
    "a score twice": set_to(*FIRST, "score_map", "scores", value=[0.0, 0.5, 0.5]),
    "a probability that falls": set_to(*FIRST, "score_map", "probabilities", value=[0.0, 0.5, 0.4]),
    "a probability over one": set_to(*FIRST, "score_map", "probabilities", value=[0.0, 0.5, 1.4]),
    "more scores than probabilities": set_to(*FIRST, "score_map", "probabilities", value=[0.0, 0.5]),
    "a prior of one": set_to(*FIRST, "score_map", "prior", value=1),
    "no rates": set_to(*FIRST, "rates", value=None),
    "a rate of one point": set_to(*FIRST, "rates", "fpr_worst", "adversarial", value=None),
    "a worst kind of no name": set_to(*FIRST, "rates", "fpr_worst", "kind", value=None),
    "a rate without its interval": set_to(*FIRST, "rates", "fpr_pristine", "suspicious", value=[0.05]),
    "a rate outside its interval": set_to(*FIRST, "rates", "tpr_t0", "8", "adversarial", value=[0.5, 0.6, 0.7]),
    "no card": set_to("card", value=None),
    "a card of a later format": set_to("card", "format", value=2),
    "a card without its statement": set_to("card", "statement", value=None),
    "a figure of another unit": set_to("card", "figures", 0, "unit", value="furlong"),
    "a figure outside its interval": set_to("card", "figures", 0, "value", value=0.9),
}


@pytest.fixture(scope="module")
def with_domains(document: dict[str, Any]) -> dict[str, Any]:
    made = copy.deepcopy(document)
    schema_2(card=CARD)(made)
    return made


def test_a_contract_with_domains_is_read(with_domains: dict[str, Any]) -> None:
    """Every part of it, typed; one pair of thresholds for whoever knows only one is the widest domain's."""
    contract = parse(json.dumps(with_domains))
    pristine, pool = contract.domains
    assert (pristine.name, pristine.about, pristine.kinds) == ("pristine", ABOUT["pristine"], ("pristine",))
    assert pristine.ranges == {"colours": (0.3, 1.0)}
    assert pristine.histogram == Histogram((0.0, 0.5, 1.0), (4950, 50))
    assert pristine.score_map == ScoreMap((0.0, 0.5, 1.0), (0.0, 0.5, 1.0), 0.5)
    assert pool.rates == with_domains["domains"][1]["rates"]
    assert contract.thresholds == pool.thresholds == Thresholds(Threshold(0.6, 0.05), Threshold(0.9, 0.01))
    assert contract.card == {key: value for key, value in CARD.items() if key != "format"}


def test_a_model_that_was_not_audited_has_no_card(with_domains: dict[str, Any]) -> None:
    """`{}` says so; a card that is missing is a fault."""
    assert parse(json.dumps(with_domains | {"card": {}})).card is None


def test_an_interval_may_miss_its_value_by_rounding(with_domains: dict[str, Any]) -> None:
    """Wilson's formula at a share of one gives 0.9999999999999999."""
    made = copy.deepcopy(with_domains)
    made["card"]["figures"][0] |= {"value": 1.0, "high": math.nextafter(1, 0)}
    assert parse(json.dumps(made)).card is not None


@pytest.mark.parametrize("change", WRONG_DOMAINS.values(), ids=WRONG_DOMAINS.keys())
def test_wrong_domains_are_refused(with_domains: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> None:
    """As everything is that the server does not understand."""
    spoiled = copy.deepcopy(with_domains)
    change(spoiled)
    with pytest.raises(ContractError):
        parse(json.dumps(spoiled))


WRONG_MODES = {
    "no modes": set_to("modes", value=None),
    "modes as a list": set_to("modes", value=["auto"]),
    "no mode auto": set_to("modes", "auto", value=None),
    "a mode that is not known": set_to("modes", "paranoid", value={"output": "logits_adv"}),
    "a mode without its output": set_to("modes", "robust", "output", value=None),
    "a mode that is no object": set_to("modes", "robust", value="logits_adv"),
    "two modes the wrong way round": set_to("modes", "robust", "output", value="logits_nat"),
    "no golden values of a mode": set_to("golden", "logits_adv", value=None),
    "golden values of a mode cut": set_to("golden", "logits_nat", "base64", value="AAAA"),
    "golden values of a mode of another shape": set_to(
        "golden", "logits_nat", value=tensor(np.zeros((3, 9), np.float32))
    ),
    "no tolerance of a mode": set_to("golden", "tolerance", "logits_adv", value=None),
    "a tolerance of a mode that accepts anything": set_to("golden", "tolerance", "logits_adv", value=100),
    "no mixing": set_to("mixing", value=None),
    "another mixing": set_to("mixing", "kind", value="averaged"),
    "a mixing without its limit": set_to("mixing", "limit", value=None),
    "a limit of a half": set_to("mixing", "limit", value=0.5),
    "a limit of zero": set_to("mixing", "limit", value=0),
    "a limit that is true": set_to("mixing", "limit", value=True),
    "a temperature of zero": set_to("mixing", "temperature", value=0),
    "a temperature that is no number": set_to("mixing", "temperature", value=float("nan")),
    "no precision": set_to("precision", value=None),
    "another precision": set_to("precision", value="float8"),
    "a precision that is no text": set_to("precision", value=["float32"]),
}


@pytest.fixture(scope="module")
def with_modes() -> dict[str, Any]:
    made = contract_of(graph(branches=branches()))
    schema_3()(made)
    return made


def test_a_contract_with_modes_is_read(with_modes: dict[str, Any]) -> None:
    """Which modes there are, in one order whoever wrote them, each with its golden values; mixing and precision."""
    turned = with_modes | {"modes": dict(reversed(with_modes["modes"].items()))}
    contract = parse(json.dumps(turned))
    assert contract.modes == ("auto", "robust", "natural")
    assert contract.outputs == {"logits": 10, "p_type": 2, "omega": CHANNELS, "logits_adv": 10, "logits_nat": 10}
    assert contract.golden.outputs.keys() == contract.golden.tolerance.keys() == contract.outputs.keys()
    assert contract.mixing == Mixing("bounded", BOUNDED["limit"], BOUNDED["temperature"])
    assert contract.precision == "float32"


def test_a_model_of_one_mode_may_have_a_contract_of_schema_3() -> None:
    """One whose branches no output tells apart, at another precision."""
    made = contract_of(graph())
    schema_3("auto", mixing={"kind": "norms"})(made)
    contract = parse(json.dumps(made | {"precision": "int8"}))
    assert (contract.modes, contract.mixing, contract.precision) == (("auto",), Mixing("norms"), "int8")


@pytest.mark.parametrize("schema", [1, 2])
def test_earlier_contracts_mean_mode_auto(document: dict[str, Any], with_domains: dict[str, Any], schema: int) -> None:
    """They were written before there were modes, and whatever they say of them is not read."""
    contract = parse(json.dumps({1: document, 2: with_domains}[schema] | {"modes": "every", "precision": "half"}))
    assert (contract.modes, contract.mixing, contract.precision) == (("auto",), Mixing("norms"), "float32")
    assert list(contract.outputs) == ["logits", "p_type", "omega"]


@pytest.mark.parametrize("change", WRONG_MODES.values(), ids=WRONG_MODES.keys())
def test_wrong_modes_are_refused(with_modes: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> None:
    """A mode that answers by another branch would be worse than none; each fault alone, the rest being right."""
    spoiled = copy.deepcopy(with_modes)
    change(spoiled)
    with pytest.raises(ContractError):
        parse(json.dumps(spoiled))


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_contract_is_refused(document: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> None:
    """A server that guesses would answer with wrong labels, pixels or thresholds."""
    spoiled = copy.deepcopy(document)
    change(spoiled)
    with pytest.raises(ContractError):
        parse(json.dumps(spoiled))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", b"\xff\xfe", pytest.param("[" * 100_000, id="nested")])
def test_what_is_no_document_is_refused(text: str | bytes) -> None:
    """A clear error, not a traceback."""
    with pytest.raises(ContractError):
        parse(text)

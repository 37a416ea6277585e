"""Every event is a Detection Finding of OCSF, by models of that schema that are not ours."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import orjson
import pytest
from py_ocsf_models import OCSF_VERSION
from py_ocsf_models.events.findings.detection_finding import DetectionFinding

from server.findings.finding import ACTIVITIES, KINDS, Activity, Finding, Image, Kind, Subject
from server.findings.ocsf import ATTACKS, SCHEMA_VERSION, document

IMAGE = Image("auto", "adversarial", 0.93, 0.77, 0.01, "pristine", True, 0.91, "abstain", "withheld", sha256="ab" * 32)


def finding(kind: Kind = "image", activity: Activity = "create", **changes: Any) -> Finding:
    model = ("", 0, "") if kind == "query-guard" else ("awnet", 4, "0" * 64)
    made = Finding(
        *("f" * 32, Subject(kind, "client", None, *model), activity, 1_800_000_000_123),
        *(1_800_000_000_000, 1_800_000_000_100, 7, 3, "first", "last", IMAGE if kind == "image" else None),
    )
    return dataclasses.replace(made, **changes)


def plain(value: Any) -> Any:
    """What a model holds, as JSON has it."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value.value if isinstance(value, enum.Enum) else value


@pytest.mark.parametrize("activity", ACTIVITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_event_is_one_of_the_schema_and_has_no_attribute_that_the_schema_lacks(
    kind: Kind, activity: Activity
) -> None:
    """The models pass over what they do not know: it would be missing from what they hold."""
    event = orjson.loads(orjson.dumps(document(finding(kind, activity))))
    held = DetectionFinding.model_validate(event).model_dump(exclude_unset=True)
    assert plain(held) == event
    assert event["metadata"]["version"] == SCHEMA_VERSION == OCSF_VERSION
    assert event["type_uid"] == 100 * event["class_uid"] + event["activity_id"]


@pytest.mark.parametrize("missing", ["finding_info", "metadata", "time", "severity_id", "activity_id", "type_uid"])
def test_an_event_without_what_the_schema_requires_is_found(missing: str) -> None:
    event = document(finding())
    del event[missing]
    with pytest.raises(ValueError, match=missing):
        DetectionFinding.model_validate(event)


def test_the_techniques_are_those_of_atlas() -> None:
    """Names and ids as MITRE ATLAS has them; a fault of the detector claims none."""
    said = {kind: [(sub or technique) for _, technique, sub in attacks] for kind, attacks in ATTACKS.items()}
    evasion = [("AML.T0015", "Evade AI Model"), ("AML.T0043", "Craft Adversarial Data")]
    assert said == {
        "image": evasion,
        "query-guard": [
            ("AML.T0040", "AI Model Inference API Access"),
            ("AML.T0043.001", "Black-Box Optimization"),
            ("AML.T0042", "Verify Attack"),
        ],
        "rate": evasion,
        "detector": [],
    }
    attacks = document(finding("query-guard"))["finding_info"]["attacks"]
    assert attacks[1]["sub_technique"]["src_url"] == "https://atlas.mitre.org/techniques/AML.T0043.001"


def test_one_flagged_image_is_no_alarm_and_a_raised_rate_is() -> None:
    """Thresholds flag natural images, too: whoever is woken by each of them soon reads none."""
    uncalibrated = dataclasses.replace(IMAGE, calibrated=False)
    suspicious = dataclasses.replace(IMAGE, verdict="suspicious")
    assert document(finding())["severity"] == "Medium"
    assert document(finding(image=uncalibrated))["severity"] == "Low"
    assert document(finding(image=suspicious))["severity"] == "Low"
    assert {document(finding(kind))["severity"] for kind in KINDS if kind != "image"} == {"High"}


def test_the_image_is_there_by_hash_and_scores_alone() -> None:
    event = document(finding(image=dataclasses.replace(IMAGE, data=b"pixels of the image")))
    assert b"pixels" not in orjson.dumps(event)
    assert event["unmapped"]["awnet"]["image"]["sha256"] == "ab" * 32 == event["observables"][0]["value"]
    assert event["confidence_score"] == 91

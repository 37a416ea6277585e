"""A finding as an OCSF Detection Finding (class 2004 of the Open Cybersecurity Schema Framework, 1.5.0).

Techniques are those of MITRE ATLAS. What OCSF has no attribute for stands under `unmapped.awnet`.
"""

from __future__ import annotations

import uuid
from typing import Any, Literal

from .. import __version__
from .finding import Activity, Finding, Kind

SCHEMA_VERSION = "1.5.0"
CLASS_UID = 2004
PRODUCT = "AW-Net"
LOG_NAME = "awnet-findings"
ACTIVITY_IDS: dict[Activity, tuple[int, str]] = {
    "create": (1, "Create"),
    "update": (2, "Update"),
    "close": (3, "Close"),
}
SEVERITIES = {2: "Low", 3: "Medium", 4: "High"}
NEW, SUSPICIOUS = 1, 4  # status_id, evidences.verdict_id
Mark = Literal["false_alarm", "confirmed"]
# A person's mark -> status_id, status and evidences.verdict_id.
MARKS: dict[Mark, tuple[int, str, int]] = {
    "false_alarm": (3, "Suppressed", 1),
    "confirmed": (2, "In Progress", 2),
}
HASH = 8  # observables.type_id

_ATLAS = "https://atlas.mitre.org"
_STAGING = ("AML.TA0001", "AI Attack Staging")
_ACCESS = ("AML.TA0000", "AI Model Access")
_IMPACT = ("AML.TA0011", "Impact")
_EVADE = (_IMPACT, ("AML.T0015", "Evade AI Model"), None)
_CRAFT = (_STAGING, ("AML.T0043", "Craft Adversarial Data"), None)
_BLACK_BOX = (_STAGING, ("AML.T0043", "Craft Adversarial Data"), ("AML.T0043.001", "Black-Box Optimization"))
_VERIFY = (_STAGING, ("AML.T0042", "Verify Attack"), None)
_API = (_ACCESS, ("AML.T0040", "AI Model Inference API Access"), None)
ATTACKS = {
    "image": (_EVADE, _CRAFT),
    "query-guard": (_API, _BLACK_BOX, _VERIFY),
    "rate": (_EVADE, _CRAFT),
    "detector": (),  # a fault as much as an attack: no technique is claimed
}
_TITLES: dict[Kind, str] = {
    "image": "Image over the detector's threshold",
    "query-guard": "Nearly the same image asked about too often",
    "rate": "More images flagged than the threshold stands for",
    "detector": "The detector missed a golden image",
}
# OCSF's kinds of analytics: 1 rule, 2 behavioural, 3 statistical, 4 learning.
_ANALYTICS: dict[Kind, tuple[int, str, str]] = {
    "image": (4, "Learning (ML/DL)", "AW-Net's type head against a calibrated threshold"),
    "query-guard": (2, "Behavioral", "Query guard"),
    "rate": (3, "Statistical", "Bernoulli CUSUM of flagged images"),
    "detector": (1, "Rule", "Golden probes"),
}


def document(finding: Finding) -> dict[str, Any]:
    """The event; `unmapped` comes last, where the journal adds its chain."""
    subject, image = finding.subject, finding.image
    activity_id, activity = ACTIVITY_IDS[finding.activity]
    severity = _severity(finding)
    analytic_id, analytic, analytic_name = _ANALYTICS[subject.kind]
    made: dict[str, Any] = {
        "activity_id": activity_id,
        "activity_name": activity,
        "category_uid": 2,
        "category_name": "Findings",
        "class_uid": CLASS_UID,
        "class_name": "Detection Finding",
        "type_uid": 100 * CLASS_UID + activity_id,
        "type_name": f"Detection Finding: {activity}",
        "time": finding.time,
        "start_time": finding.first_time,
        "end_time": finding.last_time,
        "duration": max(0, finding.last_time - finding.first_time),
        "count": finding.count,
        "severity_id": severity,
        "severity": SEVERITIES[severity],
        "status_id": NEW,
        "status": "New",
        "message": _message(finding),
        "metadata": {
            "version": SCHEMA_VERSION,
            "product": {"name": PRODUCT, "vendor_name": PRODUCT, "version": __version__},
            "uid": uuid.uuid4().hex,
            "correlation_uid": finding.id,
            "event_code": subject.kind,
            "log_name": LOG_NAME,
        },
        "finding_info": {
            "uid": finding.id,
            "title": _TITLES[subject.kind],
            "types": [subject.kind],
            "created_time": finding.first_time,
            "modified_time": finding.time,
            "first_seen_time": finding.first_time,
            "last_seen_time": finding.last_time,
            "analytic": {
                "name": analytic_name,
                "type": analytic,
                "type_id": analytic_id,
                "uid": f"awnet.{subject.kind}",
                "version": __version__,
            },
            "attacks": [_attack(*attack) for attack in ATTACKS[subject.kind]],
        },
    }
    if subject.model:
        made["resources"] = [
            {"type": "AI model", "name": subject.model, "version": str(subject.version), "uid": subject.sha256}
        ]
    about: dict[str, Any] = {
        "kind": subject.kind,
        "images": {"total": finding.count, "new": finding.new},
        "first_request_id": finding.first_request_id,
        "last_request_id": finding.last_request_id,
        "client": subject.client,
        "key": subject.key,
        "clients": finding.clients,
    }
    if image is not None:
        evidence: dict[str, Any] = {
            "sha256": image.sha256,
            "mode": image.mode,
            "verdict": image.verdict,
            "score": image.score,
            "threshold": image.threshold,
            "fpr": image.fpr,
            "domain": image.domain,
            "calibrated": image.calibrated,
            "probability": image.probability,
            "policy": image.policy,
            "decision": image.decision,
        }
        if image.shape is not None:
            evidence["shape"] = list(image.shape)
        if image.omega_drift is not None:
            evidence["omega_drift"] = {block: float(f"{value:.4g}") for block, value in image.omega_drift.items()}
        about["image"] = evidence
        about["scores"] = list(finding.scores)
        made["evidences"] = [{"name": "image with the highest score", "data": evidence, "verdict_id": SUSPICIOUS}]
        if image.probability is not None:
            made["confidence_score"] = round(100 * image.probability)
        if image.sha256 is not None:
            made["observables"] = [
                {"name": "evidences[0].data.sha256", "type": "Hash", "type_id": HASH, "value": image.sha256}
            ]
    made["unmapped"] = {"awnet": about}
    return made


def changed(event: dict[str, Any], activity: Activity, time: int, message: str) -> dict[str, Any]:
    """A further event of the same finding, with nothing new in it."""
    activity_id, activity_name = ACTIVITY_IDS[activity]
    about = event["unmapped"]["awnet"]
    return event | {
        "activity_id": activity_id,
        "activity_name": activity_name,
        "type_uid": 100 * CLASS_UID + activity_id,
        "type_name": f"Detection Finding: {activity_name}",
        "time": time,
        "message": message,
        "metadata": event["metadata"] | {"uid": uuid.uuid4().hex},
        "finding_info": event["finding_info"] | {"modified_time": time},
        "unmapped": {"awnet": about | {"images": about["images"] | {"new": 0}}},
    }


def marked(event: dict[str, Any], mark: Mark, comment: str, time: int) -> dict[str, Any]:
    """The event that a person has looked at the finding, whose last event this is."""
    status_id, status, verdict_id = MARKS[mark]
    made = changed(event, "update", time, f"marked {mark.replace('_', ' ')}")
    made |= {"status_id": status_id, "status": status, "comment": comment}
    if "evidences" in made:
        made["evidences"] = [evidence | {"verdict_id": verdict_id} for evidence in made["evidences"]]
    made["unmapped"] = {"awnet": made["unmapped"]["awnet"] | {"mark": mark}}
    return made


def _severity(finding: Finding) -> int:
    """One image over a threshold says little, since natural ones are, too; what is rare on natural traffic is high."""
    if finding.subject.kind != "image":
        return 4
    image = finding.image
    return 3 if image is not None and image.verdict == "adversarial" and image.calibrated else 2


def _message(finding: Finding) -> str:
    subject = finding.subject
    who = "several clients" if finding.clients > 1 else f"key {subject.key}" if subject.key else "one client"
    images = "1 image" if finding.count == 1 else f"{finding.count} images"
    model = f" by {subject.model} version {subject.version}" if subject.model else ""
    words = {
        "image": f"{images} of {who} flagged{model}",
        "query-guard": f"{images} of {who} are nearly the same",
        "rate": f"more images are flagged{model} than its threshold stands for: {images} since the alarm",
        "detector": f"golden images not answered as they must be{model}: {finding.count}",
    }[subject.kind]
    return f"{words}; {finding.detail}" if finding.detail else words


def _attack(
    tactic: tuple[str, str], technique: tuple[str, str], sub_technique: tuple[str, str] | None
) -> dict[str, dict[str, str]]:
    made = {
        "tactic": {"uid": tactic[0], "name": tactic[1], "src_url": f"{_ATLAS}/tactics/{tactic[0]}"},
        "technique": {"uid": technique[0], "name": technique[1], "src_url": f"{_ATLAS}/techniques/{technique[0]}"},
    }
    if sub_technique is not None:
        uid, name = sub_technique
        made["sub_technique"] = {"uid": uid, "name": name, "src_url": f"{_ATLAS}/techniques/{uid}"}
    return made

"""The committed results of the alerts' benchmarks: what they say for people is what they measured."""

from __future__ import annotations

import json
import math
from pathlib import Path

from benchmarks import alerts, false_alarms
from server.monitoring import ALARM_IMAGES, limit_for

RESULTS = Path(alerts.ROOT) / "benchmarks/results"


def test_the_pages_are_made_of_the_figures_beside_them() -> None:
    """No figure was typed by hand."""
    for name, module in (("alerts", alerts), ("false_alarms", false_alarms)):
        report = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
        assert (RESULTS / f"{name}.md").read_text("utf-8") == module.markdown(report)


def test_the_false_alarm_figures_are_those_of_the_limit_that_is_served() -> None:
    """A changed limit needs a new simulation."""
    for row in json.loads((RESULTS / "false_alarms.json").read_text("utf-8"))["deployed"]:
        assert math.isclose(row["limit"], limit_for(ALARM_IMAGES))
        assert row["images_between_alarms"] > ALARM_IMAGES


def test_the_timed_attack_was_told_to_somebody_and_taken_back() -> None:
    """Each attack alert went from the traffic to the webhook, and nothing fired before the attack."""
    report = json.loads((RESULTS / "alerts.json").read_text("utf-8"))
    for name in alerts.EXPECTED:
        events = report["seconds_since_the_attack_began"][name]
        assert 0 < events["firing"] <= events["webhook_firing"] < events["webhook_resolved"]
    assert not any("firing" in events for events in report["before_the_attack"].values())


def test_every_example_has_its_twin() -> None:
    clean, attacked = alerts.example_pictures()
    assert len(clean) == len(attacked) >= 10

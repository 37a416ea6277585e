"""The committed results of the alerts' benchmarks: what they say for people is what they measured."""

from __future__ import annotations

import json
import math
from pathlib import Path

from benchmarks.harness.report import bundled_checkpoint
from benchmarks.monitoring import alerts, false_alarms, prometheus, staged, uncalibrated
from deploy.grafana.panels import ANNOTATIONS, queries
from deploy.prometheus.cases import CASES
from server.monitoring import adaptive_cusum
from server.monitoring.cusum import ALARM_IMAGES, limit_for

RESULTS = Path(alerts.ROOT) / "benchmarks/results"


def test_the_pages_are_made_of_the_figures_beside_them() -> None:
    """No figure was typed by hand."""
    for name, module in (("alerts", staged), ("false_alarms", false_alarms), ("uncalibrated", uncalibrated)):
        report = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
        assert (RESULTS / f"{name}.md").read_text("utf-8") == module.markdown(report)


def test_the_report_of_prometheus_is_of_this_dashboard_and_these_rules() -> None:
    """Every query answered, every check without a finding. Made by `python -m benchmarks.monitoring.prometheus`."""
    given = json.loads((RESULTS / "prometheus.json").read_text("utf-8"))
    assert (RESULTS / "prometheus.md").read_text("utf-8") == prometheus.markdown(given)
    expressions = [query.expr for _, _, query in queries()] + [expr for _, expr, _, _ in ANNOTATIONS]
    assert [answer["expression"] for answer in given["answers"]] == expressions
    assert all(answer["points"] > 0 for answer in given["answers"])
    assert [(case["alert"], case["labels"]) for case in given["cases"][:-1]] == [(c.alert, c.labels) for c in CASES]
    assert {case["promtool"] for case in given["cases"]} == {"SUCCESS"}
    assert {check["exit"] for check in given["checks"]} == {0}


def test_the_false_alarm_figures_are_those_of_the_limit_that_is_served() -> None:
    """A changed limit needs a new simulation."""
    for row in json.loads((RESULTS / "false_alarms.json").read_text("utf-8"))["deployed"]:
        assert math.isclose(row["limit"], limit_for(ALARM_IMAGES))
        assert row["images_between_alarms"] > ALARM_IMAGES


def test_the_simulated_sites_are_left_alone_and_the_attackers_are_not() -> None:
    """Of today's limit. Albums of twenty are told of: what is measured may be worse than what is wished for."""
    report = json.loads((RESULTS / "uncalibrated.json").read_text("utf-8"))
    assert math.isclose(report["limit"], adaptive_cusum.ALBUM * limit_for(ALARM_IMAGES))
    assert all(row["alarms_flagged"] == 0 for row in report["constant"])
    assert all(row["alarms_share"] == 0 for row in report["constant"] if row["album"] <= 10)
    assert {(row["sites_flagged"], row["most_share"]) for row in report["switches"]} == {(0, 1)}
    *attacks, _, _, _ = report["attacks"]  # the last three, at each rate, are of the attacker whom nobody sees
    assert all(max(row["sites_flagged"], row["sites_share"]) == row["sites"] for row in attacks)


def test_the_timed_attack_was_told_to_somebody_and_taken_back() -> None:
    """Each attack alert went from the traffic to the webhook and back, and nothing fired before the attacks."""
    report = json.loads((RESULTS / "alerts.json").read_text("utf-8"))
    for name in alerts.EXPECTED:
        events = report["since_the_attack"][name]
        assert 0 < events["firing"] < events["webhook_firing"] + 1  # looked at a few times a second
        assert events["webhook_firing"] < events["resolved"] < events["webhook_resolved"] + 1
    first = report["phases"][staged.SMALL]["begins"]
    assert min(begins for _, state, begins, _ in report["states"] if state == "firing") > first


def test_the_timed_attack_was_made_with_the_model_that_is_served() -> None:
    """New weights or thresholds need a new run, `python -m benchmarks.monitoring.alerts`; another card does not."""
    report = json.loads((RESULTS / "alerts.json").read_text("utf-8"))
    assert report["checkpoint_sha256"] == bundled_checkpoint()


def test_both_attacks_are_where_the_report_looks_for_them() -> None:
    attacks = [n for n, phase in enumerate(alerts.PHASES) if phase.share]
    assert attacks == [staged.SMALL, staged.LARGE]


def test_every_example_has_its_twin() -> None:
    clean, attacked = alerts.example_images()
    assert len(clean) == len(attacked) >= 10

"""The rules of deploy/prometheus: valid, tested one by one, and every alert leads to a page that says what to do."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.prometheus.cases import CASES, HEALTHY, PREDICT, RULES, SPREAD, Case, judge, promtool
from server.monitoring.cusum import ALARM_IMAGES, Cusum, limit_for
from tests.requires import requires

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = ROOT / "docs/operations.md"

pytestmark = requires("prometheus")


def alerts() -> list[dict[str, Any]]:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text("utf-8"))["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def test_promtool_finds_no_fault_in_the_rules() -> None:
    """Syntax and lint, as Prometheus will read them."""
    done = subprocess.run(
        ["promtool", "check", "rules", "--lint=all", "--lint-fatal", *RULES], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}{'-fires' if case.firing else '-stays-quiet'}")
def test_each_alert_fires_for_its_reason_and_resolves(case: Case, tmp_path: Path) -> None:
    """Not before, not for less, and not for ever."""
    judge(case, tmp_path)


def test_the_first_burst_of_refusals_pages(tmp_path: Path) -> None:
    """All between two scrapes, and then none. Were the series not there at 0 before, nothing would have risen."""
    series = f'awnet_requests_total{{{PREDICT},code="503"}}'
    page = Case("AWNetErrorBudgetBurn", {series: "0+0x60 5000+0x60"}, quiet=(59,), firing=(64,), labels='burn="14.4"')
    judge(page, tmp_path)
    unseen = Case("AWNetErrorBudgetBurn", {series: "_x60 5000+0x60"}, quiet=(59, 64, 90), labels='burn="14.4"')
    judge(unseen, tmp_path)


def test_a_healthy_server_raises_no_alert(tmp_path: Path) -> None:
    """Ten hours, a reload and some bad requests included."""
    checks = [{"expr": "ALERTS", "eval_time": f"{minute}m", "exp_samples": []} for minute in range(20, 600, 20)]
    promtool(tmp_path, HEALTHY, checks)


def rules_of(cases: Sequence[Case]) -> set[tuple[str, str]]:
    """(alert, its burn): an alert that has several rules tells them apart by `burn`."""
    return {(case.alert, "".join(re.findall(r'burn="([^"]+)"', case.labels))) for case in cases}


def test_each_rule_has_a_case_before_it_fires_one_in_which_it_fires_and_one_in_which_it_resolves() -> None:
    """Counted, so that nobody adds a rule without its three. Not before: at rest, or pending where there is a `for`."""
    rules = [(rule["alert"], rule["labels"].get("burn", "")) for rule in alerts()]
    assert len(set(rules)) == len(rules) >= 17
    fires = [case for case in CASES if case.firing]
    not_before = [case for case in fires if min(case.quiet + case.pending) < min(case.firing)]
    resolves = [case for case in fires if max(case.quiet) > max(case.firing)]
    assert rules_of(fires) == set(rules)
    assert rules_of(not_before) == set(rules)
    assert rules_of(resolves) == set(rules)


def test_every_alert_leads_to_a_heading_that_exists() -> None:
    """Whoever is woken finds what to look at, and no heading speaks of an alert that is gone."""
    headings = re.findall(r"^### (AWNet\w+)$", OPERATIONS.read_text("utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted({rule["alert"] for rule in alerts()})
    for rule in alerts():
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_every_alert_says_how_urgent_it_is_and_what_happened() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
        assert rule["annotations"]["description"].endswith("."), rule["alert"]


def test_the_replicas_cusum_is_a_log_likelihood_ratio_of_the_servers_own_kind(tmp_path: Path) -> None:
    """The same images in one server give the same value, up to what rates blur at the edges of a minute."""
    minutes, images, flagged = 10, 600, 12  # of each replica
    alone = Cusum(0.01, limit_for(ALARM_IMAGES))
    alone.add(2 * minutes * images, 2 * minutes * flagged)
    expression = "model_version_verdict:awnet_replicas_cusum:max"
    near = f"abs({expression} - {alone.value}) < 0.02 * {alone.value}"
    checks = [{"expr": f"count({near})", "eval_time": "212m", "exp_samples": [{"labels": "{}", "value": 1}]}]
    promtool(tmp_path, HEALTHY | SPREAD, checks)

"""What a policy makes of an image: its verdict, and whether a threshold speaks for it."""

from __future__ import annotations

import pytest

from server.core.domains import Domain, Histogram, Threshold, Thresholds
from server.core.policy import DECISIONS, POLICIES, Decision, Policies, Policy, reason
from server.core.verdict import VERDICTS, Judgement, Verdict


def domain(suspicious: float = 0.4, adversarial: float = 0.8) -> Domain:
    thresholds = Thresholds(Threshold(suspicious, 0.05), Threshold(adversarial, 0.01))
    return Domain("pool", "", None, thresholds, 1, ("pristine",), Histogram((0.0, 1.0), (1,)))


def judged(verdict: Verdict, why: str | None = None, applied: Domain | None = None) -> Judgement:
    return Judgement(
        {"clean": 0.1, "suspicious": 0.6, "adversarial": 0.9}[verdict], verdict, applied or domain(), why, 0.5
    )


def decided(policies: Policies, policy: Policy, *judgements: Judgement) -> list[Decision]:
    found = policies.decide(policy, judgements)
    assert set(found) <= set(DECISIONS[policy])  # or its counter would not begin at 0
    return found


@pytest.mark.parametrize("policy", ["abstain", "reject", "observe"])
def test_a_verdict_is_withheld_from_the_one_that_the_setting_names(policy: Policy) -> None:
    """`observe` decides as the other two do, so that it says beforehand what they would do."""
    every = [judged(verdict) for verdict in VERDICTS]
    assert decided(Policies(), policy, *every) == ["answered", "answered", "withheld"]
    assert decided(Policies(at="suspicious"), policy, *every) == ["answered", "withheld", "withheld"]


def test_flag_withholds_nothing() -> None:
    every = [judged(verdict, why) for verdict in VERDICTS for why in (None, "resized")]
    assert set(decided(Policies(at="suspicious"), "flag", *every)) == {"answered"}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_an_image_that_no_threshold_speaks_for_is_decided_by_the_setting_and_never_silently(verdict: Verdict) -> None:
    """Whatever its verdict: that is a hint at best. The decision says that the detector was unsure."""
    image = judged(verdict, "few colours")
    assert decided(Policies(unsure="closed"), "reject", image) == ["withheld-unsure"]
    assert decided(Policies(unsure="open"), "reject", image) == ["answered-unsure"]
    assert Policies().unsure == "closed"


def test_a_threshold_that_no_score_exceeds_is_no_detector() -> None:
    """A domain whose threshold is 1 flags nothing, ever: its images must not pass as clean."""
    blind = judged("suspicious", applied=domain(0.4, 1.0))
    assert decided(Policies(), "abstain", blind) == ["withheld-unsure"]
    assert decided(Policies(unsure="open"), "abstain", blind) == ["answered-unsure"]
    assert decided(Policies(at="suspicious"), "abstain", blind) == ["withheld"]
    assert reason(blind, "withheld-unsure") == "no threshold speaks for it (none can be exceeded)"


def test_the_reason_tells_a_verdict_from_an_unsure_detector() -> None:
    assert reason(judged("adversarial"), "withheld") == "its verdict is adversarial"
    assert reason(judged("adversarial", "resized"), "withheld-unsure") == "no threshold speaks for it (resized)"


def test_a_callers_policy_goes_before_the_models_and_that_before_the_default() -> None:
    policies = Policies("abstain", {"strict": "reject"})
    assert [policies.of(name) for name in ("awnet", "strict")] == ["abstain", "reject"]
    for policy in POLICIES:
        assert policies.of("strict", policy) == policies.of("awnet", policy) == policy

"""A budget of minutes becomes numbers of images, and nothing weaker."""

from __future__ import annotations

from training.audit.plan import Cost, plan

COSTS = [Cost("clean", 0.001, 10_000, 500), Cost("worst", 0.5, 500, 50), Cost("late", 2.0, 200, 30)]


def test_everything_that_is_wanted_is_run_where_time_allows() -> None:
    chosen = plan(COSTS, 3600)
    assert chosen.images == {"clean": 10_000, "worst": 500, "late": 200}
    assert chosen.left_out == [] and chosen.total == 10 + 250 + 400


def test_a_smaller_budget_takes_the_same_share_of_everything_and_never_exceeds_itself() -> None:
    chosen = plan(COSTS, 330)
    assert 300 < chosen.total <= 330
    assert chosen.images["worst"] == 500 * chosen.images["late"] // 200 == 5 * chosen.images["late"] // 2


def test_what_would_say_too_little_is_left_out_by_name_the_least_important_first() -> None:
    """30 of `late` do not fit into a minute beside the others' least; the others share what there is."""
    chosen = plan(COSTS, 60)
    assert chosen.left_out == ["late"] and chosen.total <= 60
    assert chosen.images["worst"] >= 50 and chosen.images["clean"] >= 500


def test_the_first_group_stays_however_small_the_budget() -> None:
    assert plan(COSTS, 0.01).images == {"clean": 500}

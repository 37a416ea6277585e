"""A proposed threshold, and the bound on what a poisoner could have moved: against poisoners who try."""

from __future__ import annotations

import itertools
import random

import pytest

from awnet.command.findings import _scores
from awnet.command.proposal import propose, rank_of, with_poison, without_poison
from server.findings.reading import Found

PRESENT = 0.5


def drawn(seed: int, images: int) -> list[float]:
    """Scores of natural images of which many are over the present threshold."""
    rng = random.Random(seed)
    return [rng.betavariate(1, 3) for _ in range(images)]


def over(scores: list[float]) -> list[float]:
    return [score for score in scores if score > PRESENT]


def test_the_proposal_flags_the_share_that_was_asked_for_and_says_what_it_rests_on() -> None:
    scores = drawn(0, 2000)
    made = propose(2000, over(scores), [0.6, 0.95, 0.99, 0.999], 0.02)
    assert made.rank == rank_of(2000, 0.02) == 40
    assert made.score == sorted(scores)[-40]
    assert made.fpr[0] == 39 / 2000 and made.fpr[1] < 0.02 < made.fpr[2]
    assert made.fpr_before[0] == len(over(scores)) / 2000 > 0.02
    assert made.tpr is not None and made.tpr[0] == 0.75 and made.tpr[1] < 0.4 < 0.9 < made.tpr[2]
    assert propose(2000, over(scores), [], 0.02).tpr is None


def test_the_threshold_is_the_conformal_one() -> None:
    """On average further natural images exceed it as often as was asked for, and no more often."""
    exceeded = 0
    for seed in range(400):
        *scores, further = drawn(seed, 200)
        exceeded += further > propose(199, scores, [], 0.05).score
    assert exceeded / 400 <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


@pytest.mark.parametrize(
    ("images", "alarms", "rate", "said"),
    [
        (50, 5, 0.01, "it takes 99"),
        (1000, 5, 0.01, "the present threshold is not too low"),
        (3, 5, 0.5, "is of all that were judged"),
    ],
)
def test_nothing_is_proposed_where_nothing_is_known(images: int, alarms: int, rate: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        propose(images, alarms * [0.9], [], rate)


@pytest.mark.parametrize("poison", [1, 3, 9])
@pytest.mark.parametrize("seed", range(5))
def test_without_the_poison_the_threshold_is_no_lower_than_the_bound(seed: int, poison: int) -> None:
    """Whichever of the images were an attacker's: all highest, all lowest, any."""
    scores, rate = drawn(seed, 400), 0.05
    bound = without_poison(400, over(scores), rate, poison, PRESENT)
    assert bound <= propose(400, over(scores), [], rate).score
    rng = random.Random(seed)
    choices = [sorted(scores)[-poison:], sorted(scores)[:poison], *(rng.sample(scores, poison) for _ in range(50))]
    for chosen in choices:
        rest = list(scores)
        for one in chosen:
            rest.remove(one)
        true = sorted(rest, reverse=True)[rank_of(len(rest), rate) - 1]
        assert max(true, PRESENT) >= bound


@pytest.mark.parametrize("poison", [1, 5, 19, 20, 25])
@pytest.mark.parametrize("seed", range(5))
def test_by_further_poison_the_threshold_is_no_higher_than_the_bound(seed: int, poison: int) -> None:
    """Whatever scores the attacker has its images marked with; from its rate on, whatever it wants."""
    scores, rate = drawn(seed, 400), 0.05
    bound = with_poison(400, over(scores), rate, poison)
    rng = random.Random(seed)
    tried = [poison * [1.0], poison * [0.0], *([rng.random() for _ in range(poison)] for _ in range(50))]
    reached = []
    for chosen in tried:
        mixed = sorted([*scores, *chosen], reverse=True)
        reached.append(mixed[rank_of(len(mixed), rate) - 1])
    assert max(reached) == pytest.approx(bound)  # and the best of them reaches it
    assert (bound == 1.0) == (poison >= rank_of(400 + poison, rate))


def test_every_choice_of_a_small_sample_is_within_the_bound() -> None:
    scores = [0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9]
    for poison in (1, 2):
        bound = without_poison(8, scores, 0.4, poison, PRESENT)
        for kept in itertools.combinations(scores, 8 - poison):
            assert sorted(kept, reverse=True)[rank_of(8 - poison, 0.4) - 1] >= bound


def test_32_images_in_a_finding_of_others_do_not_move_the_bound_by_a_thousand() -> None:
    """Behind one address: a finding has 32 scores, and its other images count as the lowest of them."""
    present, rate, images = {"score": 0.5}, 0.01, 20_000
    honest = [0.5 + n / 10_000 for n in range(1, 1001)]
    poison = [0.999] * 32
    about = {"image": {"domain": "pristine"}, "scores": sorted(poison), "images": {"total": 1032}}
    shared = [Found({"unmapped": {"awnet": about}}, "false_alarm")]
    true = sorted(honest, reverse=True)[rank_of(images - 32, rate) - 1]
    counted, known = _scores(shared, "pristine", present), _scores(shared, "pristine", present, known=True)
    assert propose(images, counted, [], rate).score == 0.999 > true
    assert without_poison(images, counted, rate, 32, 0.5) > true  # these are scores that nobody has seen
    assert without_poison(images, known, rate, 32, 0.5) <= true

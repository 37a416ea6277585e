"""Which share of honest images is tolerated over the adversarial thresholds: hand-worked kinds in hand-made domains."""

from __future__ import annotations

import pytest
import torch

from domain.shares import wilson
from tests.training.evaluation.test_calibration import a_domain, of_colours
from training.evaluation.calibration import Sample
from training.evaluation.calibration_report import tolerance_table
from training.evaluation.tolerance import MOST_FLAGGED, chosen, compared, most_flagged, of_group, served, tolerant

scored = torch.linspace(0, 1, 101)[1:]  # 100 of them, 0.01 to 1
LEFT, RIGHT = (0.4, 0.6)  # shares of colours in the first and in the second domain
DOMAINS = [a_domain("first", 0.0, 0.5, (0.2, 0.3)), a_domain("last", 0.5, 1.0, (0.2, 0.3))]


def sample(scores: torch.Tensor, colours: float) -> Sample:
    return Sample(scores, of_colours([colours] * len(scores)))


def test_honest_kinds_raise_the_adversarial_threshold_of_their_domain() -> None:
    """Of the worst kind a twentieth stays over it; kinds elsewhere and too few images change nothing."""
    domains = [a_domain("few", 0.0, 0.5), a_domain("many", 0.5, 1.0, (0.2, 0.3)), a_domain("none", 2.0, 3.0)]
    kinds = {
        ("noise", 3): sample(scored, LEFT),
        ("blur", 1): Sample(scored / 10, of_colours([LEFT] * 50 + [RIGHT] * 50)),
        ("rare", 1): sample(torch.ones(29), RIGHT),
    }
    few, many, none = tolerant(domains, kinds, [0.05] * 3)
    assert few.thresholds[0.05] == 0.5 and few.thresholds[0.01] == pytest.approx(0.95)
    assert wilson(int((scored > few.thresholds[0.01]).sum()), 100)[0] == 0.05
    assert many == domains[1] and none == domains[2]


def test_each_domain_has_a_share_of_its_own_and_one_leaves_it_alone() -> None:
    kinds = {("noise", 1): sample(scored, LEFT), ("noise", 2): sample(scored, RIGHT)}
    first, last = tolerant(DOMAINS, kinds, [1.0, 0.1])
    assert first == DOMAINS[0] and last.thresholds[0.01] == pytest.approx(0.9)


def test_a_domain_takes_the_largest_share_that_judging_kinds_bear() -> None:
    """A judging kind that scores as the training kind does bears a tenth; one that is louder bears less, and only in
    its own domain."""
    training = {("noise", 1): sample(scored, LEFT), ("median", 1): sample(scored, RIGHT)}
    judging = {
        ("speckle_noise", 1): sample(scored, LEFT),
        ("palette", 1): sample((scored + 0.06).clamp(max=1.5), RIGHT),
    }
    shares = [0.01, 0.03, 0.05, 0.1, 1.0]
    found = chosen(DOMAINS, training, judging, shares)
    assert found == [0.1, 0.03]
    worst = most_flagged(judging, tolerant(DOMAINS, training, found))
    assert worst["adversarial"][0] <= MOST_FLAGGED and (worst["kind"], worst["strength"]) == ("speckle_noise", 1)
    assert chosen(DOMAINS, training, judging, [0.2]) == [0.2, 0.2]  # one share is no choice
    assert chosen(DOMAINS, training, judging, [0.2, 0.5]) == [0.2, 0.2]  # none is small enough: as strict as can be


def test_an_image_of_no_domain_is_served_the_last_ones_thresholds() -> None:
    domains = [DOMAINS[0], a_domain("last", 0.5, 1.0, (0.2, 0.5))]
    assert served(sample(scored, 7.0), domains)["adversarial"][0] == 0.5


def test_the_comparison_has_a_row_for_each_share_and_one_for_what_was_taken() -> None:
    """What is flagged of T0 grows with the share; pictures are judging kinds, pristine images are of neither group."""
    natural = {
        ("pristine", 0): sample(scored / 10, LEFT),
        ("gaussian_noise", 1): sample(scored, LEFT),
        ("speckle_noise", 2): sample(scored, LEFT),
        ("photographs", 0): sample(0.55 * scored, RIGHT),
    }
    assert set(of_group(natural, "judging")) == {("speckle_noise", 2), ("photographs", 0)}
    assert set(of_group(natural, "training")) == {("gaussian_noise", 1)}
    hostile = {name: sample(scored + 0.105, LEFT) for name in ("T0 s 8/255", "T0 s 8/255, then contrast", "T2 8/255")}
    rows = compared(DOMAINS, natural, hostile, [0.1, 0.05], [0.1, 0.05])
    assert [row["tolerated"] for row in rows] == [[0.05, 0.05], [0.1, 0.1], [0.1, 0.05]]
    assert [list(row["t0"]) for row in rows] == [["T0 s 8/255"]] * 3
    few, many, taken = (row["t0"]["T0 s 8/255"]["adversarial"][0] for row in rows)
    assert few < many == taken
    report = {"tolerances": rows, "domains": [{"name": "first"}, {"name": "last"}]}
    table = tolerance_table(report).splitlines()
    assert "of first, last. The last row" in table[0]
    assert table[-1] == (
        "| 10, 5 | 0.900, 0.300 | 0.0 / 0.0 | 10.0 / 80.0 (gaussian_noise 1) | 46.0 / 64.0 (photographs 0) "
        "| 21.0 / 91.0 |"
    )

"""Which thresholds are applied to an image, and what a score means as a probability."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from server.core.contract import parse
from server.core.domains import Domain, ScoreMap, locate
from server.core.images import Traits
from server.core.verdict import judge_image
from tests.server.schema_2 import schema_2
from tests.server.tiny import contract_of, graph


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return contract_of(graph())


@pytest.fixture(scope="module")
def domains(document: dict[str, Any]) -> tuple[Domain, ...]:
    made = json.loads(json.dumps(document))
    schema_2()(made)
    return parse(json.dumps(made)).domains


def of(colours: float, **more: Any) -> Traits:
    return Traits({"colours": colours}, **more)


@pytest.mark.parametrize(
    ("traits", "applied", "why"),
    [
        (of(0.9), "pristine", None),
        (of(0.3), "pristine", None),  # both ends belong to a range
        (of(0.29), "pool", None),
        (of(0.02), "pool", None),
        (of(0.01), "pool", "few colours"),
        (of(0.9, unusual="colour palette"), "pool", "colour palette"),
        (of(0.9, unusual="1-bit image", altered="resized"), "pool", "1-bit image"),
        (of(0.9, altered="resized"), "pristine", None),
        (of(0.9, altered="lossy"), "pristine", None),
    ],
)
def test_the_first_domain_that_holds_an_image_judges_it(
    domains: tuple[Domain, ...], traits: Traits, applied: str, why: str | None
) -> None:
    """By its pixels, however they came to be; none but the last one judges what lies in none."""
    found, reason = locate(domains, traits)
    assert (found.name, reason) == (applied, why)


@pytest.mark.parametrize(
    ("traits", "why"),
    [
        (of(0.001), None),
        (of(0.001, altered="resized"), "resized"),
        (of(0.9, altered="lossy"), "lossy"),
        (of(0.9, unusual="colour palette", altered="resized"), "colour palette"),
    ],
)
def test_a_contract_without_domains_knows_images_by_their_files(
    document: dict[str, Any], traits: Traits, why: str | None
) -> None:
    """Schema 1 has no ranges: whatever no filter and no codec has changed is calibrated, but for few colours."""
    [only] = parse(json.dumps(document)).domains
    assert locate([only], traits) == (only, why)


def test_the_verdict_follows_the_domain(domains: tuple[Domain, ...]) -> None:
    """One score, three verdicts: an image of the pool is judged by the pool."""
    verdicts = [judge_image(0.55, of(colours), domains, 0.01).verdict for colours in (0.9, 0.2, 0.001)]
    assert verdicts == ["adversarial", "clean", "clean"]
    inside, outside = (judge_image(0.95, of(colours), domains, 0.01) for colours in (0.2, 0.001))
    assert (inside.verdict, inside.calibrated, inside.applied.name) == ("adversarial", True, "pool")
    assert (outside.verdict, outside.calibrated, outside.why) == ("adversarial", False, "few colours")


def test_probability_at_the_maps_own_prior_is_the_map() -> None:
    """Linear between its points, level beyond them."""
    found = ScoreMap((0.2, 0.6, 0.8), (0.1, 0.5, 0.9), 0.5)
    for score, probability in {0: 0.1, 0.2: 0.1, 0.4: 0.3, 0.6: 0.5, 0.7: 0.7, 0.8: 0.9, 1: 0.9}.items():
        assert found.probability(score, 0.5) == pytest.approx(probability)


def test_probability_at_another_prior_is_bayes_rule() -> None:
    """Two normal densities of which everything is known in closed form: P(attacked) = q f1 / (q f1 + (1 - q) f0)."""
    scores = np.linspace(0, 1, 2001)
    attacked, natural = (np.exp(-(((scores - mean) / 0.2) ** 2) / 2) for mean in (0.7, 0.3))

    def exact(prior: float) -> np.ndarray:
        return prior * attacked / (prior * attacked + (1 - prior) * natural)

    for own in (0.5, 0.2):
        made = ScoreMap(tuple(scores.tolist()), tuple(exact(own).tolist()), own)
        for prior in (0.5, 0.01, 0.9):
            got = [made.probability(score, prior) for score in scores.tolist()]
            np.testing.assert_allclose(got, exact(prior), rtol=1e-9)
    # The odds at 0.7 are e^2 at even odds, e^2 / 99 at one in a hundred.
    even = ScoreMap(tuple(scores.tolist()), tuple(exact(0.5).tolist()), 0.5)
    assert even.probability(0.7, 0.5) == pytest.approx(np.e**2 / (1 + np.e**2))
    assert even.probability(0.7, 0.01) == pytest.approx(np.e**2 / (99 + np.e**2))


@pytest.mark.parametrize("prior", [5e-324, 1e-300, 1e-6, 0.01, 0.5, 1 - 1e-6])
def test_probability_never_falls_where_the_score_rises(prior: float) -> None:
    """Steps, levels and certainty included; it stays in [0, 1] and is never undefined."""
    made = ScoreMap((0.0, 0.1, 0.100001, 0.5, 1.0), (0.0, 0.0, 0.4, 0.4, 1.0), 0.5)
    found = [made.probability(score, prior) for score in np.linspace(-0.1, 1.1, 1000).tolist()]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0.0, 1.0)

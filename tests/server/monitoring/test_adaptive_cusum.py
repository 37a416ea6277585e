"""Uncalibrated images against their own past: whom it leaves alone, whom it tells, and what it never learns."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.monitoring.uncalibrated import DAY, FLAGGED, HOUR, LIMIT, Clock, Site
from server.core.contract import Contract, parse
from server.core.engine import Model
from server.core.verdict import Judgement, Verdict
from server.monitoring import adaptive_cusum
from server.monitoring.adaptive_cusum import OF, AdaptiveCusum, Uncalibrated
from server.monitoring.detection import FLAGS, Monitor, Watch
from server.monitoring.exposition import snapshot
from server.monitoring.metrics import Metrics
from server.workers.metrics_merge import Totals
from tests.server.tiny import CHANNELS, contract_of, graph


@pytest.mark.parametrize("flagged", [0.05, 0.3, 0.6, 0.75, 0.9, 0.94, 0.95, 0.96, 0.99, 1.0])
def test_a_constant_share_of_flagged_images_is_no_alarm_however_large(flagged: float) -> None:
    """Three days of a site whose users send palette images, ten times as many by day as by night."""
    site = Site(10, 0.5, flagged, rhythm=0.82)
    site.run(3 * DAY)
    assert site.events == []
    usual = site.watched.state("suspicious").usual
    assert usual == pytest.approx(flagged, abs=0.01)


@pytest.mark.parametrize("uncalibrated", [0.02, 0.5, 1.0])
def test_neither_is_one_whose_users_send_albums(uncalibrated: float) -> None:
    """Ten palette images in a row are one user."""
    site = Site(2, uncalibrated, flagged=0.88, album=10)
    site.run(DAY)
    assert site.events == []


@pytest.mark.parametrize("rate", [0.1, 1.0, 50.0])
@pytest.mark.parametrize(
    ("before", "after"), [((0.0, 0.0), (0.9, 0.9)), ((0.02, 0.2), (0.9, 0.9)), ((0.3, 0.2), (1, 0.6))]
)
def test_a_site_that_switches_is_one_notice_that_ends_and_no_page(
    before: tuple[float, float], after: tuple[float, float], rate: float
) -> None:
    """However busy it is, and whatever its few uncalibrated images were before."""
    site = Site(rate, *before)
    site.run(max(DAY / 4, 3_000 / rate / max(before[0], 0.1)))
    assert site.events == []
    site.uncalibrated, site.flagged = after
    switched = site.clock.now
    site.run(DAY)
    assert site.raised(*FLAGGED) == []
    [at] = site.raised("uncalibrated")
    assert at - switched < 200 / rate + 60
    [ended] = [event.seconds for event in site.events if not event.raised]
    assert ended - at <= adaptive_cusum.HOLD_SECONDS + 60


def test_an_attacker_among_as_many_uncalibrated_images_as_usual_is_seen() -> None:
    """A tenth of the images is flagged at 60 %; then half of that tenth is attacked. No share moves but this one."""
    for usual, attacked in ((0.6, 0.5), (0.9, 0.8)):  # where nearly all are flagged anyway there is less to see
        site = Site(10, 0.1, usual)
        site.run(DAY)
        site.flagged = (1 - attacked) * usual + attacked * 0.99
        site.run(2 * HOUR)
        assert site.raised(*FLAGGED)
        assert not site.raised("uncalibrated")


def test_an_attacker_who_brings_uncalibrated_images_is_seen() -> None:
    """5 % of the images more than the usual 2 % are enough, flagged or not."""
    site = Site(uncalibrated=0.02, flagged=0.9)
    site.run(DAY)
    site.uncalibrated, site.flagged = 0.07, 0.95
    site.run(HOUR)
    assert len(site.raised("uncalibrated")) == 1


def test_what_raised_the_alarm_does_not_become_usual_if_it_ends() -> None:
    """The same attack an hour later is seen as soon."""
    site = Site(rate=20, uncalibrated=0.1, flagged=0.3)
    site.run(DAY)
    usual = site.watched.state("suspicious").usual
    for _ in range(3):
        site.flagged = 0.8
        site.run(HOUR / 6)
        assert site.watched.state("suspicious").raised
        site.flagged = 0.3
        site.run(HOUR)
        assert not site.watched.state("suspicious").raised
    assert len(site.raised("suspicious")) == 3
    assert site.watched.state("suspicious").usual == pytest.approx(usual, abs=0.02)


def test_an_alarm_ends_within_an_hour_although_no_image_follows() -> None:
    """The metric is read when nothing is sent, too: the alarm must not stay until the site's next visitor."""
    site = Site(rate=20, uncalibrated=0.1, flagged=0.3)
    site.run(DAY / 4)
    site.flagged = 0.8
    site.run(HOUR / 6)
    assert site.watched.state("suspicious").raised
    site.clock.now += adaptive_cusum.HOLD_SECONDS
    assert not site.watched.state("suspicious").raised


def test_a_flood_moves_what_is_usual_no_faster_than_a_few_images_do() -> None:
    """Who stays just below what is seen needs days, however many images are sent."""
    learnt = []
    for rate in (2.0, 200.0):
        site = Site(rate=rate, uncalibrated=0.5, flagged=0.2)
        site.run(DAY)
        site.flagged = 0.26
        site.run(DAY / 4)
        assert site.events == []
        learnt.append(site.watched.state("suspicious").usual)
    assert learnt[0] == pytest.approx(learnt[1], abs=0.01)
    assert learnt[1] is not None and learnt[1] < 0.225


def test_nothing_is_said_before_there_is_enough_to_learn_from() -> None:
    """Neither many images in a minute nor an hour of a few."""
    clock = Clock()
    cusum = AdaptiveCusum(LIMIT, 0.05, clock)
    cusum.add(10_000, 100)
    cusum.add(10_000, 9_000)
    assert cusum.usual is None and cusum.value == 0 and not cusum.raised
    clock.now = adaptive_cusum.LEARN_SECONDS
    cusum.add(100, 50)
    assert cusum.usual == pytest.approx(9_150 / 20_100)
    cusum = AdaptiveCusum(LIMIT, 0.05, clock)
    clock.now += 10 * adaptive_cusum.LEARN_SECONDS
    cusum.add(adaptive_cusum.MIN_IMAGES - 1, 0)
    assert cusum.usual is None


def test_a_reload_is_no_alarm(contract: Contract) -> None:
    """A new version judges by thresholds of its own: what is usual of it is learnt, not taken over."""
    monitor = Monitor()
    for sha256 in ("a" * 64, "b" * 64):
        watch = monitor.of(Model("awnet", 1, sha256, contract))
        for _ in range(600):
            answer(watch, ["adversarial"], [False])
        assert all(watch.uncalibrated.state(of)[1:] == (False, 0, None) for of in OF)


@pytest.fixture(scope="module")
def contract() -> Contract:
    return parse(json.dumps(contract_of(graph())))


def answer(watch: Watch, verdicts: list[Verdict], calibrated: list[bool]) -> None:
    [domain, *_] = watch.model.contract.domains
    why = [None if counts else "colour palette" for counts in calibrated]
    judgements = [Judgement(0.5, *given, None) for given in zip(verdicts, [domain] * len(why), why, strict=True)]
    watch.answered(judgements, np.zeros((len(verdicts), CHANNELS), np.float32))


def test_several_workers_are_one_site(contract: Contract) -> None:
    """Two workers see half of the images each; added up they say what one that sees all would say."""
    clock, model = Clock(), Model("awnet", 1, "0" * 64, contract)
    single = Uncalibrated(LIMIT, clock)
    totals, monitors = Totals(clock), [Monitor(), Monitor()]
    metrics = [Metrics(monitor, 1) for monitor in monitors]
    rng = np.random.default_rng(0)
    raised: list[bool] = []
    for second in range(5_000):
        flagged = 0.3 if second < 4_500 else 0.95
        for monitor in monitors:
            others = rng.random(4) < 0.25
            verdicts: list[Verdict] = ["adversarial" if hit else "clean" for hit in rng.random(4) < flagged]
            answer(monitor.of(model), verdicts, (~others).tolist())
            hits = sum(v == "adversarial" for v, o in zip(verdicts, others, strict=True) if o)
            single.add(4, int(others.sum()), hits, hits)
            if second % 10 == 0:
                number = monitors.index(monitor)
                totals.update(number, snapshot(metrics[number].registry, metrics[number].modes, monitor))
        clock.now += 1
        if second % 500 == 0:
            raised.append(merged(totals, "awnet_uncalibrated_cusum_raised")["adversarial"] == 1)
    assert raised == [False] * 10
    assert merged(totals, "awnet_uncalibrated_cusum_raised") == {"uncalibrated": 0, "suspicious": 1, "adversarial": 1}
    assert merged(totals, "awnet_uncalibrated_cusum_alarms_total")["adversarial"] == 1
    assert single.state("adversarial").raised
    usual = merged(totals, "awnet_uncalibrated_usual_ratio")
    assert usual["adversarial"] == pytest.approx(single.state("adversarial").usual, abs=0.02)
    assert usual["uncalibrated"] == pytest.approx(0.25, abs=0.02)
    before = merged(totals, "awnet_uncalibrated_cusum_ratio")
    totals.leave(0)
    assert merged(totals, "awnet_uncalibrated_cusum_ratio") == before


def merged(totals: Totals, name: str) -> dict[str, float]:
    """of -> value."""
    samples = [sample for family in totals.total().families for sample in family.samples if sample.name == name]
    return {sample.labels["of"]: sample.value for sample in samples}


def test_each_image_counts_on_one_side_only(contract: Contract) -> None:
    """Calibrated ones in today's CUSUM, the others in their own; all of them in the share."""
    watch = Watch(Model("awnet", 1, "0" * 64, contract))
    answer(watch, ["adversarial", "suspicious", "clean"], [True, False, False])
    assert {key: count for key, count in watch.images.items() if count} == {
        (True, "adversarial"): 1,
        (False, "suspicious"): 1,
        (False, "clean"): 1,
    }
    assert [watch.cusums[flag].flagged for flag in FLAGS] == [1, 1]
    assert watch.reasons == {"colour palette": 2}
    monitor = Monitor()
    answer(monitor.of(watch.model), ["adversarial", "suspicious", "clean"], [True, False, False])
    [row] = monitor.uncalibrated_counts()
    assert row[4:] == (3, 2, 1, 0)

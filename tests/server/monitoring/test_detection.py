"""What is made of the verdicts: CUSUM, drift, golden probes, the list of clients."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.monitoring.false_alarms import counted, images_between_alarms, images_until_alarm
from server.core.contract import Contract, parse
from server.core.domains import Domain, Histogram, Threshold, Thresholds
from server.core.engine import Model, Signals, Terms
from server.core.images import EncodedImage, ImageInput
from server.core.modes import LOGITS, Mode
from server.core.verdict import Judgement, Verdict, judge
from server.errors import EngineFault
from server.monitoring.clients import TopClients
from server.monitoring.cusum import ALARM_IMAGES, Cusum, limit_for
from server.monitoring.detection import FLAGS, MAX_WATCHES, OMEGA_EVERY, Monitor, Watch
from server.monitoring.detection_metrics import report
from server.monitoring.exposition import Counted, counted_by_all, snapshot
from server.monitoring.golden_probe import GoldenProbes, golden_probes
from server.monitoring.metrics import Metrics
from server.monitoring.statistics import OmegaDrift, ScoreDrift, score_bins
from server.workers.metrics_merge import Totals
from tests.server.schema_2 import schema_2
from tests.server.tiny import CHANNELS, contract_of, graph

THRESHOLDS = Thresholds(Threshold(0.003, 0.05), Threshold(0.006, 0.01))
# Like the bundled model's: nearly all of clean data in the first of fifty bins.
HISTOGRAM = Histogram(tuple(n / 50 for n in range(51)), (4990, 4, 0, 2, *[0] * 5, 2, 1, *[0] * 20, 1, *[0] * 18))
DOMAIN = Domain("pristine", "as they are", None, THRESHOLDS, 5000, ("pristine",), HISTOGRAM)


@pytest.fixture(scope="module")
def contract() -> Contract:
    return parse(json.dumps(contract_of(graph())))


@pytest.fixture
def model(contract: Contract) -> Model:
    return Model("awnet", 1, "0" * 64, contract)


def judged(verdict: Verdict, score: float, why: str | None = None, domain: Domain = DOMAIN) -> Judgement:
    return Judgement(score, verdict, domain, why, None)


def clean_scores(count: int, seed: int = 0) -> list[float]:
    """Scores whose quantiles are those of DOMAIN."""
    rng = np.random.default_rng(seed)
    bands = rng.choice(4, count, p=[0.95, 0.04, 0.008, 0.002])
    low, high = np.array([0, 0.003, 0.006, 0.02]), np.array([0.003, 0.006, 0.02, 1])
    return (low[bands] + (high - low)[bands] * (1 - rng.random(count))).tolist()


@pytest.mark.parametrize("target", [0.05, 0.01])
def test_false_alarms_are_rarer_than_promised(target: float) -> None:
    """At a limit where they can be counted: at most one in as many images as the limit was made for."""
    images, promised = 1_000_000, 1_000
    alarms = counted(target, limit_for(promised), images, seed=3)
    assert 0 < alarms <= images / promised


@pytest.mark.parametrize("target", [0.05, 0.01])
def test_false_alarms_at_the_servers_own_limit_are_as_rare_as_documented(target: float) -> None:
    """Less than one in 30 days at 100 images a second, found by weighing; the weighing agrees with counting."""
    mean, error = images_between_alarms(target, limit_for(ALARM_IMAGES), excursions=20_000)
    assert error < 0.1
    assert mean * (1 - 4 * error) > ALARM_IMAGES
    sampled, error = images_between_alarms(target, limit_for(100), excursions=20_000)
    counted_mean = 1_000_000 / counted(target, limit_for(100), 1_000_000, seed=4)
    assert counted_mean == pytest.approx(sampled, rel=0.35)


def test_an_attack_on_a_tenth_of_the_images_is_seen_within_five_hundred() -> None:
    """The price of few false alarms is this delay."""
    needed = images_until_alarm(0.01, limit_for(ALARM_IMAGES), flagged=0.01 + 0.1 * 0.96)
    assert np.quantile(needed, 0.95) < 500


def test_the_alarm_is_raised_at_the_limit_itself() -> None:
    """Not only above it."""
    step, _ = Cusum(0.05, 1.0).steps
    cusum = Cusum(0.05, step)
    cusum.add(1, True)
    assert cusum.value == step and cusum.raised


def test_the_alarm_ends_after_the_attack_and_counts_once() -> None:
    """However long the attack was: the statistic has a ceiling."""
    cusum = Cusum(0.05, limit_for(ALARM_IMAGES))
    for _ in range(100_000):
        cusum.add(1, True)
    assert cusum.raised
    assert cusum.alarms == 1
    rng = random.Random(1)
    for _ in range(2_000):
        cusum.add(1, rng.random() < 0.05)
    assert not cusum.raised
    assert cusum.alarms == 1


@pytest.mark.parametrize(("target", "rate"), [(0, 0.5), (0.5, 0.4), (0.5, 1.0)])
def test_a_cusum_of_impossible_rates_is_refused(target: float, rate: float) -> None:
    with pytest.raises(ValueError, match="target"):
        Cusum(target, 5, rate)


def test_score_bins_split_the_first_bin_at_the_thresholds_and_merge_the_empty_ones() -> None:
    """Even bins would hide the whole clean distribution in one of them."""
    edges, shares = score_bins(DOMAIN)
    assert edges == [0.003, 0.006, 0.02, math.inf]
    assert shares == pytest.approx([0.95, 0.04, 0.008, 0.002])


def test_clean_scores_do_not_drift_and_shifted_ones_do() -> None:
    """A shift below the first threshold's bin edge is invisible by design; one over it is not."""
    drift = ScoreDrift(DOMAIN)
    for score in clean_scores(20_000):
        drift.add(score)
    assert drift.value < 0.02
    assert 4_000 < drift.images < 7_000
    for score in clean_scores(2_000, seed=1):
        drift.add(score * 2.5)
    assert drift.value > 0.25
    for score in clean_scores(20_000, seed=2):
        drift.add(score)
    assert drift.value < 0.02


def test_score_drift_neither_overflows_nor_forgets_its_scale() -> None:
    """Weights grow without end; they are brought down in time."""
    drift = ScoreDrift(DOMAIN, half_life=10)
    for score in clean_scores(20_000):
        drift.add(score)
    assert math.isfinite(drift.value)
    assert drift.images == pytest.approx(2 * 10 / math.log(2), rel=0.01)


def test_omega_drift_is_the_shift_in_clean_deviations(contract: Contract) -> None:
    """Block by block: one block moved by two deviations reads two there and nothing elsewhere."""
    rng = np.random.default_rng(0)
    drift = OmegaDrift(contract)
    for _ in range(4_000):
        drift.add(rng.standard_normal(CHANNELS).astype(np.float32))
    assert set(drift.values()) == {"blocks.0", "blocks.1"}
    assert max(drift.values().values()) < 0.15
    shift = np.array([0] * 8 + [2] * 2, np.float32)
    for _ in range(4_000):
        drift.add(rng.standard_normal(CHANNELS).astype(np.float32) + shift)
    values = drift.values()
    assert values["blocks.0"] < 0.15
    assert values["blocks.1"] == pytest.approx(2, abs=0.15)


def test_nothing_is_claimed_before_the_first_image(model: Model) -> None:
    watch = Watch(model)
    assert watch.scores.value == watch.scores.images == watch.omega.images == 0
    assert set(watch.omega.values().values()) == {0.0}
    assert math.isnan(watch.detection)


def test_uncalibrated_images_do_not_raise_the_alarm(model: Model) -> None:
    """The targets say nothing of a scaled or lossy image; it is counted apart."""
    watch = Watch(model)
    omega = np.zeros((1, CHANNELS), np.float32)
    for _ in range(200):
        watch.answered([judged("adversarial", 0.99, "resized")], omega)
    assert (watch.count(calibrated=True), watch.count(calibrated=False)) == (0, 200)
    assert all(watch.cusums[flag].value == 0 for flag in FLAGS)
    for _ in range(200):
        watch.answered([judged("adversarial", 0.99)], omega)
    assert all(watch.cusums[flag].alarms == 1 for flag in FLAGS)


def test_the_scores_of_the_first_domain_alone_are_held_to_its_reference() -> None:
    """Images of a wider domain have other scores; the CUSUMs take all, for their rates are the same."""
    document = contract_of(graph())
    schema_2()(document)
    contract = parse(json.dumps(document))
    watch = Watch(Model("awnet", 1, "0" * 64, contract))
    for domain in contract.domains:
        for _ in range(10):
            watch.answered([judged("clean", 0.1, domain=domain)], np.zeros((1, CHANNELS), np.float32))
    assert watch.scores.images == pytest.approx(10, abs=0.1)
    assert (watch.count(calibrated=True), watch.count(calibrated=False)) == (20, 0)
    assert [cusum.target for cusum in watch.cusums.values()] == [0.05, 0.01]


def test_suspicious_images_count_for_their_own_threshold_only(model: Model) -> None:
    """Adversarial ones are over both."""
    watch = Watch(model)
    for _ in range(500):
        watch.answered([judged("suspicious", 0.5)], np.zeros((1, CHANNELS), np.float32))
    assert watch.cusums["suspicious"].alarms == 1
    assert watch.cusums["adversarial"].alarms == 0


def test_the_work_for_an_image_does_not_grow_and_is_small(model: Model) -> None:
    """It stands in the way of every answer: a millisecond's hundredth is the most that it may take on average."""
    watch = Watch(model)
    omega, one = np.zeros((1, CHANNELS), np.float32), [judged("clean", 0.1)]

    def microseconds() -> float:
        started = time.process_time()
        for _ in range(5_000):
            watch.answered(one, omega)
        return (time.process_time() - started) / 5_000 * 1e6

    first = min(microseconds() for _ in range(3))
    last = min(microseconds() for _ in range(3))
    assert first < 20
    assert last < 3 * first


def test_omega_is_sampled(model: Model) -> None:
    """One request in eight; a request of several images gives their mean."""
    watch = Watch(model)
    rows = np.stack([np.zeros(CHANNELS), np.full(CHANNELS, 2)]).astype(np.float32)
    for _ in range(OMEGA_EVERY):
        watch.answered([judged("clean", 0.1)] * 2, rows)
    assert watch.omega.images == pytest.approx(1)
    assert watch.omega.values()["blocks.0"] == pytest.approx(1, abs=1e-5)


def test_omega_of_images_that_the_reference_does_not_speak_of_is_left_out(model: Model) -> None:
    """A site whose users send palette images would be told of a shift for ever."""
    watch = Watch(model)
    rows = np.stack([np.full(CHANNELS, 9), np.zeros(CHANNELS)]).astype(np.float32)
    for _ in range(2 * OMEGA_EVERY):
        watch.answered([judged("adversarial", 0.9, "colour palette"), judged("clean", 0.1)], rows)
    for _ in range(OMEGA_EVERY):
        watch.answered([judged("adversarial", 0.9, "colour palette")], rows[:1])
    assert watch.omega.images == pytest.approx(2, abs=0.01)
    assert watch.omega.values()["blocks.0"] == pytest.approx(0, abs=1e-5)


def test_a_new_file_behind_a_version_starts_a_new_watch(contract: Contract) -> None:
    """Its thresholds are other ones; and however many versions come, memory stays bounded."""
    monitor = Monitor()
    first = monitor.of(Model("awnet", 1, "a", contract))
    assert monitor.of(Model("awnet", 1, "a", contract)) is first
    assert monitor.of(Model("awnet", 1, "b", contract)) is not first
    for n in range(100):
        monitor.of(Model("awnet", n, "c", contract))
    assert len(list(monitor)) == MAX_WATCHES
    monitor.closed(Model("awnet", 99, "c", contract))
    assert len(list(monitor)) == MAX_WATCHES - 1


def test_the_heavy_client_is_found_among_many_in_bounded_memory() -> None:
    """One that sends more than its share is in the list, and its true count is bracketed."""
    clients = TopClients(max_clients=32)
    rng = random.Random(0)
    sent = 0
    for _ in range(50_000):
        if rng.random() < 0.1:
            clients.flagged("203.0.113.9", now=0)
            sent += 1
        else:
            clients.flagged(f"198.51.100.{rng.randrange(10_000)}", now=0)
    assert len(clients) == 32
    first = clients.top()[0]
    assert first.name == clients.name("203.0.113.9")
    assert first.flagged - first.max_overcount <= sent <= first.flagged
    assert clients.largest_share == pytest.approx(0.1, abs=0.04)


def test_the_list_agrees_with_plain_counting_where_there_is_room() -> None:
    clients = TopClients(max_clients=64)
    truth = dict.fromkeys(range(40), 0)
    rng = random.Random(2)
    for _ in range(5_000):
        client = int(rng.triangular(0, 40, 0))
        truth[client] += 1
        clients.flagged(str(client), now=0)
    listed = {client.name: client.flagged for client in clients.top(64)}
    assert listed == {clients.name(str(client)): count for client, count in truth.items() if count}


def test_no_address_is_kept_and_names_differ_between_processes() -> None:
    """A salted hash: the same address has another name in another list."""
    one, other = TopClients(), TopClients()
    one.flagged("203.0.113.9")
    assert one.name("203.0.113.9") != other.name("203.0.113.9")
    assert "203.0.113.9" not in repr(vars(one))


def test_yesterdays_client_leaves_the_list() -> None:
    """Counts halve; and the list still counts rightly afterwards."""
    clients = TopClients(max_clients=4, half_life=0.0)
    clients.flagged("once", now=math.inf)
    for _ in range(3):
        clients.flagged("again", now=math.inf)
    assert clients.name("once") not in {client.name for client in clients.top()}


class Fake:
    """Answers every image with a score that the test chooses, through real decoding."""

    def __init__(self, model: Model, right: bool = True, fault: bool = False) -> None:
        self.model = model
        self.right = right
        self.fault = fault
        self.asked: list[tuple[ImageInput, Terms]] = []
        self.mode: Mode = "auto"
        self.branch: Mode | None = None  # that answers, whatever was asked for

    @contextmanager
    def lease(self, turn: int = 0) -> Iterator[Fake]:
        modes = self.model.contract.modes
        self.mode = modes[turn % len(modes)]
        yield self

    async def infer(self, images: Sequence[ImageInput], terms: Terms = Terms()) -> Signals:  # noqa: B008
        if self.fault:
            raise EngineFault("out of order")
        self.asked += [(image, terms) for image in images]
        golden = self.model.contract.golden
        [image] = images
        pixels = image.pixels(golden.image.shape[-1])
        row = next(n for n, image in enumerate(golden.image) if np.array_equal(image, pixels))
        p_type = golden.outputs["p_type"][row : row + 1].copy()
        if not self.right:
            p_type = p_type[:, ::-1] * 0 if p_type[0, 0] > 0.41 else p_type * 0 + 1
        omega = golden.outputs["omega"][row : row + 1]
        logits = golden.outputs[LOGITS[self.branch or self.mode]][row : row + 1]
        return Signals(logits, p_type, omega, 0.0, 0.0, 0.0)


def send(fake: Fake, times: int = 8) -> Watch:
    monitor = Monitor()
    prober = GoldenProbes(monitor, lambda turn: [fake.lease(turn)])
    for _ in range(times):
        asyncio.run(prober.once())
    return monitor.of(fake.model)


def probe_results(watch: Watch) -> set[str]:
    """How the answers to golden probes were."""
    return {result for (_, result), count in watch.golden_probes.items() if count}


def golden_model(contract: Contract) -> Model:
    """The tiny model with golden images of all three verdicts."""
    image = np.stack([np.full((3, 32, 32), value, np.uint8) for value in (20, 140, 250)])
    outputs = dict(contract.golden.outputs)
    outputs["p_type"] = np.array([[0.1, 0.9], [0.5, 0.5], [0.98, 0.02]], np.float32)
    golden = type(contract.golden)(image, outputs, contract.golden.tolerance)
    return Model("awnet", 1, "f" * 64, Contract(**{**vars(contract), "golden": golden}))


def test_golden_probes_arrive_as_files_at_low_priority_and_are_never_users_verdicts(contract: Contract) -> None:
    """The real path: an encoded upload that gives way to users; the counters of users do not move."""
    fake = Fake(golden_model(contract))
    watch = send(fake)
    assert len(fake.asked) == 8
    assert all(isinstance(image, EncodedImage) and terms.priority == "low" for image, terms in fake.asked)
    assert not any(watch.images.values())
    assert watch.detection == 1.0
    assert probe_results(watch) == {"right"}
    assert {verdict for verdict, _ in watch.golden_probes} == {"clean", "suspicious", "adversarial"}


def test_a_detector_that_went_blind_is_told_from_one_that_does_not_answer(contract: Contract) -> None:
    """Wrong answers and no answers are different faults."""
    blind = send(Fake(golden_model(contract), right=False))
    assert blind.detection == 0.0
    assert probe_results(blind) == {"wrong"}
    broken = send(Fake(golden_model(contract), fault=True))
    assert probe_results(broken) == {"failed"}


def test_a_golden_probe_at_a_threshold_is_right_within_the_tolerance(contract: Contract) -> None:
    """Another processor may round to the other side; that is what the tolerance of the contract allows."""
    model = golden_model(contract)
    made = golden_probes(model.contract)
    middle: Verdict = "suspicious"
    probe = next(c for c in made if c.expected == middle)._replace(score=0.7699, tolerance=0.001)
    assert judge(0.7701, model.contract.thresholds) == "adversarial"
    assert probe.result_of(0.7701, "adversarial") == "right"
    assert probe.result_of(0.9, "adversarial") == "wrong"


def test_golden_probes_go_through_every_mode_and_know_its_classes(contract: Contract) -> None:
    """One that answers by another branch is wrong, whatever its detector says; the modes take turns."""
    alone = golden_model(contract)
    outputs = dict(alone.contract.golden.outputs)
    for place, output in enumerate(LOGITS.values()):
        outputs[output] = np.eye(10, dtype=np.float32)[[place] * 3]
    golden = replace(alone.contract.golden, outputs=outputs, tolerance=dict.fromkeys(outputs, 0.001))
    model = replace(alone, contract=replace(alone.contract, golden=golden, modes=tuple(LOGITS)))
    assert probe_results(send(Fake(model), times=12)) == {"right"}
    stuck = Fake(model)
    stuck.branch = "natural"
    watch = send(stuck, times=12)
    results = Counter({"right": 0, "wrong": 0})
    for (_, result), count in watch.golden_probes.items():
        results[result] += count
    assert (results["right"], results["wrong"]) == (4, 8)


def test_clean_and_attacked_golden_probes_take_turns(contract: Contract) -> None:
    """So that neither kind waits for the other to be through."""
    model = golden_model(contract)
    kinds = [c.expected != "clean" for c in golden_probes(model.contract)]
    assert kinds == [False, True] * 2


def test_the_report_for_the_admin_port_names_hashes_only(model: Model) -> None:
    """And it is the same where the process is one worker of several: what it told has been added up."""
    monitor = Monitor()
    metrics = Metrics(monitor, 1)
    monitor.of(model).answered([judged("adversarial", 0.9)], np.zeros((1, CHANNELS), np.float32))
    monitor.clients.flagged("203.0.113.9")
    alone = report(Counted(metrics.registry, monitor.clients.top(), monitor.clients.total))
    text = json.dumps(alone)
    assert "203.0.113.9" not in text
    assert monitor.clients.name("203.0.113.9") in text
    totals = Totals()
    totals.update(0, snapshot(metrics.registry, metrics.modes, monitor))
    assert report(counted_by_all(totals.total())) == alone

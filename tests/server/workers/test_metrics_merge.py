"""Adding workers up: what stays of the dead, what goes, and how values of several become one."""

from __future__ import annotations

import json

import pytest

from server.monitoring.cusum import Cusum
from server.monitoring.detection import Monitor
from server.monitoring.metrics import Metrics
from server.monitoring.snapshot import ClientCount, CusumCounts, Exemplar, Family, Sample, Snapshot, Total
from server.workers.metrics_merge import Totals

HOW = {"sum", "livesum", "livemax", "livemin"}
HOW |= {"adaptive value", "adaptive raised", "adaptive alarms", "adaptive usual"}
HOW |= {"pooled value", "pooled raised", "pooled alarms", "service clients", "service largest", "service started"}


def snapshot(
    families: list[Family] | None = None,
    cusums: list[CusumCounts] | None = None,
    clients: list[ClientCount] | None = None,
    versions: tuple[str, ...] = ("1",),
    recent: list[tuple[int, list[int]]] | None = None,
    number: int = 0,
) -> Snapshot:
    """As it comes out of the link."""
    given = Snapshot(
        families or [],
        cusums or [],
        [],
        clients or [],
        sum(client.flagged for client in clients or []),
        [("m", version) for version in versions],
        recent or [],
        number=number,
    )
    taken = Snapshot.from_json(json.loads(json.dumps(given.to_json())))
    assert taken == given
    return taken


def verdicts(**counts: float) -> Family:
    """A counter with a series for each version, as v1=3."""
    samples = [Sample("v_total", {"model": "m", "version": name[1:]}, value) for name, value in counts.items()]
    return Family("v", "counter", "sum", "Verdicts.", samples)


def gauge(mode: str, value: float, name: str = "g", **labels: str) -> Family:
    return Family(name, "gauge", mode, "A gauge.", [Sample(name, labels, value)])


def family_of(totals: Totals, name: str) -> Family:
    """As it comes out of the link."""
    total = totals.total()
    taken = Total.from_json(json.loads(json.dumps(total.to_json())))
    assert taken == total
    (family,) = [family for family in taken.families if family.name == name]
    return family


def values(totals: Totals, name: str) -> dict[str, float]:
    """Version (or '') -> value of the samples of a family."""
    return {sample.labels.get("version", ""): sample.value for sample in family_of(totals, name).samples}


def test_every_metric_says_how_several_become_one() -> None:
    """One without a mode would be wrong in silence as soon as there are two workers."""
    metrics = Metrics(Monitor(), 1)
    modes = metrics.modes
    assert {family.name for family in metrics.registry.collect()} <= set(modes)
    assert {mode for mode in modes.values() if not mode.startswith("mean ")} <= HOW
    assert {mode.removeprefix("mean ") for mode in modes.values() if mode.startswith("mean ")} <= set(modes)


def test_counts_of_a_dead_worker_stay_and_its_gauges_go() -> None:
    """The next one in its place counts from 0, and the sum never goes back."""
    totals = Totals()
    totals.update(0, snapshot([verdicts(v1=3), gauge("livesum", 5)]))
    totals.update(1, snapshot([verdicts(v1=4), gauge("livesum", 2)]))
    assert (values(totals, "v"), values(totals, "g")) == ({"1": 7}, {"": 7})
    totals.leave(0)
    assert (values(totals, "v"), values(totals, "g")) == ({"1": 7}, {"": 2})
    totals.update(0, snapshot([verdicts(v1=1), gauge("livesum", 1)]))
    assert (values(totals, "v"), values(totals, "g")) == ({"1": 8}, {"": 3})
    for _ in range(3):  # nothing grows with restarts
        totals.leave(0)
        totals.update(0, snapshot([verdicts(v1=1)]))
    assert values(totals, "v") == {"1": 11}


def test_a_snapshot_that_was_overtaken_is_passed_over() -> None:
    """A scrape's answer and what a worker tells by itself may change places; a count must not be kept twice."""
    totals = Totals()
    totals.update(0, snapshot([verdicts(v1=5)], number=8))
    totals.update(0, snapshot([verdicts(v1=4)], number=7))
    assert values(totals, "v") == {"1": 5}
    totals.update(0, snapshot([verdicts(v1=6)], number=9))
    assert values(totals, "v") == {"1": 6}
    totals.leave(0)
    totals.update(0, snapshot([verdicts(v1=1)], number=0))  # of the worker that took its place
    assert values(totals, "v") == {"1": 7}


def test_a_version_closed_by_one_worker_keeps_its_counts_until_all_have_closed_it() -> None:
    """Workers close a version at different moments; in between its counter must not fall."""
    totals = Totals()
    totals.update(0, snapshot([verdicts(v1=3, v2=1)], versions=("1", "2")))
    totals.update(1, snapshot([verdicts(v1=4, v2=1)], versions=("1", "2")))
    totals.update(0, snapshot([verdicts(v2=2)], versions=("2",)))
    assert values(totals, "v") == {"2": 3, "1": 7}
    totals.update(0, snapshot([verdicts(v1=0, v2=2)], versions=("1", "2")))  # opened again there
    assert values(totals, "v") == {"1": 7, "2": 3}
    totals.update(0, snapshot([verdicts(v2=2)], versions=("2",)))
    totals.update(1, snapshot([verdicts(v2=1)], versions=("2",)))
    assert values(totals, "v") == {"2": 3}


@pytest.mark.parametrize(("mode", "result"), [("livesum", 5), ("livemax", 4), ("livemin", 1)])
def test_gauges_become_one_in_the_way_that_suits_them(mode: str, result: float) -> None:
    totals = Totals()
    totals.update(0, snapshot([gauge(mode, 1)]))
    totals.update(1, snapshot([gauge(mode, 4)]))
    assert values(totals, "g") == {"": result}


def test_a_mean_weighs_workers_by_their_images() -> None:
    """A worker that has just begun has a noisy drift and hardly any weight."""
    totals = Totals()
    for worker, (drift, images) in enumerate([(0.1, 990.0), (2.1, 10.0)]):
        which = {"model": "m", "version": "1"}
        totals.update(worker, snapshot([gauge("mean n", drift, "d", **which), gauge("livesum", images, "n", **which)]))
    assert values(totals, "d") == {"1": pytest.approx(0.12)}
    assert values(totals, "n") == {"1": 1000}


def test_the_newest_exemplar_of_a_bucket_is_kept() -> None:
    totals = Totals()
    for worker, when in ((0, 20.0), (1, 10.0)):
        exemplar = Exemplar({"request_id": f"w{worker}"}, 0.2, when)
        samples = [Sample("h_bucket", {"le": "+Inf"}, 1.0, exemplar), Sample("h_count", {}, 1.0)]
        totals.update(worker, snapshot([Family("h", "histogram", "sum", "A histogram.", samples)]))
    newest = Exemplar({"request_id": "w0"}, 0.2, 20.0)
    assert family_of(totals, "h").samples[0] == Sample("h_bucket", {"le": "+Inf"}, 2.0, newest)


def test_the_pooled_cusum_is_the_one_of_all_images() -> None:
    """Told after every image it is exactly that; a dead worker leaves its part in it."""
    single, parts, totals = Cusum(0.05, 19.0), [Cusum(0.05, 19.0), Cusum(0.05, 19.0)], Totals()
    images = [0, 0]
    family = Family("awnet_cusum", "gauge", "pooled value", "CUSUM.", [])
    for turn in range(60):
        worker, flagged = turn % 2, turn % 3 == 0
        single.add(1, flagged)
        parts[worker].add(1, flagged)
        images[worker] += 1
        counts = CusumCounts("m", "1", "00", "suspicious", 0.05, 19.0, images[worker], parts[worker].flagged)
        totals.update(worker, snapshot([family], [counts]))
        assert values(totals, "awnet_cusum")["1"] == single.value
    before = values(totals, "awnet_cusum")
    totals.leave(0)
    assert values(totals, "awnet_cusum") == before


def test_a_version_that_is_opened_anew_counts_from_0_even_where_it_has_seen_more() -> None:
    """Between two reports it may: a difference of counts that do not belong together takes flagged images back."""
    single, totals = Cusum(0.05, 19.0), Totals()
    family = Family("awnet_cusum", "gauge", "pooled value", "CUSUM.", [])
    for number, (images, flagged) in enumerate([(10, 5), (12, 1)]):
        single.add(images, flagged)
        counts = CusumCounts("m", "1", "00", "suspicious", 0.05, 19.0, images, flagged)
        totals.update(0, snapshot([family], [counts], number=number))
    assert values(totals, "awnet_cusum")["1"] == single.value > 0


def test_a_client_who_met_two_workers_is_one() -> None:
    totals = Totals()
    totals.update(0, snapshot(clients=[ClientCount("aa", 6, 1), ClientCount("bb", 1, 0)]))
    totals.update(1, snapshot(clients=[ClientCount("aa", 3, 0)]))
    assert totals.total().clients == [ClientCount("aa", 9, 1), ClientCount("bb", 1, 0)]
    totals.leave(1)
    assert totals.total().flagged_images == 7


def test_recent_verdicts_of_others_are_told_and_those_of_the_dead_stay() -> None:
    """For as long as the page looks back."""
    totals = Totals()
    totals.update(0, snapshot(recent=[(100, [1, 0, 0])]))
    totals.update(1, snapshot(recent=[(99, [2, 0, 0]), (100, [3, 0, 1])]))
    assert dict(totals.verdicts_of_others(0)) == {99: [2, 0, 0], 100: [3, 0, 1]}
    totals.leave(1)
    assert dict(totals.verdicts_of_others(0)) == {99: [2, 0, 0], 100: [3, 0, 1]}
    totals.update(1, snapshot(recent=[(159, [1, 0, 0])]))
    totals.leave(1)
    assert dict(totals.verdicts_of_others(0)) == {100: [3, 0, 1], 159: [1, 0, 0]}

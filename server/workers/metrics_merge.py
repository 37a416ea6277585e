"""Merges the counts of all workers in the supervisor. Plain Python: no numpy, no client library.

What a worker sends is a `monitoring.snapshot.Snapshot`; the mode of each family says how values of several workers
become one. No metric is known here by its name.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..monitoring.adaptive_cusum import OF, Clock, Uncalibrated
from ..monitoring.cusum import Cusum
from ..monitoring.snapshot import ClientCount, Exemplar, Family, Sample, Snapshot, Total

MAX_SLOTS = 60  # that `verdict_history` looks back
Labels = tuple[tuple[str, str], ...]
Group = dict[tuple[str, Labels], float]  # (sample, all labels) -> value, of one set of labels


@dataclass(frozen=True, slots=True)
class _Last:
    """The last snapshot of one worker, by name, version and labels."""

    snapshot: Snapshot
    families: dict[str, Family]
    counted: dict[str, dict[Labels, Group]]  # of families whose mode is `sum`
    calibrated: dict[tuple[str, ...], tuple[int, ...]]  # images and flagged ones of each CUSUM
    uncalibrated: dict[tuple[str, ...], tuple[int, ...]]  # all images, uncalibrated and flagged ones of each version
    open_versions: set[tuple[str, str]]
    verdict_history: dict[int, list[int]]

    @classmethod
    def of(cls, snapshot: Snapshot) -> _Last:
        return cls(
            snapshot,
            {family.name: family for family in snapshot.families},
            {family.name: _groups(family) for family in snapshot.families if family.mode == "sum"},
            {cusum[:4]: cusum[6:] for cusum in snapshot.cusums},
            {row[:3]: row[4:] for row in snapshot.uncalibrated},
            set(snapshot.open_versions),
            dict(snapshot.verdict_history),
        )


class Totals:
    """The merged counts of all workers, without a label for the worker; counts of a dead worker stay.

    Args:
        clock: seconds that never go back, for what is learnt over hours.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[int, _Last] = {}
        self._departed: dict[str, dict[Labels, Group]] = {}
        self._shape: dict[str, Family] = {}  # of every family, without samples
        self._cusums: dict[tuple[str, ...], Cusum] = {}
        self._uncalibrated: dict[tuple[str, ...], Uncalibrated] = {}
        self._past: dict[int, list[int]] = {}  # recent verdicts of workers that have gone
        self._started = time.time()

    def update(self, worker: int, snapshot: Snapshot) -> None:
        """Take the newest snapshot of a worker. What an earlier one counted and this one lacks, or has less of, is
        kept."""
        before = self._last.get(worker)
        if before is not None and snapshot.number < before.snapshot.number:
            return  # to take it for the newest would keep what is counted already, and count it twice
        last = _Last.of(snapshot)
        self._shape.update({name: family._replace(samples=[]) for name, family in last.families.items()})
        for cusum in snapshot.cusums:
            key = cusum[:4]
            if key not in self._cusums:
                self._cusums[key] = Cusum(cusum.target, cusum.limit)
            self._cusums[key].add(*_since(before.calibrated.get(key) if before else None, cusum[6:]))
        for row in snapshot.uncalibrated:
            which = row[:3]
            if which not in self._uncalibrated:
                self._uncalibrated[which] = Uncalibrated(row.limit, self._clock)
            self._uncalibrated[which].add(*_since(before.uncalibrated.get(which) if before else None, row[4:]))
        if before is not None:
            self._keep(before.counted, last.counted)
        self._last[worker] = last
        self._forget()

    def leave(self, worker: int) -> None:
        """The worker has ended: its counts stay, its gauges go."""
        last = self._last.pop(worker, None)
        if last is not None:
            self._keep(last.counted, {})
            self._past = _merged(self._past, last.verdict_history)
            self._past = {slot: counts for slot, counts in self._past.items() if slot > max(self._past) - MAX_SLOTS}

    def verdicts_of_others(self, worker: int) -> list[tuple[int, list[int]]]:
        """Recent verdicts of all others, by slot; those of the dead are among them."""
        others = [last.verdict_history for number, last in self._last.items() if number != worker]
        return list(_merged(self._past, *others).items())

    def total(self, own: Iterable[Family] = ()) -> Total:
        """What the whole service has counted.

        Args:
            own: the supervisor's own families.
        """
        clients: dict[str, ClientCount] = {}
        for last in self._last.values():
            for name, flagged, max_overcount in last.snapshot.clients:
                before = clients.get(name, ClientCount(name, 0, 0))
                clients[name] = ClientCount(name, before.flagged + flagged, before.max_overcount + max_overcount)
        flagged_images = sum(last.snapshot.flagged_images for last in self._last.values())
        certain = max((client.flagged - client.max_overcount for client in clients.values()), default=0)
        service = {
            "clients": float(len(clients)),
            "largest": certain / flagged_images if flagged_images else 0.0,
            "started": self._started,
        }
        families: list[Family] = []
        for name, family in self._shape.items():
            how, _, what = family.mode.partition(" ")
            sample = f"{name}_total" if family.kind == "counter" else name
            if how == "pooled":
                samples = self._pooled(sample, what)
            elif how == "adaptive":
                samples = self._adaptive(sample, what)
            elif how == "service":
                samples = [Sample(name, {}, service[what])]
            elif how == "sum":
                samples = self._summed(name)
            else:
                samples = self._gauge(name, family.mode)
            families.append(family._replace(samples=samples))
        listed = sorted(clients.values(), key=lambda client: (-client.flagged, client.name))
        return Total([*families, *own], listed, flagged_images)

    def _keep(self, old: dict[str, dict[Labels, Group]], new: dict[str, dict[Labels, Group]]) -> None:
        for name, groups in old.items():
            now = new.get(name, {})
            for labels, group in groups.items():
                after = now.get(labels)
                if after is None or any(after.get(key, 0.0) < value for key, value in group.items()):
                    _add(self._departed.setdefault(name, {}).setdefault(labels, {}), group)

    def _forget(self) -> None:
        """Drop what was kept of versions that no worker has open any more, as each worker does with its own."""
        alive = {version for last in self._last.values() for version in last.open_versions}
        for groups in self._departed.values():
            for labels in [labels for labels in groups if not _alive(dict(labels), alive)]:
                del groups[labels]
        self._cusums = {key: cusum for key, cusum in self._cusums.items() if key[:2] in alive}
        self._uncalibrated = {key: given for key, given in self._uncalibrated.items() if key[:2] in alive}

    def _summed(self, name: str) -> list[Sample]:
        total: dict[Labels, Group] = {}
        exemplars: dict[tuple[str, Labels], Exemplar] = {}
        for last in self._last.values():
            for labels, group in last.counted.get(name, {}).items():
                _add(total.setdefault(labels, {}), group)
            for sample in _samples(last, name):
                if sample.exemplar is not None:
                    key = (sample.name, tuple(sample.labels.items()))
                    if key not in exemplars or exemplars[key].timestamp < sample.exemplar.timestamp:
                        exemplars[key] = sample.exemplar
        for labels, group in self._departed.get(name, {}).items():
            _add(total.setdefault(labels, {}), group)
        return [
            Sample(sample_name, dict(labels), value, exemplars.get((sample_name, labels)))
            for group in total.values()
            for (sample_name, labels), value in group.items()
        ]

    def _gauge(self, name: str, mode: str) -> list[Sample]:
        values: dict[Labels, list[tuple[float, float]]] = {}  # labels -> (value, weight) of each worker
        weigher = mode.removeprefix("mean ") if mode.startswith("mean ") else None
        for last in self._last.values():
            weights = {}
            if weigher is not None:
                weights = {_version(sample.labels): sample.value for sample in _samples(last, weigher)}
            for sample in _samples(last, name):
                weight = weights.get(_version(sample.labels), 0.0)
                values.setdefault(tuple(sample.labels.items()), []).append((sample.value, weight))
        how: dict[str, Callable[[list[float]], float]] = {"livesum": math.fsum, "livemax": max, "livemin": min}
        merged = []
        for labels, given in values.items():
            if weigher is None:
                value = how[mode]([value for value, _ in given])
            else:
                weight = sum(weight for _, weight in given)
                value = sum(value * weight for value, weight in given) / weight if weight else 0.0
            merged.append(Sample(name, dict(labels), value))
        return merged

    def _pooled(self, sample: str, what: str) -> list[Sample]:
        latest = {(model, version, flag): cusum for (model, version, _, flag), cusum in self._cusums.items()}
        return [
            Sample(sample, {"model": model, "version": version, "verdict": flag}, float(getattr(cusum, what)))
            for (model, version, flag), cusum in latest.items()
        ]

    def _adaptive(self, sample: str, what: str) -> list[Sample]:
        latest = {(model, version): given for (model, version, _), given in self._uncalibrated.items()}
        values = [
            ({"model": model, "version": version, "of": of}, getattr(given.state(of), what))
            for (model, version), given in latest.items()
            for of in OF
        ]
        return [Sample(sample, labels, float(value)) for labels, value in values if value is not None]


def _since(before: tuple[int, ...] | None, now: tuple[int, ...]) -> tuple[int, ...]:
    """What has been counted since; all of it where the version was opened anew, which shows where a count is less."""
    if before is None or any(old > new for old, new in zip(before, now, strict=True)):
        return now
    return tuple(new - old for new, old in zip(now, before, strict=True))


def _samples(last: _Last, name: str) -> list[Sample]:
    return last.families[name].samples if name in last.families else []


def _groups(family: Family) -> dict[Labels, Group]:
    """The samples of a family by their labels without the bucket's edge."""
    groups: dict[Labels, Group] = {}
    for sample in family.samples:
        key = tuple((name, value) for name, value in sample.labels.items() if name != "le")
        groups.setdefault(key, {})[sample.name, tuple(sample.labels.items())] = sample.value
    return groups


def _add(total: Group, group: Group) -> None:
    for key, value in group.items():
        total[key] = total.get(key, 0.0) + value


def _merged(*given: Mapping[int, list[int]]) -> dict[int, list[int]]:
    total: dict[int, list[int]] = {}
    for counts_by_slot in given:
        for slot, counts in counts_by_slot.items():
            total[slot] = [sum(pair) for pair in zip(total.get(slot, [0] * len(counts)), counts, strict=True)]
    return total


def _version(labels: Mapping[str, str]) -> tuple[str | None, str | None]:
    return labels.get("model"), labels.get("version")


def _alive(labels: Mapping[str, str], alive: set[tuple[str, str]]) -> bool:
    return "model" not in labels or "version" not in labels or (labels["model"], labels["version"]) in alive

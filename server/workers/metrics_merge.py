"""Merges the counts of all workers in the supervisor. Plain Python: no numpy, no client library.

A snapshot is what one worker sends, as JSON:

    number:          how many it sent before
    families:        [[name, kind, mode, help, [[sample, labels, value, exemplar or None], ...]], ...]
    cusums:          [[model, version, sha256, flag, target, limit, images, flagged], ...]
    clients:         {"total": flagged images, "largest": [[name, flagged, max_overcount], ...]}
    open:            [[model, version], ...], as in labels
    verdict_history: [[slot, counts of verdicts], ...], see `verdict_history`

Modes say how values of several workers become one: `sum` (also of those that have gone), `livesum`, `livemax`,
`livemin` (of those that live), `mean NAME` (weighted with the gauge NAME of the same model and version), `pooled WHAT`
(`value`, `raised` or `alarms` of the CUSUM over the images of all) and `service WHAT` (`clients`, `largest` or
`started`: a figure of the service as a whole). No metric is known here by its name.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..monitoring.cusum import Cusum

MAX_SLOTS = 60  # that `verdict_history` looks back
Labels = tuple[tuple[str, str], ...]
Group = dict[tuple[str, Labels], float]  # (sample, all labels) -> value, of one set of labels
Family = tuple[str, str, str, list[list[Any]]]  # name, kind, help, samples


@dataclass
class _Snapshot:
    """The last snapshot of one worker."""

    number: int
    families: dict[str, list[Any]]
    counted: dict[str, dict[Labels, Group]]
    watched: dict[tuple[str, ...], tuple[int, int]]
    clients: Mapping[str, Any]
    open: set[tuple[str, str]]
    recent: dict[int, list[int]]


class Totals:
    """The merged counts of all workers, without a label for the worker; counts of a dead worker stay."""

    def __init__(self) -> None:
        self._snapshots: dict[int, _Snapshot] = {}
        self._departed: dict[str, dict[Labels, Group]] = {}
        self._shape: dict[str, list[Any]] = {}  # name, kind, mode, help of every family
        self._cusums: dict[tuple[str, ...], Cusum] = {}
        self._past: dict[int, list[int]] = {}  # recent verdicts of workers that have gone
        self._started = time.time()

    def update(self, worker: int, snapshot: Mapping[str, Any]) -> None:
        """What this worker says now, unless it has said newer things. What it counted before and says no more, or less
        of, is kept."""
        before = self._snapshots.get(worker)
        if before is not None and snapshot["number"] < before.number:
            return  # to take it for the newest would keep what is counted already, and count it twice
        families = {family[0]: family for family in snapshot["families"]}
        counted = {name: _groups(family) for name, family in families.items() if family[2] == "sum"}
        self._shape.update({name: family[:4] for name, family in families.items()})
        watched: dict[tuple[str, ...], tuple[int, int]] = {}
        for model, version, sha256, flag, target, limit, images, flagged in snapshot["cusums"]:
            key = (model, version, sha256, flag)
            watched[key] = (images, flagged)
            past = before.watched.get(key, (0, 0)) if before else (0, 0)
            if past[0] > images:
                past = (0, 0)  # opened anew
            if key not in self._cusums:
                self._cusums[key] = Cusum(target, limit)
            self._cusums[key].add(images - past[0], flagged - past[1])
        if before is not None:
            self._keep(before.counted, counted)
        open_versions = {(model, version) for model, version in snapshot["open"]}
        recent = {slot: counts for slot, counts in snapshot["verdict_history"]}
        self._snapshots[worker] = _Snapshot(
            snapshot["number"], families, counted, watched, snapshot["clients"], open_versions, recent
        )
        self._forget()

    def leave(self, worker: int) -> None:
        """The worker has ended: its counts stay, its gauges go."""
        last = self._snapshots.pop(worker, None)
        if last is not None:
            self._keep(last.counted, {})
            self._past = _merged(self._past, last.recent)
            self._past = {slot: counts for slot, counts in self._past.items() if slot > max(self._past) - MAX_SLOTS}

    def verdicts_of_others(self, worker: int) -> list[tuple[int, list[int]]]:
        """Recent verdicts of all others, by slot; those of the dead are among them."""
        others = [last.recent for number, last in self._snapshots.items() if number != worker]
        return list(_merged(self._past, *others).items())

    def document(self, own: Iterable[Family] = ()) -> dict[str, Any]:
        """families (without their modes), clients (largest first) and flagged_images of the whole service.

        Args:
            own: the supervisor's own families.
        """
        clients: dict[str, list[int]] = {}
        for last in self._snapshots.values():
            for name, flagged, max_overcount in last.clients["largest"]:
                entry = clients.setdefault(name, [0, 0])
                entry[0] += flagged
                entry[1] += max_overcount
        flagged_images = sum(last.clients["total"] for last in self._snapshots.values())
        certain = max((flagged - overcount for flagged, overcount in clients.values()), default=0)
        service = {
            "clients": float(len(clients)),
            "largest": certain / flagged_images if flagged_images else 0.0,
            "started": self._started,
        }
        families: list[list[Any]] = []
        for name, (_, kind, mode, text) in self._shape.items():
            how, _, what = mode.partition(" ")
            if how == "pooled":
                samples = self._pooled(f"{name}_total" if kind == "counter" else name, what)
            elif how == "service":
                samples = [[name, {}, service[what], None]]
            elif how == "sum":
                samples = self._summed(name)
            else:
                samples = self._gauge(name, mode)
            families.append([name, kind, text, samples])
        families += [list(family) for family in own]
        listed = sorted(clients.items(), key=lambda item: (-item[1][0], item[0]))
        return {
            "families": families,
            "clients": [{"client": name, "flagged": n[0], "most_too_many": n[1]} for name, n in listed],
            "flagged_images": flagged_images,
        }

    def _keep(self, old: dict[str, dict[Labels, Group]], new: dict[str, dict[Labels, Group]]) -> None:
        for name, groups in old.items():
            now = new.get(name, {})
            for labels, group in groups.items():
                after = now.get(labels)
                if after is None or any(after.get(key, 0.0) < value for key, value in group.items()):
                    _add(self._departed.setdefault(name, {}).setdefault(labels, {}), group)

    def _forget(self) -> None:
        """Drop what was kept of versions that no worker has open any more, as each worker does with its own."""
        alive = {version for last in self._snapshots.values() for version in last.open}
        for groups in self._departed.values():
            for labels in [labels for labels in groups if not _alive(dict(labels), alive)]:
                del groups[labels]
        self._cusums = {key: cusum for key, cusum in self._cusums.items() if key[:2] in alive}

    def _summed(self, name: str) -> list[list[Any]]:
        total: dict[Labels, Group] = {}
        exemplars: dict[tuple[str, Labels], Any] = {}
        for last in self._snapshots.values():
            for labels, group in last.counted.get(name, {}).items():
                _add(total.setdefault(labels, {}), group)
            for sample, labels_of, _, exemplar in last.families[name][4] if name in last.families else ():
                if exemplar is not None:
                    key = (sample, tuple(labels_of.items()))
                    if key not in exemplars or exemplars[key][2] < exemplar[2]:
                        exemplars[key] = exemplar
        for labels, group in self._departed.get(name, {}).items():
            _add(total.setdefault(labels, {}), group)
        return [
            [sample, dict(labels), value, exemplars.get((sample, labels))]
            for group in total.values()
            for (sample, labels), value in group.items()
        ]

    def _gauge(self, name: str, mode: str) -> list[list[Any]]:
        values: dict[Labels, list[tuple[float, float]]] = {}  # labels -> (value, weight) of each worker
        weigher = mode.removeprefix("mean ") if mode.startswith("mean ") else None
        for last in self._snapshots.values():
            weights = {}
            if weigher is not None and weigher in last.families:
                weights = {_version(labels): value for _, labels, value, _ in last.families[weigher][4]}
            for _, labels, value, _ in last.families[name][4] if name in last.families else ():
                values.setdefault(tuple(labels.items()), []).append((value, weights.get(_version(labels), 0.0)))
        how: dict[str, Callable[[list[float]], float]] = {"livesum": math.fsum, "livemax": max, "livemin": min}
        merged = []
        for labels, given in values.items():
            if weigher is None:
                value = how[mode]([value for value, _ in given])
            else:
                weight = sum(weight for _, weight in given)
                value = sum(value * weight for value, weight in given) / weight if weight else 0.0
            merged.append([name, dict(labels), value, None])
        return merged

    def _pooled(self, sample: str, what: str) -> list[list[Any]]:
        latest = {(model, version, flag): cusum for (model, version, _, flag), cusum in self._cusums.items()}
        return [
            [sample, {"model": model, "version": version, "verdict": flag}, float(getattr(cusum, what)), None]
            for (model, version, flag), cusum in latest.items()
        ]


def _groups(family: list[Any]) -> dict[Labels, Group]:
    """The samples of a family by their labels without the bucket's edge."""
    groups: dict[Labels, Group] = {}
    for sample, labels, value, _ in family[4]:
        key = tuple((name, value) for name, value in labels.items() if name != "le")
        groups.setdefault(key, {})[sample, tuple(labels.items())] = value
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

"""The metrics of versions in their roles: reloads, who serves, the canary's share, what the shadow answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ..core.engine import Model
from ..versions.events import Difference, Events, ReloadResult, Role, ShadowResult


class RolloutMetrics(Events):
    """Registered in `registry`; see `metrics.Metrics`.

    Args:
        models: names of those whose reloads are counted from 0 on.
    """

    def __init__(self, registry: CollectorRegistry, models: Iterable[str]) -> None:
        self._reloads = Counter(
            "awnet_reloads",
            "Attempts to take a version: loaded, refused, unavailable (tried again), absent; unchanged where a "
            "reload found nothing new.",
            ["model", "result"],
            registry=registry,
        )
        self._model_info = Gauge(
            "awnet_model_info",
            "1 for each open version; the role is serving, canary, shadow or kept.",
            ["model", "version", "role"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._canary = Gauge(
            "awnet_canary_share",
            "Share of unversioned requests that the version is given.",
            ["model", "version"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._shadow_images = Counter(
            "awnet_shadow_images",
            "Images for the shadow: compared, dropped under load, failed.",
            ["model", "version", "result"],
            registry=registry,
        )
        self._disagreements = Counter(
            "awnet_shadow_disagreements",
            "Images to which the shadow gave another class or verdict.",
            ["model", "version", "about"],
            registry=registry,
        )
        self._info: dict[str, dict[int, Role]] = {}
        for name in models:
            for result in get_args(ReloadResult):
                self._reloads.labels(name, result)

    def closed(self, model: Model) -> None:
        for result in get_args(ShadowResult):
            remove(self._shadow_images, model.name, model.version, result)
        for about in get_args(Difference):
            remove(self._disagreements, model.name, model.version, about)

    def roles(self, name: str, roles: Mapping[int, Role]) -> None:
        for version, role in self._info.get(name, {}).items():
            remove(self._model_info, name, version, role)
        self._info[name] = dict(roles)
        for version, role in roles.items():
            self._model_info.labels(name, version, role).set(1)

    def reload(self, name: str, result: ReloadResult) -> None:
        self._reloads.labels(name, result).inc()

    def canary(self, name: str, version: int | None, share: float) -> None:
        self._canary.clear()
        if version is not None:
            self._canary.labels(name, version).set(share)

    def shadow(self, model: Model, result: ShadowResult, images: int) -> None:
        self._shadow_images.labels(model.name, model.version, result).inc(images)

    def disagreement(self, model: Model, about: Difference, images: int) -> None:
        self._disagreements.labels(model.name, model.version, about).inc(images)


def remove(family: Counter | Gauge | Histogram, *labels: str | int) -> None:
    """Drop a series, there or not; older releases of the client mind if it is not."""
    with contextlib.suppress(KeyError):
        family.remove(*labels)

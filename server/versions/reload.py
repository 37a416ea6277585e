"""Loads new versions of the repository and reports each outcome once.

A version that cannot be opened changes nothing about the serving one. A version at fault is refused until its files
change; a version that could not be tried (the engine was away, or full) is tried again at the next check.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..core.engine import Engine
from ..errors import AWNetError, EngineFault, ModelNotFound, StartupError, Unavailable
from .events import Events, ReloadResult
from .open_versions import OpenVersion, OpenVersions
from .rollout import Rollout

log = logging.getLogger("awnet.versions")

Change = dict[str, str]  # "model", "version" ("" where it is about all), "result" (an `events.ReloadResult`), "detail"


@dataclass(eq=False, slots=True)
class _Tried:
    """Outcomes of one model's versions so far."""

    refused: dict[int, tuple[object, str]] = field(default_factory=dict)  # version -> (mark of its files, why)
    reported: dict[tuple[int | None, ReloadResult], str] = field(
        default_factory=dict
    )  # lasting states that were logged


class Reload:
    """Loads the versions that the repository holds. One call of `run` or `ensure` at a time; the caller sees to that.

    Args:
        engine: provides the catalogue.
        versions: opens versions.
        rollouts: the models, by name.
        events: receives each outcome.
        unlogged: the model whose failures are not logged until `log_all`: at the start they are logged in one line.
    """

    def __init__(
        self, engine: Engine, versions: OpenVersions, rollouts: Mapping[str, Rollout], events: Events, unlogged: str
    ) -> None:
        self._engine = engine
        self._versions = versions
        self._rollouts = rollouts
        self._events = events
        self._unlogged: str | None = unlogged
        self._tried = {name: _Tried() for name in rollouts}
        self._seen: object = None
        self._retry = False  # something could not be tried and may be later, without any file changing

    async def due(self) -> bool:
        """Whether there may be something to load, or to report. Raises what `Engine.fingerprint` does."""
        try:
            return await self._engine.fingerprint() != self._seen or self._retry
        except Unavailable:
            return True

    def log_all(self) -> None:
        """The start is over: log failures of every model."""
        self._unlogged = None

    def forget(self) -> None:
        """Let the next `due` say yes."""
        self._seen = None

    def refused(self, name: str) -> list[tuple[int, str]]:
        """Versions of `name` that are at fault, ascending, and why."""
        return sorted((version, why) for version, (_, why) in self._tried[name].refused.items())

    async def run(self) -> list[Change]:
        """Compare the repository with the open versions and load what is new.

        Returns:
            What was tried or is missing; empty where nothing is new.
        """
        self._retry = False
        changes: list[Change] = []
        try:
            marks = await self._engine.fingerprint()  # before anything is read, so that no later change is missed
            catalogue = await self._engine.catalogue()
        except AWNetError as error:
            self._retry = True
            result: ReloadResult = "unavailable" if isinstance(error, Unavailable) else "absent"
            for rollout in self._rollouts.values():
                self._outcome(rollout, None, result, error.detail, changes)
            return changes
        for rollout in self._rollouts.values():
            reported = self._tried[rollout.name].reported
            reported.pop((None, "absent"), None)
            reported.pop((None, "unavailable"), None)
            listed = catalogue.get(rollout.name, ())
            versions = [version for version in listed if _mark(marks, rollout.name, version) != ()]
            if len(versions) < len(listed):
                self._retry = True  # it appeared in between: its mark is known the next time
            await self._renew(rollout, versions, marks, changes)
        self._seen = marks
        return changes

    async def ensure(self, rollout: Rollout, version: int) -> OpenVersion:
        """The version, open; asked for by a person, so also one that was refused. Raises StartupError."""
        opened = rollout.open.get(version)
        if opened is not None:
            return opened
        mark = _mark(await self._engine.fingerprint(), rollout.name, version)
        changes: list[Change] = []
        try:
            opened = await self._versions.open(rollout.name, version, mark)
        except StartupError as error:
            self._failed(rollout, version, mark, error, changes)
            raise
        self._outcome(rollout, version, "loaded", "asked for", changes)
        return opened

    async def _renew(self, rollout: Rollout, listed: Sequence[int], marks: object, changes: list[Change]) -> None:
        """Load what is new of one model, whose versions are `listed`, ascending."""
        tried = self._tried[rollout.name]
        for gone in set(tried.refused) - set(listed):
            del tried.refused[gone]
        for version in sorted(rollout.open):
            opened = rollout.open[version]
            if version in listed and opened.mark != (mark := _mark(marks, rollout.name, version)):
                await self._replace(rollout, opened, mark, changes)

        serving = rollout.serving.model.version if rollout.serving else 0
        if serving in listed:
            tried.reported.pop((serving, "absent"), None)
        elif serving:
            self._outcome(rollout, serving, "absent", "its files are gone; it serves on", changes)
        for version in rollout.candidates(listed):
            taken = await self._take(rollout, version, marks, changes)
            if taken is not None:
                rollout.switch(taken)
                break
        if rollout.serving is None:
            if not listed:
                self._outcome(rollout, None, "absent", "there is no version of it", changes)
            return
        for version in rollout.canary_and_shadow:
            await self._take(rollout, version, marks, changes)
        rollout.apply_roles()  # frees what is not wanted any more before anything else is opened
        for version in rollout.reserves(listed):
            if rollout.full:
                break
            await self._take(rollout, version, marks, changes)
        rollout.apply_roles()

    async def _take(self, rollout: Rollout, version: int, marks: object, changes: list[Change]) -> OpenVersion | None:
        """The open version, opened if need be; None where it cannot be, reported once for each state of its files."""
        if version in rollout.open:
            return rollout.open[version]
        mark = _mark(marks, rollout.name, version)
        if self._known_bad(rollout, version, mark):
            return None
        try:
            opened = await self._versions.open(rollout.name, version, mark)
        except AWNetError as error:
            self._failed(rollout, version, mark, error, changes)
            return None
        self._outcome(rollout, version, "loaded", f"sha256 {opened.model.sha256[:12]}", changes)
        return opened

    async def _replace(self, rollout: Rollout, old: OpenVersion, mark: object, changes: list[Change]) -> None:
        """The files of an open version have changed: take them if they are good, else keep what is open."""
        version = old.model.version
        if self._known_bad(rollout, version, mark):
            return
        try:
            new = await self._versions.replace(old, mark)
        except AWNetError as error:
            self._failed(rollout, version, mark, error, changes)
            return
        if new is old:  # the same model
            self._tried[rollout.name].refused.pop(version, None)
            return
        rollout.replaced(old, new)
        self._outcome(rollout, version, "loaded", f"files replaced, sha256 {new.model.sha256[:12]}", changes)

    def _known_bad(self, rollout: Rollout, version: int, mark: object) -> bool:
        refused = self._tried[rollout.name].refused.get(version)
        return refused is not None and bool(refused[0] == mark)

    def _failed(self, rollout: Rollout, version: int, mark: object, error: AWNetError, changes: list[Change]) -> None:
        if isinstance(error, ModelNotFound) or _is_transient(error):
            # Nothing is known against the version: it has gone again, or the engine was away or full.
            self._retry = True
            result: ReloadResult = "absent" if isinstance(error, ModelNotFound) else "unavailable"
            self._outcome(rollout, version, result, error.detail, changes)
            return
        self._tried[rollout.name].refused[version] = (mark, error.detail)
        self._outcome(rollout, version, "refused", f"{error.title}: {error.detail}", changes)

    def _outcome(
        self, rollout: Rollout, version: int | None, result: ReloadResult, detail: str, changes: list[Change]
    ) -> None:
        """Add to `changes`, count, and log what is not 'loaded', unless it is known."""
        name, tried = rollout.name, self._tried[rollout.name]
        named = "" if version is None else str(version)
        changes.append({"model": name, "version": named, "result": result, "detail": detail})
        if result == "loaded":
            assert version is not None
            self._events.reload(name, result)
            tried.refused.pop(version, None)
            tried.reported = {key: text for key, text in tried.reported.items() if key[0] != version}
            return
        # A lasting state is reported once, however often it is found.
        news = tried.reported.get((version, result)) != detail
        tried.reported[version, result] = detail
        if news or result != "absent":
            self._events.reload(name, result)
        if news and name != self._unlogged:
            what = name if version is None else f"{name} version {version}"
            serving = f"version {rollout.serving.model.version} serves on" if rollout.serving else "nothing is served"
            log.error("%s %s: %s; %s", what, result, detail, serving)


def _is_transient(error: AWNetError) -> bool:
    """Whether `error`, or what made a self-test fail, is about the engine's state and not about the version."""
    cause = error if isinstance(error, Unavailable) else error.__cause__
    return isinstance(cause, Unavailable) and not isinstance(cause, EngineFault)


def _mark(marks: object, name: str, version: int) -> object:
    """The part of an engine's fingerprint that is about one version, where it has such parts, else all of it."""
    if isinstance(marks, tuple) and all(isinstance(entry, tuple) for entry in marks):
        return tuple(entry for entry in marks if entry[:2] == (name, version))
    return marks

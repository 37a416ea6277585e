"""Which version of which model answers: opening, proving, switching, splitting and closing them under load.

A version is read, opened, warmed and proven on its golden inputs *before* a request can reach it, so that whatever
is wrong with it leaves the old one serving. A version that answered last stays open until the requests that hold a
lease on it are done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from server.engine import Engine, Model, Runner, Signals, Terms, self_test
from server.errors import (
    AWNetError,
    EngineFault,
    ModelNotFound,
    NotReady,
    QueueFull,
    RequestError,
    StartupError,
    Unavailable,
    UnknownModel,
)
from server.events import Events, Result, Role
from server.images import Picture
from server.shadow import Shadow

log = logging.getLogger("awnet.lifecycle")

MILLIONTHS = 1_000_000  # shares are counted in these, so that the split is exact
PROOFS, PROOF_PAUSE_SECONDS = 20, 0.1  # a golden test that found the queue full is tried again


@dataclass(eq=False, slots=True)
class _Entry:
    """One open version."""

    runner: Runner
    model: Model
    mark: object  # of its files when it was opened
    leases: int = 0
    unused: asyncio.Event | None = None  # set once it is retired and the last lease has ended

    def hold(self) -> None:
        self.leases += 1

    def release(self) -> None:
        self.leases -= 1
        if self.leases == 0 and self.unused is not None:
            self.unused.set()


@dataclass(eq=False, slots=True)
class _Slot:
    """One model: its open versions by their names, the one that answers, those that answered before, oldest first."""

    name: str
    open: dict[str, _Entry] = field(default_factory=dict)
    serving: _Entry | None = None
    before: list[int] = field(default_factory=list)
    passed: int = 0  # versions up to this one are not taken of the server's own accord
    refused: dict[int, tuple[object, str]] = field(default_factory=dict)  # version -> (mark of its files, why)
    told: dict[tuple[int | None, Result], str] = field(default_factory=dict)  # logged about states that may last


class Lease:
    """The right to ask one version, for the length of a `with`; it is not closed in between."""

    __slots__ = ("_beside", "_entry", "_shadow", "model")

    def __init__(self, entry: _Entry, shadow: Shadow, beside: _Entry | None = None) -> None:
        self._entry = entry
        self._shadow = shadow
        self._beside = beside
        self.model = entry.model

    def __enter__(self) -> Lease:
        self._entry.hold()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entry.release()

    def infer(self, pictures: Sequence[Picture], terms: Terms) -> Coroutine[Any, Any, Signals]:
        """`Runner.infer` of the leased version, to be awaited; the shadow, if any, is asked after it has answered."""
        beside = self._beside
        if beside is None or beside.unused is not None:
            return self._entry.runner.infer(pictures, terms)
        return self._shadow.infer(self._entry, beside, pictures, terms)


class Models:
    """The open versions of the configured models. Everything runs on the thread of one event loop.

    Args:
        engine: where versions are opened; started and closed by this object.
        default: the model that answers where a request names none.
        others: further models.
        pinned: version of the default model; None takes the highest, and every higher one that appears.
        kept: versions of a model that are kept open, the serving one included.
        canary: (version, share from 0 to 1) of the default model's unversioned requests.
        shadow: version of the default model that answers them as well, only to be compared.
        events: is told what happens.
        capacity: images that the engine accepts; the shadow keeps to a part of it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        default: str,
        others: Sequence[str] = (),
        pinned: int | None = None,
        kept: int = 2,
        canary: tuple[int, float] | None = None,
        shadow: int | None = None,
        events: Events | None = None,
        capacity: int = 256,
    ) -> None:
        self._engine = engine
        self._events = events or Events()
        self._slots = {name: _Slot(name) for name in (default, *others)}
        self._main = self._slots[default]
        self._pinned = pinned
        self._kept = max(1, kept)
        self._canary: int | None = None
        self._share = 0  # millionths
        self._owed = 0  # millionths of a request that the canary has not been given yet
        self._beside = shadow
        if canary is not None:
            self._canary, self._share = canary[0], _millionths(canary[1])
        self._canary_entry: _Entry | None = None
        self._shadow_entry: _Entry | None = None
        self._shadow = Shadow(engine, self._events, capacity)
        self._changing = asyncio.Lock()
        self._retiring: dict[asyncio.Task[None], tuple[str, str]] = {}
        self._seen: object = None
        self._unsettled = False  # something could not be tried and may be later, without any file changing
        self._started = False
        self._closed = False

    # Requests.

    @property
    def ready(self) -> bool:
        """Whether all that is configured has been tried and the default model answers."""
        return self._started and not self._closed

    def lease(self, name: str | None = None, version: str | None = None) -> Lease:
        """The version that answers this request; enter it at once.

        Raises:
            UnknownModel: no such model, or that version of it is not open.
            NotReady: the model has no version that can be served.
        """
        slot = self._main if name is None else self._slot(name)
        serving = slot.serving
        if serving is None or not self._started or self._closed:
            raise NotReady(f"the model {slot.name} is not ready")
        if version is not None:
            entry = slot.open.get(version)
            if entry is None:
                known = ", ".join(sorted(slot.open, key=int))
                raise UnknownModel(f"version {version[:40]!r} of {slot.name} is not served; there are {known}")
            return Lease(entry, self._shadow)
        if slot is not self._main:
            return Lease(serving, self._shadow)
        if self._canary_entry is not None:
            # Error diffusion: after n requests the canary has had n times its share, rounded down.
            self._owed += self._share
            if self._owed >= MILLIONTHS:
                self._owed -= MILLIONTHS
                return Lease(self._canary_entry, self._shadow)
        return Lease(serving, self._shadow, self._shadow_entry)

    def loaded(self) -> dict[str, dict[str, Model]]:
        """The open versions of each model, ascending."""
        return {
            slot.name: {version: slot.open[version].model for version in sorted(slot.open, key=int)}
            for slot in self._slots.values()
        }

    def latest(self, name: str | None = None) -> Model:
        """The version that answers unversioned requests. Raises UnknownModel, NotReady."""
        slot = self._main if name is None else self._slot(name)
        if slot.serving is None or not self.ready:
            raise NotReady(f"the model {slot.name} is not ready")
        return slot.serving.model

    # Changes, one at a time.

    async def start(self) -> None:
        """Open what is configured. Where the newest version cannot be served, an older one is, as in a reload.

        Raises:
            StartupError: no version of the default model, or not the pinned one, can be served.
        """
        async with self._changing:
            await self._engine.start()
            report = await self._reload()
            if self._main.serving is None:
                raise StartupError(_why(self._main, report, self._pinned))
            self._events.canary(self._main.name, _named(self._canary), self._share / MILLIONTHS)
            self._started = True
            for change in report:  # newer versions that were passed over
                if change["model"] == self._main.name and change["result"] != "loaded":
                    log.error("%(model)s version %(version)s %(result)s: %(detail)s", change)

    async def reload(self) -> dict[str, Any]:
        """Look at the repository again and take what is new; what cannot be taken changes nothing.

        Returns:
            {"changes": [{"model", "version", "result", "detail"}, ...]}; the result is one of `events.Result`.
        """
        async with self._changing:
            changes = await self._reload()
            if not changes:
                for name in self._slots:
                    self._events.reload(name, "unchanged")
            return {"changes": changes}

    async def watch(self, seconds: float) -> None:
        """Reload whenever the engine's fingerprint has changed; looks every `seconds`, for ever."""
        failing = ""
        while True:
            await asyncio.sleep(seconds)
            try:
                mark = await self._engine.fingerprint()
                if mark != self._seen or self._unsettled:
                    async with self._changing:
                        await self._reload()
                failing = ""
            except Exception as error:  # polling outlives whatever is wrong at the moment
                if failing != (failing := f"looking for new versions failed: {error}"):
                    log.error("%s", failing)

    async def rollback(self, name: str | None = None) -> dict[str, Any]:
        """Let the version answer that did before; the one left stays open and is not taken again by itself.

        Raises:
            UnknownModel: no such model, or nothing to go back to.
            StartupError: the earlier version had to be opened again, and could not be.
        """
        async with self._changing:
            slot = self._slot(name)
            serving = int(self.latest(slot.name).version)
            earlier = [*reversed(slot.before), *self._below(slot, serving)]
            if not earlier:
                raise UnknownModel(f"{slot.name} has no version before {serving} to go back to")
            target = next((version for version in earlier if str(version) in slot.open), earlier[0])
            entry = await self._ensure(slot, target)
            slot.passed = max(slot.passed, serving)
            if target in slot.before:
                del slot.before[len(slot.before) - 1 - slot.before[::-1].index(target) :]
            self._trust(slot, target)
            self._switch(slot, entry, remember=False)
            self._settle(slot)
            log.warning("%s rolled back from version %d to %d", slot.name, serving, target)
            return self.status()

    async def promote(self, name: str | None, version: int) -> dict[str, Any]:
        """Let `version` answer, newer or older; others are taken by themselves only where they are newer than all
        that answered.

        Raises:
            UnknownModel: no such model.
            StartupError: the version cannot be served; nothing has changed.
        """
        async with self._changing:
            slot = self._slot(name)
            serving = int(self.latest(slot.name).version)
            entry = await self._ensure(slot, version)
            slot.passed = max(slot.passed, serving)
            self._trust(slot, version)
            self._switch(slot, entry)
            self._settle(slot)
            log.warning("%s serves version %d by request", slot.name, version)
            return self.status()

    async def set_canary(self, version: int | None, share: float = 0.0) -> dict[str, Any]:
        """Give `share` of the default model's unversioned requests to `version`; None ends the split.

        Raises:
            ValueError: the share is not from 0 to 1.
            RequestError: that version serves already.
            StartupError: the version cannot be served; nothing has changed.
        """
        millionths = _millionths(share)
        async with self._changing:
            await self._set_apart(version)
            self._set_canary(version, millionths)
            self._settle(self._main)
            return self.status()

    async def set_shadow(self, version: int | None) -> dict[str, Any]:
        """Let `version` answer the default model's unversioned requests too; None ends it.

        Raises:
            RequestError: that version serves already.
            StartupError: the version cannot be served; nothing has changed.
        """
        async with self._changing:
            await self._set_apart(version)
            self._beside = version
            self._settle(self._main)
            return self.status()

    def course(self) -> dict[str, Any]:
        """What another worker needs to serve as this one does; see `adopt`."""
        return {
            "models": {
                slot.name: {
                    "serving": int(slot.serving.model.version) if slot.serving else None,
                    "passed": slot.passed,
                    "before": slot.before,
                }
                for slot in self._slots.values()
            },
            "canary": self._canary,
            "share": self._share / MILLIONTHS,
            "shadow": self._beside,
        }

    async def adopt(self, course: Mapping[str, Any]) -> None:
        """Serve as the worker does whose `course` this is: operators may have told it what no setting says.

        What cannot be opened is logged and left as it is; `status` then differs from the other worker's.
        """
        async with self._changing:
            for name, told in course["models"].items():
                slot = self._slots[name]
                try:
                    if told["serving"] is None or slot.serving is None:
                        continue
                    entry = await self._ensure(slot, told["serving"])
                except StartupError as error:
                    log.error("%s version %d serves in the other workers, not here: %s", name, told["serving"], error)
                    continue
                slot.passed = told["passed"]
                self._switch(slot, entry, remember=False)
                slot.before = list(told["before"])
                self._settle(slot)
            self._seen = None  # what is newer here than there is taken at the next look, as there
        for change in (
            None if self._same_canary(course) else self.set_canary(course["canary"], course["share"]),
            None if self._beside == course["shadow"] else self.set_shadow(course["shadow"]),
        ):
            try:
                if change is not None:
                    await change
            except AWNetError as error:
                log.error("canary or shadow of the other workers: %s", error.detail)

    def _same_canary(self, course: Mapping[str, Any]) -> bool:
        return bool((self._canary, self._share) == (course["canary"], _millionths(course["share"])))

    def status(self) -> dict[str, Any]:
        """All of it, for whoever operates the server."""
        models = []
        for slot in self._slots.values():
            roles = self._roles(slot)
            models.append(
                {
                    "name": slot.name,
                    "default": slot is self._main,
                    "serving": slot.serving.model.version if slot.serving else None,
                    "versions": [
                        {
                            "version": version,
                            "role": roles[version],
                            "sha256": slot.open[version].model.sha256,
                            "leases": slot.open[version].leases,
                        }
                        for version in sorted(slot.open, key=int)
                    ],
                    "refused": [
                        {"version": str(version), "detail": why} for version, (_, why) in sorted(slot.refused.items())
                    ],
                    "not_taken_up_to": str(slot.passed) if slot.passed else None,
                }
            )
        canary = {"version": str(self._canary), "share": self._share / MILLIONTHS} if self._canary else None
        return {"models": models, "canary": canary, "shadow": _named(self._beside), "closing": len(self._retiring)}

    async def close(self) -> None:
        """End the shadow, wait for the leases, close every version and the engine."""
        self._closed = True
        async with self._changing:
            await self._shadow.stop()
            for slot in self._slots.values():
                for version in tuple(slot.open):
                    self._retire(slot, version)
                slot.serving = None
            self._canary_entry = self._shadow_entry = None
            if self._retiring:
                await asyncio.wait(tuple(self._retiring))
            await self._engine.close()

    # The rest is called with `_changing` held.

    async def _reload(self) -> list[dict[str, str]]:
        mark = await self._engine.fingerprint()  # before anything is read, so that no later change is missed
        self._unsettled = False
        changes: list[dict[str, str]] = []
        try:
            catalogue = await self._engine.catalogue()
        except AWNetError as error:
            self._unsettled = True
            result: Result = "unavailable" if isinstance(error, Unavailable) else "absent"
            for slot in self._slots.values():
                self._outcome(slot, None, result, error.detail, changes)
            return changes
        for slot in self._slots.values():
            slot.told.pop((None, "absent"), None)
            slot.told.pop((None, "unavailable"), None)
            listed = catalogue.get(slot.name, ())
            versions = [version for version in listed if _mark(mark, slot.name, version) != ()]
            if len(versions) < len(listed):
                self._unsettled = True  # it appeared in between: its mark is known the next time
            await self._renew(slot, versions, mark, changes)
        self._seen = mark
        return changes

    async def _renew(self, slot: _Slot, versions: Sequence[int], marks: object, changes: list[dict[str, str]]) -> None:
        for gone in set(slot.refused) - set(versions):
            del slot.refused[gone]
        for version in sorted(map(int, slot.open)):
            entry = slot.open[str(version)]
            if version in versions and entry.mark != (mark := _mark(marks, slot.name, version)):
                await self._replace(slot, entry, mark, changes)

        serving = int(slot.serving.model.version) if slot.serving else 0
        if serving in versions:
            slot.told.pop((serving, "absent"), None)
        elif serving:
            self._outcome(slot, serving, "absent", "its files are gone; it serves on", changes)
        apart = (self._canary, self._beside) if slot is self._main else ()
        pinned = self._pinned if slot is self._main else None
        if pinned is not None:
            wanted: Iterable[int] = () if serving else (pinned,)
        else:
            # A canary or a shadow is not to be trusted with everything, unless there is nothing else.
            wanted = [v for v in reversed(versions) if v > max(serving, slot.passed) and v not in apart]
            if not serving:
                wanted = [*wanted, *(v for v in reversed(versions) if v in apart)]
        for version in wanted:
            entry_or_none = await self._take(slot, version, marks, changes)
            if entry_or_none is not None:
                self._switch(slot, entry_or_none)
                break
        if slot.serving is None:
            if not versions:
                self._outcome(slot, None, "absent", "there is no version of it", changes)
            return
        for special in apart:
            if special is not None:
                await self._take(slot, special, marks, changes)
        self._settle(slot)  # frees what is not wanted any more before anything else is opened
        below = [v for v in reversed(versions) if v < int(slot.serving.model.version) and v not in apart]
        for version in below:
            if len([v for v in slot.open if int(v) not in apart]) >= self._kept:
                break
            await self._take(slot, version, marks, changes)
        self._settle(slot)

    async def _take(self, slot: _Slot, version: int, marks: object, changes: list[dict[str, str]]) -> _Entry | None:
        """The open version, opened if need be; None where it cannot be, which is told once for each state of its
        files."""
        if str(version) in slot.open:
            return slot.open[str(version)]
        mark = _mark(marks, slot.name, version)
        refused = slot.refused.get(version)
        if refused is not None and refused[0] == mark:
            return None
        try:
            entry = await self._open(slot, version, mark)
        except AWNetError as error:
            self._failed(slot, version, mark, error, changes)
            return None
        slot.open[str(version)] = entry
        self._outcome(slot, version, "loaded", f"sha256 {entry.model.sha256[:12]}", changes)
        return entry

    async def _replace(self, slot: _Slot, entry: _Entry, mark: object, changes: list[dict[str, str]]) -> None:
        """The files of an open version have changed: take them if they are good, else keep what is open."""
        version = int(entry.model.version)
        refused = slot.refused.get(version)
        if refused is not None and refused[0] == mark:
            return
        try:
            new = await self._open(slot, version, mark)
        except AWNetError as error:
            self._failed(slot, version, mark, error, changes)
            return
        if new.model.sha256 == entry.model.sha256:
            entry.mark = mark  # touched or signed, the same model
            await new.runner.close()
            return
        slot.open[str(version)] = new
        if slot.serving is entry:
            slot.serving = new
        self._aim(slot)
        self._retire_entry(slot, entry)
        self._outcome(slot, version, "loaded", f"files replaced, sha256 {new.model.sha256[:12]}", changes)

    async def _open(self, slot: _Slot, version: int, mark: object) -> _Entry:
        """Read, load, warm and prove a version. Raises AWNetError; a fault that nobody foresaw becomes one."""
        leaving = [task for task, key in self._retiring.items() if key == (slot.name, str(version))]
        if leaving:
            await asyncio.wait(leaving)  # an engine need not tell two of one version apart
        begun = time.perf_counter()
        runner: Runner | None = None
        try:
            runner = await self._engine.open(slot.name, version)
            await runner.warm()
            await _prove(runner)
        except BaseException as error:
            if runner is not None:
                await runner.close()
            if isinstance(error, AWNetError) or not isinstance(error, Exception):
                raise
            log.exception("version %d of %s could not be opened", version, slot.name)
            raise StartupError(f"{type(error).__name__}: {error}") from error
        slot.refused.pop(version, None)
        self._events.opened(runner.model)
        log.info(
            "opened: %s version %d, sha256 %s, golden self-test passed, %.0f ms",
            slot.name,
            version,
            runner.model.sha256[:12],
            1000 * (time.perf_counter() - begun),
        )
        return _Entry(runner, runner.model, mark)

    def _failed(
        self, slot: _Slot, version: int, mark: object, error: AWNetError, changes: list[dict[str, str]]
    ) -> None:
        if isinstance(error, ModelNotFound) or _passing(error):
            # Nothing is known against the version: it has gone again, or the engine was away or full.
            self._unsettled = True
            result: Result = "absent" if isinstance(error, ModelNotFound) else "unavailable"
            self._outcome(slot, version, result, error.detail, changes)
            return
        slot.refused[version] = (mark, error.detail)
        self._outcome(slot, version, "refused", f"{error.title}: {error.detail}", changes)

    def _outcome(
        self, slot: _Slot, version: int | None, result: Result, detail: str, changes: list[dict[str, str]]
    ) -> None:
        changes.append({"model": slot.name, "version": _named(version) or "", "result": result, "detail": detail})
        if result == "loaded":
            self._events.reload(slot.name, result)
            slot.told = {key: text for key, text in slot.told.items() if key[0] != version}
            return
        # A state that lasts is told once, however often it is found.
        news = slot.told.get((version, result)) != detail
        slot.told[version, result] = detail
        if news or result != "absent":
            self._events.reload(slot.name, result)
        if news and (self._started or slot is not self._main):  # whoever starts the server is told in one line
            what = slot.name if version is None else f"{slot.name} version {version}"
            serving = f"version {slot.serving.model.version} serves on" if slot.serving else "nothing is served"
            log.error("%s %s: %s; %s", what, result, detail, serving)

    async def _set_apart(self, version: int | None) -> None:
        """Open what is to be canary or shadow. Raises RequestError, StartupError."""
        if version is None:
            return
        if str(version) == self.latest().version:
            raise RequestError(f"version {version} of {self._main.name} is the one that serves")
        await self._ensure(self._main, version)

    async def _ensure(self, slot: _Slot, version: int) -> _Entry:
        """The version, open; asked for by a person, so also one that was refused. Raises StartupError."""
        entry = slot.open.get(str(version))
        if entry is not None:
            return entry
        mark = _mark(await self._engine.fingerprint(), slot.name, version)
        changes: list[dict[str, str]] = []
        try:
            entry = await self._open(slot, version, mark)
        except StartupError as error:
            self._failed(slot, version, mark, error, changes)
            raise
        slot.open[str(version)] = entry
        self._outcome(slot, version, "loaded", "asked for", changes)
        return entry

    def _switch(self, slot: _Slot, entry: _Entry, *, remember: bool = True) -> None:
        """From here on `entry` answers. One assignment: no request sees anything in between."""
        old = slot.serving
        if old is entry:
            return
        slot.serving = entry
        if old is not None and remember:
            slot.before.append(int(old.model.version))
            del slot.before[:-8]
        log.info("%s is served by version %s", slot.name, entry.model.version)

    def _trust(self, slot: _Slot, version: int) -> None:
        """It is to serve, and so is canary and shadow no longer."""
        if slot is self._main and version == self._canary:
            self._set_canary(None, 0)
        if slot is self._main and version == self._beside:
            self._beside = None

    def _aim(self, slot: _Slot) -> None:
        """Bring canary and shadow to what is open; in one go with whatever changed that."""
        if slot is self._main:
            canary, shadow = slot.open.get(str(self._canary)), slot.open.get(str(self._beside))
            self._canary_entry = canary if canary is not slot.serving else None
            self._shadow_entry = shadow if shadow is not slot.serving else None

    def _settle(self, slot: _Slot) -> None:
        """Bring canary and shadow to what is open, and retire what nobody needs."""
        serving = slot.serving
        assert serving is not None
        apart = (self._canary, self._beside) if slot is self._main else ()
        self._aim(slot)
        current = int(serving.model.version)
        others = [int(v) for v in slot.open if int(v) != current and int(v) not in apart]
        # Those that answered before come first, the last one foremost: going back to it must not need the disk.
        recent = {version: place for place, version in enumerate(slot.before)}
        others.sort(key=lambda v: (recent.get(v, -1), v), reverse=True)
        for version in others[self._kept - 1 :]:
            self._retire(slot, str(version))
        self._events.roles(slot.name, self._roles(slot))

    def _roles(self, slot: _Slot) -> dict[str, Role]:
        roles: dict[str, Role] = {}
        for version, entry in slot.open.items():
            if entry is slot.serving:
                roles[version] = "serving"
            elif entry is self._canary_entry:
                roles[version] = "canary"
            elif entry is self._shadow_entry:
                roles[version] = "shadow"
            else:
                roles[version] = "kept"
        return roles

    def _retire(self, slot: _Slot, version: str) -> None:
        self._retire_entry(slot, slot.open.pop(version))

    def _retire_entry(self, slot: _Slot, entry: _Entry) -> None:
        """No new request reaches `entry`; close it after those that hold it."""
        entry.unused = asyncio.Event()
        if entry.leases == 0:
            entry.unused.set()
        task = asyncio.create_task(self._close_unused(slot, entry, entry.unused))
        self._retiring[task] = (slot.name, entry.model.version)
        task.add_done_callback(self._retiring.pop)

    async def _close_unused(self, slot: _Slot, entry: _Entry, unused: asyncio.Event) -> None:
        await unused.wait()
        try:
            await entry.runner.close()
        except Exception:
            log.exception("closing version %s of %s failed", entry.model.version, slot.name)
        if entry.model.version not in slot.open:  # it may have been opened again meanwhile
            self._events.closed(entry.model)
        log.info("closed: %s version %s", slot.name, entry.model.version)

    def _set_canary(self, version: int | None, share: int) -> None:
        self._canary, self._share, self._owed = version, share if version is not None else 0, 0
        self._events.canary(self._main.name, _named(version), self._share / MILLIONTHS)

    def _slot(self, name: str | None) -> _Slot:
        slot = self._main if name is None else self._slots.get(name)
        if slot is None:
            raise UnknownModel(f"there is no model {name[:40] if name else ''!r}; there are {', '.join(self._slots)}")
        return slot

    def _below(self, slot: _Slot, version: int) -> list[int]:
        """Open versions lower than `version` that could serve, the highest first."""
        apart = (self._canary, self._beside) if slot is self._main else ()
        return sorted((v for v in map(int, slot.open) if v < version and v not in apart), reverse=True)


async def _prove(runner: Runner) -> None:
    """The golden self-test, tried again while the engine is too full to run it."""
    for attempt in range(PROOFS):
        try:
            await self_test(runner)
            return
        except StartupError as error:
            if not isinstance(error.__cause__, QueueFull) or attempt == PROOFS - 1:
                raise
        await asyncio.sleep(PROOF_PAUSE_SECONDS)


def _passing(error: AWNetError) -> bool:
    """Whether `error`, or what made a self-test fail, is about the engine's state and not about the version."""
    told = error if isinstance(error, Unavailable) else error.__cause__
    return isinstance(told, Unavailable) and not isinstance(told, EngineFault)


def _mark(marks: object, name: str, version: int) -> object:
    """The part of an engine's fingerprint that is about one version, where it has such parts, else all of it."""
    if isinstance(marks, tuple) and all(isinstance(entry, tuple) for entry in marks):
        return tuple(entry for entry in marks if entry[:2] == (name, version))
    return marks


def _millionths(share: float) -> int:
    if not 0 <= share <= 1:
        raise ValueError("a share is a number from 0 to 1")
    return round(share * MILLIONTHS)


def _named(version: int | None) -> str | None:
    return None if version is None else str(version)


def _why(slot: _Slot, changes: Sequence[Mapping[str, str]], pinned: int | None) -> str:
    """One line for whoever starts a server whose model cannot be served."""
    mine = [change for change in changes if change["model"] == slot.name and change["result"] != "loaded"]
    if mine:
        first = mine[0]
        what = f"{slot.name} version {first['version']}" if first["version"] else slot.name
        return f"{what} cannot be served: {first['detail']}"
    return f"{slot.name} cannot be served"

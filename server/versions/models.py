"""The models of the service: leases versions to requests and carries out admin calls, one change at a time.

A version is read, opened, warmed and tested on its golden inputs *before* a request can reach it, so that a faulty
version leaves the old one serving. `open_versions` opens and closes, `rollout` assigns roles, `reload` loads new
versions; this module serialises the changes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from ..core.engine import Engine, Model
from ..core.modes import Mode
from ..errors import AWNetError, NotReady, RequestError, StartupError, UnknownModel
from .events import Events
from .open_versions import OpenVersions
from .reload import Change, Reload
from .rollout import Lease, Rollout, millionths
from .shadow import ShadowComparer

log = logging.getLogger("awnet.versions")


class Models:
    """The open versions of the configured models. Everything runs on the thread of one event loop.

    Args:
        engine: opens versions; started and closed by this object.
        default: the model of requests that name none.
        others: further models.
        pinned: version of the default model; None serves the highest, and every higher one that appears.
        kept: versions of a model that stay open, the serving one included.
        canary: (version, share from 0 to 1) of the default model's unversioned requests.
        shadow: version of the default model that answers them as well, only to be compared.
        events: receives what happens.
        capacity: images that the engine accepts; the shadow uses a part of it.
        mode: of requests that name none; versions that lack it are not opened.
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
        mode: Mode = "auto",
    ) -> None:
        self._engine = engine
        self._events = events or Events()
        self._versions = OpenVersions(
            engine, self._events, mode, answering=lambda: self.ready, leisure=lambda: not self._hurried
        )
        self._comparer = ShadowComparer(engine, self._events, capacity)

        def rollout(name: str, **roles: Any) -> Rollout:
            return Rollout(name, self._versions, self._comparer, self._events, kept=kept, **roles)

        self._main = rollout(default, pinned=pinned, canary=canary, shadow=shadow)
        self._rollouts = {default: self._main} | {name: rollout(name) for name in others if name != default}
        self._reload = Reload(engine, self._versions, self._rollouts, self._events, unlogged=default)
        self._changing = asyncio.Lock()  # held while anything changes
        self._hurried = 0  # those who wait for what is being opened
        self._started = False
        self._closed = False

    # Requests.

    @property
    def ready(self) -> bool:
        """Whether all configured models have been tried and the default model serves."""
        return self._started and not self._closed

    def lease(self, name: str | None = None, version: int | None = None, mode: str = "auto") -> Lease:
        """The version that answers this request in `mode`; enter it at once.

        Raises:
            UnknownModel: no such model, or that version of it is not open.
            UnknownMode: the version has no such mode.
            NotReady: the model has no version that can be served.
        """
        return self._answering(name).lease(version, mode)

    def loaded(self) -> dict[str, dict[int, Model]]:
        """The open versions of each model, ascending."""
        return {
            name: {version: rollout.open[version].model for version in sorted(rollout.open)}
            for name, rollout in self._rollouts.items()
        }

    def find(self, name: str | None = None, version: int | None = None) -> Model:
        """The version that `lease` would give, without a canary. Raises as `lease`."""
        return self.latest(name) if version is None else self.lease(name, version).model

    def latest(self, name: str | None = None) -> Model:
        """The version that answers unversioned requests. Raises UnknownModel, NotReady."""
        return self._answering(name).current().model

    def _answering(self, name: str | None) -> Rollout:
        """The model, which has a version that serves. Raises UnknownModel, NotReady."""
        rollout = self._main if name is None else self._rollouts.get(name)
        if rollout is None:
            known = ", ".join(self._rollouts)
            raise UnknownModel(f"there is no model {name[:40] if name else ''!r}; there are {known}")
        if rollout.serving is None or not self.ready:
            raise NotReady(f"the model {rollout.name} is not ready")
        return rollout

    # Changes.

    async def start(self) -> None:
        """Open what is configured. Where the newest version cannot be served, an older one is, as in a reload.

        Raises:
            StartupError: no version of the default model, or not the pinned one, can be served.
        """
        async with self._changing:
            await self._engine.start()
            changes = await self._reload.run()
            passed_over = [c for c in changes if c["model"] == self._main.name and c["result"] != "loaded"]
            if self._main.serving is None:
                raise StartupError(_why(self._main.name, passed_over))
            self._main.report_split()
            self._started = True
            self._reload.log_all()
            for change in passed_over:
                log.error("%(model)s version %(version)s %(result)s: %(detail)s", change)

    async def reload(self) -> dict[str, Any]:
        """Check the repository and load what is new; what cannot be loaded changes nothing.

        Returns:
            {"changes": [{"model", "version", "result", "detail"}, ...]}; the result is one of `events.ReloadResult`.
        """
        async with self._changing:
            changes = await self._reload.run()
            if not changes:
                for name in self._rollouts:
                    self._events.reload(name, "unchanged")
            return {"changes": changes}

    async def poll(self, seconds: float) -> None:
        """Reload whenever the engine's fingerprint has changed; looks every `seconds`, for ever."""
        failing = ""
        while True:
            await asyncio.sleep(seconds)
            try:
                if await self._reload.due():
                    async with self._changing:
                        await self._reload.run()
                failing = ""
            except Exception as error:  # polling outlives whatever is wrong at the moment
                if failing != (failing := f"looking for new versions failed: {error}"):
                    log.error("%s", failing)

    async def rollback(self, name: str | None = None) -> dict[str, Any]:
        """Serve the previous version; the present one stays open and is not loaded automatically again.

        Raises:
            UnknownModel: no such model, or nothing to go back to.
            StartupError: the earlier version had to be opened again, and could not be.
        """
        async with self._turn():
            rollout = self._answering(name)
            left = rollout.current().model.version
            target = rollout.previous()
            rollout.go_back(await self._reload.ensure(rollout, target))
            log.warning("%s rolled back from version %d to %d", rollout.name, left, target)
            return self.status()

    async def promote(self, name: str | None, version: int) -> dict[str, Any]:
        """Serve `version`, newer or older; others are loaded automatically only where they are newer than all
        that served.

        Raises:
            UnknownModel: no such model.
            StartupError: the version cannot be served; nothing has changed.
        """
        async with self._turn():
            rollout = self._answering(name)
            rollout.promote(await self._reload.ensure(rollout, version))
            log.warning("%s serves version %d by request", rollout.name, version)
            return self.status()

    async def set_canary(self, version: int | None, share: float = 0.0) -> dict[str, Any]:
        """Give `share` of the default model's unversioned requests to `version`; None ends the split.

        Raises:
            ValueError: the share is not from 0 to 1.
            RequestError: that version serves already.
            StartupError: the version cannot be served; nothing has changed.
        """
        exact = millionths(share)
        async with self._turn():
            await self._set_apart(version)
            self._main.split(version, exact)
            self._main.apply_roles()
            return self.status()

    async def set_shadow(self, version: int | None) -> dict[str, Any]:
        """Make `version` the shadow of the default model; None ends it.

        Raises:
            RequestError: that version serves already.
            StartupError: the version cannot be served; nothing has changed.
        """
        async with self._turn():
            await self._set_apart(version)
            self._main.compare(version)
            self._main.apply_roles()
            return self.status()

    @contextmanager
    def _hurrying(self) -> Iterator[None]:
        """What is opened meanwhile has not the time of the background."""
        self._hurried += 1
        try:
            yield
        finally:
            self._hurried -= 1

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Of a change that somebody waits for, or of the end; what is opened for the change before it is hurried."""
        with self._hurrying():
            await self._changing.acquire()
        try:
            yield
        finally:
            self._changing.release()

    async def _set_apart(self, version: int | None) -> None:
        """Open what is to be canary or shadow. Raises RequestError, StartupError."""
        if version is None:
            return
        if version == self.latest().version:
            raise RequestError(f"version {version} of {self._main.name} is the one that serves")
        await self._reload.ensure(self._main, version)

    async def close(self) -> None:
        """End the shadow, wait for the leases, close every version and the engine."""
        self._closed = True
        async with self._turn():
            await self._comparer.stop()
            for rollout in self._rollouts.values():
                rollout.close()
            await self._versions.closed()
            await self._engine.close()

    # Status, for operators and other workers.

    def state(self) -> dict[str, Any]:
        """What another worker needs to serve as this one does; see `adopt`."""
        return {
            "models": {
                name: {
                    "serving": rollout.serving.model.version if rollout.serving else None,
                    "not_taken_up_to": rollout.not_taken_up_to,
                    "history": list(rollout.history),
                }
                for name, rollout in self._rollouts.items()
            },
            "canary": self._main.canary,
            "share": self._main.share,
            "shadow": self._main.shadow,
        }

    async def adopt(self, state: Mapping[str, Any]) -> None:
        """Serve the versions of another worker, whose `state` this is: admin calls may have changed what settings say.

        What cannot be opened is logged and left as it is; `status` then differs from the other worker's. Nothing
        is opened in the background: this worker answers nobody yet.
        """
        with self._hurrying():
            await self._adopt(state)

    async def _adopt(self, state: Mapping[str, Any]) -> None:
        async with self._changing:
            for name, theirs in state["models"].items():
                rollout = self._rollouts[name]
                if theirs["serving"] is None or rollout.serving is None:
                    continue
                try:
                    opened = await self._reload.ensure(rollout, theirs["serving"])
                except StartupError as error:
                    log.error("%s version %d serves in the other workers, not here: %s", name, theirs["serving"], error)
                    continue
                rollout.follow(opened, theirs["not_taken_up_to"], theirs["history"])
            self._reload.forget()  # what is newer here than there is taken at the next look, as there
        canary, share, shadow = state["canary"], state["share"], state["shadow"]
        for change in (
            None if (self._main.canary, self._main.share) == (canary, share) else self.set_canary(canary, share),
            None if self._main.shadow == shadow else self.set_shadow(shadow),
        ):
            try:
                if change is not None:
                    await change
            except AWNetError as error:
                log.error("canary or shadow of the other workers: %s", error.detail)

    def status(self) -> dict[str, Any]:
        """Models, versions, roles and leases for operators; a JSON document, so versions are text."""
        canary, shadow = self._main.canary, self._main.shadow
        return {
            "models": [self._status(rollout) for rollout in self._rollouts.values()],
            "canary": {"version": str(canary), "share": self._main.share} if canary else None,
            "shadow": None if shadow is None else str(shadow),
            "closing": self._versions.closing,
        }

    def _status(self, rollout: Rollout) -> dict[str, Any]:
        roles = rollout.roles()
        return {
            "name": rollout.name,
            "default": rollout is self._main,
            "serving": str(rollout.serving.model.version) if rollout.serving else None,
            "versions": [
                {
                    "version": str(version),
                    "role": roles[version],
                    "sha256": rollout.open[version].model.sha256,
                    "modes": list(rollout.open[version].model.contract.modes),
                    "leases": rollout.open[version].leases,
                }
                for version in sorted(rollout.open)
            ],
            "refused": [
                {"version": str(version), "detail": why} for version, why in self._reload.refused(rollout.name)
            ],
            "not_taken_up_to": str(rollout.not_taken_up_to) if rollout.not_taken_up_to else None,
        }


def _why(name: str, failed: Sequence[Change]) -> str:
    """Why the default model cannot be served, in one line for the operator."""
    if failed:
        first = failed[0]
        what = f"{name} version {first['version']}" if first["version"] else name
        return f"{what} cannot be served: {first['detail']}"
    return f"{name} cannot be served"

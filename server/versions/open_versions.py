"""Opens and closes versions: only tested versions can be leased, and a version is closed only after its last lease.

Opening is reading, loading, warming and the golden self-test. A retired version stays open until the requests that
hold it are done. `rollout` decides the role of each version.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..core.engine import Engine, Leisure, Model, Runner, Terms, self_test
from ..core.modes import Mode
from ..errors import AWNetError, ContractError, StartupError
from .events import Events

log = logging.getLogger("awnet.versions")


@dataclass(eq=False, slots=True)
class OpenVersion:
    """One open version, warm and tested. It is not closed between `hold` and `release`."""

    runner: Runner
    model: Model
    mark: object  # of its files when it was opened
    leases: int = 0
    unused: asyncio.Event | None = None  # set once it is retired and the last lease has ended

    @property
    def retired(self) -> bool:
        return self.unused is not None

    def hold(self) -> None:
        self.leases += 1

    def release(self) -> None:
        self.leases -= 1
        if self.leases == 0 and self.unused is not None:
            self.unused.set()


class OpenVersions:
    """Opens and closes versions in an engine.

    Of `open` and `replace` one runs at a time; the caller sees to that.

    Args:
        engine: opens versions.
        events: receives what was opened and closed.
        mode: that every version must have.
        answering: whether requests are answered by now; versions are then opened in the background.
        leisure: whether nobody waits for that.
    """

    def __init__(
        self, engine: Engine, events: Events, mode: Mode, answering: Callable[[], bool], leisure: Leisure
    ) -> None:
        self._engine = engine
        self._events = events
        self._mode = mode
        self._answering = answering
        self._leisure = leisure
        self._open: defaultdict[str, dict[int, OpenVersion]] = defaultdict(dict)  # by model and version
        self._retiring: dict[asyncio.Task[None], tuple[str, int]] = {}

    def of(self, name: str) -> Mapping[int, OpenVersion]:
        """The open versions of the model `name`; follows every change."""
        return self._open[name]

    @property
    def closing(self) -> int:
        """Retired versions that are not closed yet."""
        return len(self._retiring)

    async def open(self, name: str, version: int, mark: object) -> OpenVersion:
        """Read, load, warm and test a version that is not open. Raises AWNetError; then nothing has changed."""
        opened = await self._proven(name, version, mark)
        self._open[name][version] = opened
        return opened

    async def replace(self, old: OpenVersion, mark: object) -> OpenVersion:
        """Open the version again, from files that are no longer those of `old`, and retire `old`.

        Returns:
            What is open now: `old` with its new mark, where the files hold the same model (touched, or signed).

        Raises:
            AWNetError: the files are no good; `old` stays.
        """
        name = old.model.name
        new = await self._proven(name, old.model.version, mark)
        if new.model.sha256 == old.model.sha256:
            old.mark = mark
            await new.runner.close()
            return old
        self._open[name][old.model.version] = new
        self.retire(old)
        return new

    def retire(self, opened: OpenVersion) -> None:
        """No new request reaches `opened`; it is closed after those that hold it."""
        name, version = opened.model.name, opened.model.version
        if self._open[name].get(version) is opened:
            del self._open[name][version]
        opened.unused = asyncio.Event()
        if opened.leases == 0:
            opened.unused.set()
        task = asyncio.create_task(self._close(opened, opened.unused))
        self._retiring[task] = (name, version)
        task.add_done_callback(self._retiring.pop)

    async def closed(self) -> None:
        """Wait until all that were retired are closed."""
        if self._retiring:
            await asyncio.wait(tuple(self._retiring))

    async def _proven(self, name: str, version: int, mark: object) -> OpenVersion:
        """A warm and tested version. Raises AWNetError; an unforeseen error becomes one."""
        leaving = [task for task, key in self._retiring.items() if key == (name, version)]
        if leaving:
            await asyncio.wait(leaving)  # an engine need not distinguish two of one version
        begun, leisure = time.perf_counter(), self._leisure if self._answering() else None
        runner: Runner | None = None
        try:
            runner = await self._engine.open(name, version, leisure)
            modes = runner.model.contract.modes
            if self._mode not in modes:
                raise ContractError(f"it has no mode {self._mode!r}, the default here; there are {', '.join(modes)}")
            loaded = time.perf_counter()
            await runner.warm()
            warmed = time.perf_counter()
            await self_test(runner, Terms(admitted=True, background=leisure is not None))
        except BaseException as error:
            if runner is not None:
                await runner.close()
            if isinstance(error, AWNetError) or not isinstance(error, Exception):
                raise
            log.exception("version %d of %s could not be opened", version, name)
            raise StartupError(f"{type(error).__name__}: {error}") from error
        self._events.opened(runner.model)
        ended = time.perf_counter()
        log.info(
            "opened: %s version %d, sha256 %s, golden self-test passed, %.0f ms: loading %.0f, warming %.0f, test %.0f",
            *(name, version, runner.model.sha256[:12]),
            *(1000 * seconds for seconds in (ended - begun, loaded - begun, warmed - loaded, ended - warmed)),
        )
        return OpenVersion(runner, runner.model, mark)

    async def _close(self, opened: OpenVersion, unused: asyncio.Event) -> None:
        await unused.wait()
        name, version = opened.model.name, opened.model.version
        try:
            await opened.runner.close()
        except Exception:
            log.exception("closing version %d of %s failed", version, name)
        if version not in self._open[name]:  # it may have been opened again meanwhile
            self._events.closed(opened.model)
        log.info("closed: %s version %d", name, version)

"""Assigns a role to each open version of one model and chooses the version of each request.

One version serves. A canary may get a share of the requests, and a shadow may answer them too, only to be compared;
other versions are kept for rollback. Nothing here waits or reads a file: every change is atomic for requests.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any

from ..core.engine import Signals, Terms
from ..core.images import ImageInput
from ..core.modes import Mode
from ..errors import UnknownModel
from .events import Events, Role
from .open_versions import OpenVersion, OpenVersions
from .shadow import ShadowComparer

log = logging.getLogger("awnet.versions")

MILLIONTHS = 1_000_000  # shares are counted in these, so that the split is exact
HISTORY_LENGTH = 8  # versions in `history`


def millionths(share: float) -> int:
    """A share from 0 to 1 as a whole number of millionths. Raises ValueError."""
    if not 0 <= share <= 1:
        raise ValueError("a share is a number from 0 to 1")
    return round(share * MILLIONTHS)


class Lease:
    """One version held open for one request, for the length of a `with`, and the mode that it answers in."""

    __slots__ = ("_comparer", "_open", "_shadow", "mode", "model")

    def __init__(
        self, opened: OpenVersion, mode: Mode, comparer: ShadowComparer, shadow: OpenVersion | None = None
    ) -> None:
        self._open = opened
        self._comparer = comparer
        self._shadow = shadow
        self.model = opened.model
        self.mode = mode

    def __enter__(self) -> Lease:
        self._open.hold()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.release()

    @property
    def compared(self) -> bool:
        """Whether a shadow is to answer as well."""
        return self._shadow is not None and not self._shadow.retired

    def infer(self, images: Sequence[ImageInput], terms: Terms) -> Coroutine[Any, Any, Signals]:
        """`Runner.infer` of the leased version, to be awaited; the shadow, if any, is asked after it has answered."""
        shadow = self._shadow
        if shadow is None or shadow.retired:
            return self._open.runner.infer(images, terms, self.mode)
        return self._comparer.infer(self._open, shadow, images, terms, self.mode)


class Rollout:
    """One model: its open versions and their roles.

    Args:
        name: of the model.
        versions: opens its versions, and retires those without a role.
        comparer: runs the shadow.
        events: receives roles and the split.
        kept: versions that stay open, the serving one included, canary and shadow not.
        pinned: the only version that is loaded automatically; None loads the highest, and every higher one that
            appears.
        canary: (version, share from 0 to 1) of the unversioned requests.
        shadow: version that answers them as well.

    Attributes:
        serving: the version that answers; None until one could be opened.
        history: versions that served before, oldest first.
        not_taken_up_to: versions up to this one are not loaded automatically.
        canary, shadow: versions that get those roles once they are open; see `split` and `compare`.
    """

    def __init__(
        self,
        name: str,
        versions: OpenVersions,
        comparer: ShadowComparer,
        events: Events,
        *,
        kept: int,
        pinned: int | None = None,
        canary: tuple[int, float] | None = None,
        shadow: int | None = None,
    ) -> None:
        self.name = name
        self.open: Mapping[int, OpenVersion] = versions.of(name)
        self.serving: OpenVersion | None = None
        self.history: list[int] = []
        self.not_taken_up_to = 0
        self.canary: int | None = None
        self.shadow = shadow
        self._millionths = 0  # the canary's share
        if canary is not None:
            self.canary, self._millionths = canary[0], millionths(canary[1])
        self._versions = versions
        self._comparer = comparer
        self._events = events
        self._kept = max(1, kept)
        self._pinned = pinned
        self._owed = 0  # millionths of a request that the canary has not been given yet
        self._canary: OpenVersion | None = None
        self._shadow: OpenVersion | None = None

    # Requests.

    def current(self) -> OpenVersion:
        """The version that serves; only where there is one."""
        assert self.serving is not None
        return self.serving

    def lease(self, version: int | None = None, mode: str = "auto") -> Lease:
        """The version that answers this request in `mode`; enter it at once, and only where there is one that serves.

        A canary that has no such mode leaves the request to the serving version.

        Raises:
            UnknownModel: the version that is asked for is not open.
            UnknownMode: it, or without one the serving version, has no such mode.
        """
        serving = self.current()
        if version is not None:
            opened = self.open.get(version)
            if opened is None:
                known = ", ".join(map(str, sorted(self.open)))
                raise UnknownModel(f"version '{version}' of {self.name} is not served; there are {known}")
            return Lease(opened, opened.model.mode(mode), self._comparer)
        known = serving.model.mode(mode)
        if self._canary is not None and known in self._canary.model.contract.modes:
            # Error diffusion: after n requests the canary has had n times its share, rounded down.
            self._owed += self._millionths
            if self._owed >= MILLIONTHS:
                self._owed -= MILLIONTHS
                return Lease(self._canary, known, self._comparer)
        return Lease(serving, known, self._comparer, self._shadow)

    def roles(self) -> dict[int, Role]:
        """The role of each open version."""
        roles: dict[int, Role] = {}
        for version, opened in self.open.items():
            if opened is self.serving:
                roles[version] = "serving"
            elif opened is self._canary:
                roles[version] = "canary"
            elif opened is self._shadow:
                roles[version] = "shadow"
            else:
                roles[version] = "kept"
        return roles

    @property
    def share(self) -> float:
        """The canary's share, from 0 to 1."""
        return self._millionths / MILLIONTHS

    # What to open.

    @property
    def canary_and_shadow(self) -> tuple[int, ...]:
        """The versions of canary and shadow; neither is loaded as the serving version."""
        return tuple(version for version in (self.canary, self.shadow) if version is not None)

    def candidates(self, listed: Sequence[int]) -> list[int]:
        """Of the versions `listed`, ascending, those to load as the serving one, best first."""
        serving = self.serving.model.version if self.serving else 0
        if self._pinned is not None:
            return [] if serving else [self._pinned]
        apart = self.canary_and_shadow
        newer = [v for v in reversed(listed) if v > max(serving, self.not_taken_up_to) and v not in apart]
        if serving:
            return newer
        return newer + [v for v in reversed(listed) if v in apart]  # there is nothing else

    def reserves(self, listed: Sequence[int]) -> list[int]:
        """Of the versions `listed`, ascending, those to keep for a rollback, best first."""
        serving, apart = self.current().model.version, self.canary_and_shadow
        return [v for v in reversed(listed) if v < serving and v not in apart]

    @property
    def full(self) -> bool:
        """Whether as many versions are open as are to be kept."""
        apart = self.canary_and_shadow
        return len([v for v in self.open if v not in apart]) >= self._kept

    def previous(self) -> int:
        """The version to go back to: the last that answered and is open, else the highest open one that is lower than
        what serves, else the last that answered. Raises UnknownModel where there is none.
        """
        serving, apart = self.current().model.version, self.canary_and_shadow
        lower = sorted((v for v in self.open if v < serving and v not in apart), reverse=True)
        earlier = [*reversed(self.history), *lower]
        if not earlier:
            raise UnknownModel(f"{self.name} has no version before {serving} to go back to")
        return next((version for version in earlier if version in self.open), earlier[0])

    # Changes, to versions that are open. After `switch`, `replaced`, `split`, `compare`: `apply_roles`.

    def switch(self, opened: OpenVersion) -> None:
        """Make `opened` the serving version."""
        if self.serving is not None and self.serving is not opened:
            self.history.append(self.serving.model.version)
            del self.history[:-HISTORY_LENGTH]
        self._serve(opened)

    def replaced(self, old: OpenVersion, new: OpenVersion) -> None:
        """The same version was opened again from other files; `new` takes over the roles of `old`."""
        if self.serving is old:
            self.serving = new
        self._find_special_roles()

    def promote(self, opened: OpenVersion) -> None:
        """Make `opened` the serving version on request; the previous one is not loaded automatically again."""
        self._clear_special_roles(opened)
        self.switch(opened)
        self.apply_roles()

    def go_back(self, opened: OpenVersion) -> None:
        """As `promote`, to the `previous` version; later versions leave the history."""
        if opened.model.version in self.history:
            del self.history[len(self.history) - 1 - self.history[::-1].index(opened.model.version) :]
        self._clear_special_roles(opened)
        self._serve(opened)
        self.apply_roles()

    def follow(self, opened: OpenVersion, not_taken_up_to: int, history: Sequence[int]) -> None:
        """Make `opened` the serving version as in another process, whose `not_taken_up_to` and `history` these are."""
        self.not_taken_up_to = not_taken_up_to
        self._serve(opened)
        self.history = list(history)
        self.apply_roles()

    def split(self, version: int | None, share: int) -> None:
        """Give `version` so many millionths of the unversioned requests; None ends the split."""
        self.canary, self._millionths, self._owed = version, share if version is not None else 0, 0
        self.report_split()

    def compare(self, version: int | None) -> None:
        """Let `version` be the shadow; None ends it."""
        self.shadow = version

    def report_split(self) -> None:
        """Report to `Events.canary` how requests are split."""
        self._events.canary(self.name, self.canary, self.share)

    def apply_roles(self) -> None:
        """Assign canary and shadow among the open versions, and retire versions without a role."""
        serving, apart = self.current(), self.canary_and_shadow
        self._find_special_roles()
        others = [v for v in self.open if v != serving.model.version and v not in apart]
        # Those that answered before come first, the last one foremost: going back to it must not need the disk.
        rank = {version: place for place, version in enumerate(self.history)}
        others.sort(key=lambda v: (rank.get(v, -1), v), reverse=True)
        for version in others[self._kept - 1 :]:
            self._versions.retire(self.open[version])
        self._events.roles(self.name, self.roles())

    def close(self) -> None:
        """End serving and retire all versions."""
        for opened in tuple(self.open.values()):
            self._versions.retire(opened)
        self.serving = self._canary = self._shadow = None

    def _serve(self, opened: OpenVersion) -> None:
        if self.serving is not opened:
            self.serving = opened
            log.info("%s is served by version %d", self.name, opened.model.version)

    def _clear_special_roles(self, opened: OpenVersion) -> None:
        """`opened` is about to serve: no canary, no shadow any more; what served is not loaded again."""
        self.not_taken_up_to = max(self.not_taken_up_to, self.current().model.version)
        if opened.model.version == self.canary:
            self.split(None, 0)
        if opened.model.version == self.shadow:
            self.shadow = None

    def _find_special_roles(self) -> None:
        """Look canary and shadow up among the open versions, at once with whatever changed those."""
        canary = None if self.canary is None else self.open.get(self.canary)
        shadow = None if self.shadow is None else self.open.get(self.shadow)
        self._canary = canary if canary is not self.serving else None
        self._shadow = shadow if shadow is not self.serving else None

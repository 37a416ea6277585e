"""Events about models: `open_versions`, `rollout`, `reload` and `shadow` send, `metrics` and `detection` receive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ..core.engine import Model

ReloadResult = Literal["loaded", "unchanged", "refused", "unavailable", "absent"]
Role = Literal["serving", "canary", "shadow", "kept"]
ShadowResult = Literal["compared", "dropped", "failed"]
Difference = Literal["class", "verdict"]


class Events:
    """Receives events on the event loop's thread; the default does nothing."""

    def opened(self, model: Model) -> None:
        """A version is warm, has passed the self-test, and may be leased from now on."""

    def closed(self, model: Model) -> None:
        """A version is closed; no event about it follows."""

    def roles(self, name: str, roles: Mapping[int, Role]) -> None:
        """The role of each open version of the model `name`, after every change."""

    def reload(self, name: str, result: ReloadResult) -> None:
        """A check of the repository for versions of `name`, one of the configured models, has ended.

        'loaded': a version was opened. 'unchanged': asked for, and nothing was new. 'refused': a version is at fault.
        'unavailable': a version could not be tried and will be again. 'absent': files are gone.
        """

    def canary(self, name: str, version: int | None, share: float) -> None:
        """The split of unversioned requests; None where there is none."""

    def shadow(self, model: Model, result: ShadowResult, images: int) -> None:
        """The outcome of images for the shadow."""

    def disagreement(self, model: Model, about: Difference, images: int) -> None:
        """Images to which the shadow `model` gave another class or verdict than the serving version."""


class Broadcast(Events):
    """Passes each event to several receivers, in their order."""

    def __init__(self, *others: Events) -> None:
        self._others = others

    def opened(self, model: Model) -> None:
        for other in self._others:
            other.opened(model)

    def closed(self, model: Model) -> None:
        for other in self._others:
            other.closed(model)

    def roles(self, name: str, roles: Mapping[int, Role]) -> None:
        for other in self._others:
            other.roles(name, roles)

    def reload(self, name: str, result: ReloadResult) -> None:
        for other in self._others:
            other.reload(name, result)

    def canary(self, name: str, version: int | None, share: float) -> None:
        for other in self._others:
            other.canary(name, version, share)

    def shadow(self, model: Model, result: ShadowResult, images: int) -> None:
        for other in self._others:
            other.shadow(model, result, images)

    def disagreement(self, model: Model, about: Difference, images: int) -> None:
        for other in self._others:
            other.disagreement(model, about, images)

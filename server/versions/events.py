"""What happens to models: `opened`, `rollout`, `reload` and `shadow` tell it; `metrics` and `detection` listen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ..core.engine import Model

Result = Literal["loaded", "unchanged", "refused", "unavailable", "absent"]
Role = Literal["serving", "canary", "shadow", "kept"]
ShadowResult = Literal["compared", "dropped", "failed"]
Difference = Literal["class", "verdict"]


class Events:
    """Told on the event loop's thread; nothing is done about anything by default."""

    def opened(self, model: Model) -> None:
        """A version is warm and proven, and can be asked from now on."""

    def closed(self, model: Model) -> None:
        """A version is gone; nothing will be told about it any more."""

    def roles(self, name: str, roles: Mapping[int, Role]) -> None:
        """What each open version of the model `name` is there for, after every change."""

    def reload(self, name: str, result: Result) -> None:
        """What came of looking for versions of `name`, which is one of the configured models.

        'loaded': one was taken. 'unchanged': asked for, and there was nothing new. 'refused': one is at fault.
        'unavailable': it could not be tried and will be again. 'absent': files are gone.
        """

    def canary(self, name: str, version: int | None, share: float) -> None:
        """The split of unversioned requests; None where there is none."""

    def shadow(self, model: Model, result: ShadowResult, images: int) -> None:
        """What became of images that the shadow should have answered too."""

    def disagreement(self, model: Model, about: Difference, images: int) -> None:
        """Images that the shadow `model` answered otherwise than the version that serves."""


class Broadcast(Events):
    """Tells several others, in their order."""

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

    def reload(self, name: str, result: Result) -> None:
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

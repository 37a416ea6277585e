"""The processes behind one port, as the service of one of them sees them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from ..monitoring.exposition import Counted

CarryOut = Callable[[str, Sequence[Any]], Awaitable[dict[str, Any]]]


class Fleet(Protocol):
    """All processes behind one port, as the service of one of them sees them."""

    def loaded(self) -> None:
        """The models of this process have passed the self-test."""

    async def counted(self, here: Counted) -> Counted:
        """The counts of all processes, where this one has counted `here`. Raises LinkLost."""

    async def operate(self, here: CarryOut, do: str, given: Sequence[Any]) -> dict[str, Any]:
        """An operator's call, carried out in every process; `here` does so in this one. Raises what it raises."""

    async def stop(self) -> None:
        """This process ends: it has answered its last request."""


class SingleProcess:
    """A `Fleet` of this process alone."""

    def loaded(self) -> None:
        """No other process waits for it."""

    async def counted(self, here: Counted) -> Counted:
        return here

    async def operate(self, here: CarryOut, do: str, given: Sequence[Any]) -> dict[str, Any]:
        return await here(do, given)

    async def stop(self) -> None:
        """No other process needs the last counts."""

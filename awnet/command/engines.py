"""What `awnet predict --engine` may be: the engines of a server, and Ray Data."""

from __future__ import annotations

from collections.abc import Sequence

from server.settings.options import SettingsError, choices, nearest

RAY = "ray"


def engines() -> tuple[str, ...]:
    """All of them, by the setting's own list."""
    return (*choices("engine"), RAY)


def on_ray(arguments: Sequence[str]) -> list[str] | None:
    """What is left of the arguments without `--engine ray`; None where they do not ask for it."""
    given = list(arguments)
    for at, argument in enumerate(given):
        if argument == f"--engine={RAY}":
            return given[:at] + given[at + 1 :]
        if argument == "--engine" and given[at + 1 : at + 2] == [RAY]:
            return given[:at] + given[at + 2 :]
    return None


def check_engine(given: str | None) -> None:
    """Raises SettingsError where `--engine` is none of them."""
    if given is not None and given not in engines():
        raise SettingsError(f"--engine {given}: there are {', '.join(engines())}{nearest(given, engines())}")

"""AW-Net as an installed program and a library: the command `awnet`, clients of a server, a model in this process.

In a wheel the other packages lie below this one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from domain import __version__ as __version__

if TYPE_CHECKING:
    from .client import *  # noqa: F403 - the names are listed there


def __getattr__(name: str) -> Any:
    """The names of `client`, imported when one is first asked for: `awnet --help` needs none of them."""
    if name == "__all__" or not name.startswith("_"):
        from .client import __all__ as names

        if name == "__all__":
            return names
        if name in names:
            return getattr(import_module(".client", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})

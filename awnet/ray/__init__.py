"""Ray: `app` serves on Ray Serve; `python -m awnet.ray` is a server of it; `scoring` scores offline on Ray Data."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .replica import app as app

INSTALL = "install this package with its extra, in its checkout: pip install '.[ray]'"


def __getattr__(name: str) -> object:
    """`app`, for `serve run awnet.ray:app`: Ray Serve is imported where it is asked for, and Ray Data does without."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .replica import app

    return app

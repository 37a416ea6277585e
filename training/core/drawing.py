"""How pictures are drawn: matplotlib without a screen, and files that depend on the numbers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import whole


def pyplot() -> Any:
    """matplotlib's pyplot; ValueError where the package is missing."""
    try:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ValueError("pictures need the package matplotlib: pip install matplotlib") from error
    matplotlib.rcParams["svg.hashsalt"] = "awnet"  # the same numbers give the same file
    return plt


def save(figure: Any, out: Path, **options: Any) -> None:
    """out.png and out.svg, each whole or not at all; the figure is closed."""
    for suffix in ("png", "svg"):
        with whole(out.with_suffix(f".{suffix}")) as partial:
            figure.savefig(partial, format=suffix, metadata={"Date": None} if suffix == "svg" else None, **options)
    pyplot().close(figure)

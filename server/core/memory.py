"""Memory that the C library keeps: less of it while a server runs, and what is free given back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Final

_ARENAS: Final = -8  # M_ARENA_MAX of malloc.h


def share_heap() -> None:
    """Let all threads allocate from one heap, where the C library can: else each keeps what it has freed.

    What is allocated often has a place of its own, in Python's objects as in ONNX Runtime's tensors.
    """
    call = _of_libc("mallopt")
    if call is not None:
        call(_ARENAS, 1)


def return_memory() -> None:
    """Give what was freed back to the system, where the C library can."""
    call = _of_libc("malloc_trim")
    if call is not None:
        call(0)


def _of_libc(name: str) -> Callable[..., int] | None:
    """glibc has such functions, musl and others have not."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None

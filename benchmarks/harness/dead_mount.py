"""A mount that has died: whoever touches what lies below it waits until it is taken away. Needs root and FUSE.

The kernel asks a file system in user space, and nobody answers: as with a network mount whose server has gone.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MNT_FORCE, _MNT_DETACH = 1, 2
_DEVICE = Path("/dev/fuse")


def possible() -> bool:
    """Whether this process may mount."""
    return os.geteuid() == 0 and _DEVICE.exists()


@contextmanager
def dead_mount(folder: Path) -> Iterator[None]:
    """Cover `folder` with a dead mount for a `with`. Raises OSError. Afterwards who waited gets an error."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open(_DEVICE, os.O_RDWR)
    try:
        options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        if libc.mount(b"dead", os.fsencode(folder), b"fuse.dead", 0, options.encode()):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(folder))
        try:
            yield
        finally:
            libc.umount2(os.fsencode(folder), _MNT_FORCE | _MNT_DETACH)
    finally:
        os.close(device)  # ends the file system, and every wait for it

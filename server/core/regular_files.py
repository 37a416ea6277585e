"""Reading files that somebody else puts there: whole, bounded, and never waiting for what is no file.

Opening a FIFO waits for a writer, and reading a device never ends; neither may hold up a reload. A file on a mount that
does not answer cannot be told beforehand: `engines.disk` gives up on that.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """`path`, a regular file or a link to one, open for reading. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # of a FIFO, O_NONBLOCK waits for nobody
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, max_bytes: int) -> bytes:
    """All of a regular file; one byte more than `max_bytes` where it is longer. Raises OSError."""
    with open_regular(path) as file:
        return file.read(max_bytes + 1)

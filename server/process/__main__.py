"""`python -m server.process FD`: one of several serving processes; the supervisor has the other end of that socket."""

from __future__ import annotations

import gc
import sys

if __name__ == "__main__":
    gc.disable()  # as in `server.__main__`
    from .process import work

    gc.enable()
    sys.exit(work(int(sys.argv[1])))

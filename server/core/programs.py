"""How a process of ours starts another one: by the name of a module of this package, wherever that is installed."""

from __future__ import annotations

import os
import sys


def program(module: str) -> list[str]:
    """The command `python -m MODULE`, without its arguments.

    `-m` puts the folder that the program is started in before all others on the path. The new process does without
    (`-P`) where this one did: an installed server may be started in any folder, and a json.py that lies there must not
    be run.
    """
    own = {"", os.getcwd()}
    return [sys.executable, *([] if own & set(sys.path) else ["-P"]), "-m", module]

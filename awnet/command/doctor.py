"""`awnet doctor`: what a server would meet on this machine, before it is started.

Exit status: 0 nothing in the way (warnings do not count), 1 something is, 2 settings that cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from server.settings.options import SettingsError, add_settings, settings_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each check of the settings that `arguments` give, which are the server's own options."""
    parser = argparse.ArgumentParser(
        "awnet doctor", description="Check this machine for a server; the options are those of `awnet serve`."
    )
    add_settings(parser)
    try:
        settings = settings_of(vars(parser.parse_args(arguments)))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    from .checks import checks  # loads what a server loads

    failed = False
    for check in checks(settings, partial(print, file=sys.stderr, flush=True)):
        print(f"{check.state:<4}  {check.about:<12}  {check.found}", flush=True)
        failed |= check.state == "fail"
    return int(failed)

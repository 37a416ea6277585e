"""Old names of settings and metrics, which go on working for one release; docs/renames.md lists them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

# Old setting -> new. It stands for the variable and the option: `access_log` is `AWNET_ACCESS_LOG` and `--access-log`.
SETTINGS = {
    "access_log": "request_log",
    "golden_canary_seconds": "golden_probe_seconds",
}

# Old metric -> new, under the names that a query uses. /metrics has both.
METRICS = {
    "awnet_golden_canaries_total": "awnet_golden_probes_total",
    "awnet_golden_canary_detection_ratio": "awnet_golden_probe_detection_ratio",
    "awnet_golden_canary_interval_seconds": "awnet_golden_probe_interval_seconds",
}


def variable(setting: str) -> str:
    """The environment variable of a setting."""
    return f"AWNET_{setting.upper()}"


def option(setting: str) -> str:
    """The command-line option of a setting."""
    return "--" + setting.replace("_", "-")


def renamed(given: Mapping[str, Any], shown: Callable[[str], str]) -> dict[str, Any]:
    """`given` (setting -> value) under the new names, with one warning on stderr for each old one.

    Args:
        shown: how the user wrote a setting: `variable` or `option`.

    Raises:
        ValueError: a setting is given under both its names.
    """
    found = dict(given)
    for old, new in SETTINGS.items():
        if old in found:
            if new in found:
                raise ValueError(f"{shown(old)} is the old name of {shown(new)}: give one of them")
            print(f"warning: {shown(old)} goes with the next release: it is {shown(new)} now", file=sys.stderr)
            found[new] = found.pop(old)
    return found

"""Ray as programs of ours start it: a cluster is joined, or a Ray of this machine is started for one program."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from ..local import StartError

OBJECT_STORE_BYTES = 200_000_000  # requests, answers and names are small, and no data set is held
CONNECT_SECONDS = 5.0
# Of Ray, where they are not set: it would tell its makers that it runs, and gives up after 30 s on a busy machine.
VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120"}


def prepare() -> None:
    """What Ray reads when it is imported."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)


def start(address: str | None, stop: Callable[..., Any], *, log: bool = False, **options: Any) -> None:
    """Join or start a Ray.

    Args:
        address: of a cluster; None: a Ray of this machine.
        stop: handles SIGTERM and SIGINT from then on; Ray's own handlers end the process at once.
        log: what Ray and its processes say stands on standard error.
        options: of a Ray of this machine.

    Raises StartError.
    """
    import ray

    host, _, port = (address or "").rpartition(":")
    if port.isdigit() and "/" not in host:  # Ray would try for more than ten minutes
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise StartError(f"no Ray at {address}: {error.strerror or error}") from None
    local = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES, **options}
    level = logging.INFO if log else logging.ERROR
    try:
        ray.init(address or "local", log_to_driver=log, logging_level=level, **({} if address else local))
    except Exception as error:  # Ray raises this class itself
        ray.shutdown()
        raise StartError(f"Ray does not start: {str(error).strip().splitlines()[0]}") from error
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)

"""One serving process: builds its parts, wires them, and runs uvicorn and the other front ends until a signal.

`python -m server` calls `serve`; where there are several workers, the supervisor starts each as
`python -m server.process FD`, with a socket to itself under that number.
"""

from __future__ import annotations

import gc
import logging
import signal

from ..core.memory import share_heap
from ..errors import AWNetError
from ..monitoring import request_log
from ..monitoring.log_writer import WriterHandler, log_to_stderr
from ..settings.settings import Settings
from ..workers.member import Assignment, receive_assignment
from .parts import certificates_of, make_service, open_ports
from .servers import Server, Worker

COLLECT_EVERY = 10_000  # containers more than at the last collection; Python's 700 are those of some twenty requests

log = logging.getLogger("awnet")


def serve(settings: Settings, assignment: Assignment | None = None) -> int:
    """Serve until told to stop. Returns the exit status.

    Args:
        assignment: what the supervisor gave this process as one of several; None where it is the only one.
    """
    share_heap()  # before there are threads
    begin_logging(settings, assignment.member.number if assignment else None)
    try:
        sockets = {} if assignment else open_ports(settings)  # first: whoever is in the way is said at once
        service = make_service(settings, assignment)
        certificates = certificates_of(settings, service.metrics)
    except AWNetError as error:
        log.critical("%s: %s", error.title, error.detail)
        return 2
    server = Server(service, sockets, certificates) if assignment is None else Worker(service, assignment, certificates)
    # What is alive now stays alive: leaving it out of collections keeps their pauses short. Some hundred objects are
    # garbage of the imports, and would take longer to find than a model to load. Requests leave no circles behind, also
    # those that are refused; what is counted is mostly what those in flight hold.
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY)
    server.run()
    server.ended.set()
    return 0 if server.started and service.failure is None else 1


def begin_logging(settings: Settings, number: int | None = None) -> None:
    """Log to standard error; a worker's lines name it."""
    who = "%(name)s" if number is None else f"worker {number} %(name)s"
    writer = log_to_stderr(settings.log_level, who)
    request_log.configure(settings.request_log, handler=WriterHandler(writer))
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.root.level))


def work(descriptor: int) -> int:
    """Serve as a worker of the supervisor behind this descriptor. Returns the exit status."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the supervisor passes reloads on in its own way
    try:
        assignment = receive_assignment(descriptor)
    except EOFError:
        return 1
    return serve(Settings(**assignment.settings), assignment)

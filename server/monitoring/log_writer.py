"""Log lines to standard error from a thread of their own: a reader that has stopped reading stops nobody who logs.

Lines that do not fit are dropped and counted; the next line that is written says how many.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
from contextlib import suppress

WAITING_BYTES = 1 << 20
EXIT_SECONDS = 1.0  # at the end of the process, for what waits


class LogWriter:
    """Writes lines to a file descriptor, in their order.

    Args:
        descriptor: blocking or not, of a file, a pipe or a terminal.
        waiting_bytes: of lines that are not written yet; further ones are dropped.
    """

    def __init__(self, descriptor: int = 2, waiting_bytes: int = WAITING_BYTES) -> None:
        self._descriptor = descriptor
        self._most = waiting_bytes
        self._lines: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of the two counts; never held while something is written
        self._waiting = self._dropped = 0
        threading.Thread(target=self._write_all, name="log writer", daemon=True).start()
        atexit.register(self.flush)

    def put(self, line: bytes) -> None:
        """Write `line` soon, or drop it."""
        with self._lock:
            if self._waiting + len(line) > self._most:
                self._dropped += 1
                return
            self._waiting += len(line)
        self._lines.put(line)

    def flush(self, seconds: float = EXIT_SECONDS) -> bool:
        """Wait until what was put is written, for so long. Returns whether it is."""
        written = threading.Event()
        self._lines.put(written)
        return written.wait(seconds)

    def _write_all(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            self._write(line)
            with self._lock:
                self._waiting -= len(line)
                dropped, self._dropped = self._dropped, 0
            if dropped:
                self._write(b"%d lines of the log were dropped: nobody read them\n" % dropped)

    def _write(self, data: bytes) -> None:
        with suppress(OSError):  # nobody reads any more, or the disk is full: there is nowhere to say it
            while data:
                data = data[os.write(self._descriptor, data) :]


class WriterHandler(logging.Handler):
    """A handler whose lines a `LogWriter` writes."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.put(f"{self.format(record)}\n".encode("utf-8", "backslashreplace"))
        except Exception:
            self.handleError(record)


def log_to_stderr(level: str, who: str) -> LogWriter:
    """Have everything of this level and above written to standard error, under the name of `who` logs."""
    writer = LogWriter()
    handler = WriterHandler(writer)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {who}: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    return writer

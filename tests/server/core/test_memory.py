"""One heap for all threads of a server."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.repository import ROOT

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has one heap a thread"),
]

CHILD = """
import ctypes, sys, threading
from server.core.memory import return_memory, share_heap

if sys.argv[1] == "one":
    share_heap()
start = threading.Barrier(6)
kept = []
def work():
    start.wait()
    kept.append([bytearray(50_000) for _ in range(20)])
    start.wait()
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
return_memory()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


def heaps(which: str) -> int:
    command = [sys.executable, "-c", CHILD, which]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.count("<heap nr=")


def test_threads_of_a_server_share_one_heap() -> None:
    """Left alone, the C library makes one for each of the first threads, and each keeps what was freed in it."""
    assert heaps("one") == 1
    assert heaps("many") > 1

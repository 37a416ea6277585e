"""What the bundled model takes of memory, in a process that does nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.repository import ROOT

MEGABYTES = 75  # it takes some 55; with second sessions, copies of the files and an arena for each session it took 105
CHILD = """
import asyncio, os, sys
from pathlib import Path
import numpy as np
from server.core.engine import self_test
from server.core.images import PixelArray
from server.engines.onnxruntime import EmbeddedEngine
from server.engines.repository import Repository

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

async def main():
    engine = EmbeddedEngine(Repository(Path("model_repository")), threads=2)
    await engine.start()
    before = resident()
    runner = await engine.open("awnet", 4)
    await runner.warm()
    await self_test(runner)
    image = PixelArray(np.zeros((3, 32, 32), np.uint8))
    for mode in runner.model.contract.modes:
        await asyncio.gather(*[runner.infer([image], mode=mode) for _ in range(64)])
    print(resident() - before)
    await engine.close()

asyncio.run(main())
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_three_modes_of_the_bundled_model_take_little_more_than_their_weights() -> None:
    """Its file has 6 MB: three sessions, one place for what they compute with, no second sessions, no copies."""
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, check=True, capture_output=True, text=True)
    assert float(done.stdout) < MEGABYTES, done.stdout

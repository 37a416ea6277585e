"""The slowest files for their bytes that `benchmarks.hardening.slow_inputs` found: what they cost was known before."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from benchmarks.hardening import slow_inputs
from server.core.codecs.decode import decode, read
from tests.server.tiny import SIZE

CORPUS = sorted((Path(__file__).parent / "slow").glob("*.bin"))
NANOSECONDS_A_PIXEL = 10 * slow_inputs.NANOSECONDS_A_PIXEL  # for a machine that is slower, and busy


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_slow_file_is_read_at_once_and_costs_what_its_structure_said(path: Path) -> None:
    """CPU time of this thread, so that whatever else runs does not count."""
    data = path.read_bytes()
    begun = time.thread_time()
    file = read(data)
    read_at = time.thread_time()
    decode(file, SIZE)
    ended = time.thread_time()
    assert read_at - begun < 0.05
    assert ended - read_at < max(0.05, file.cost(SIZE) * NANOSECONDS_A_PIXEL * 1e-9)


def test_the_corpus_has_every_format_and_is_small() -> None:
    """It is committed."""
    assert {path.stem.partition("-")[0] for path in CORPUS} == {"jpeg", "png", "webp"}
    assert sum(path.stat().st_size for path in CORPUS) < 200 << 10


@pytest.mark.parametrize("kind", slow_inputs.FORMATS)
def test_the_search_tries_files_and_reports_what_they_took(kind: str) -> None:
    """Two seconds of it; nothing but refusals is raised."""
    found = slow_inputs.search(kind, 1.0, random.Random(5))
    assert found and all(one.seconds >= 0 and slow_inputs.row(one)[-2] == one.outcome for one in found)
    assert any(one.outcome == "decoded" for one in found)

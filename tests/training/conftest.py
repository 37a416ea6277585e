"""What every test of training shares: one thread and a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    """One thread (the suite shares its machine) and the same random numbers in every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield
    torch.set_num_threads(threads)

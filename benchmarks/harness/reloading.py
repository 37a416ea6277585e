"""A server whose model is reloaded while it is asked, and which requests that touches."""

from __future__ import annotations

import json
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from awnet.planning.asking import Sample
from export.repository.repository import publish

from .processes import Server, free_port
from .report import ROOT


class Span(NamedTuple):
    """From when to when something went on, on `time.perf_counter`."""

    begun: float
    ended: float

    def of(self, samples: Sequence[Sample]) -> list[Sample]:
        """Requests that were due in it."""
        return [sample for sample in samples if self.begun <= sample.due < self.ended]


class Reloading(Server):
    """A server of a repository of its own, in which the same model appears as new versions.

    Args:
        model: the file.
        folder: receives repository and log.
        checkout: whose server it is.
        settings: further ones.
    """

    def __init__(
        self, model: Path, folder: Path, checkout: Path = ROOT, *, workers: int = 1, **settings: object
    ) -> None:
        self._model, self._name = model.read_bytes(), model.parents[1].name
        self._repository, self._apart = (Path(tempfile.mkdtemp(dir=folder)) for _ in range(2))
        self._versions = 1
        publish(self._model, self._repository, name=self._name)
        self._admin = free_port()
        given = {"repository": self._repository, "model": self._name, "workers": workers, "poll_seconds": 0}
        super().__init__(folder, checkout, **given, admin_port=self._admin, drain_seconds=0, **settings)

    def prepare(self, versions: int = 1) -> None:
        """Write so many versions to a folder apart: to publish one costs too much beside a measurement."""
        for version in range(self._versions + 1, self._versions + versions + 1):
            publish(self._model, self._apart, name=self._name, version=version)

    def reload(self) -> Span:
        """Move the next version that was prepared into the repository and have it taken."""
        self._versions += 1
        (self._apart / self._name / str(self._versions)).rename(self._repository / self._name / str(self._versions))
        begun = time.perf_counter()
        request = urllib.request.Request(f"http://127.0.0.1:{self._admin}/admin/reload", b"", method="POST")
        with urllib.request.urlopen(request, timeout=120) as answer:
            if [change["result"] for change in json.load(answer)["changes"]] != ["loaded"]:
                raise RuntimeError("a reload took nothing")
        return Span(begun, time.perf_counter())

    @contextmanager
    def reloads(self, after: Sequence[float]) -> Iterator[Future[list[Span]]]:
        """So many seconds after the start of the block versions are taken, which are prepared first; when they were."""
        self.prepare(len(after))
        with ThreadPoolExecutor(1) as pool:
            start = time.perf_counter()

            def work() -> list[Span]:
                spans = []
                for seconds in after:
                    time.sleep(max(0.0, start + seconds - time.perf_counter()))
                    spans.append(self.reload())
                return spans

            yield pool.submit(work)

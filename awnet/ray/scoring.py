"""Scores units on Ray Data: a pool of processes with a model each, which write the parts themselves."""

from __future__ import annotations

import logging
import pickle
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple, cast

from server.settings.options import SettingsError, settings_of

from ..client.local import opened
from ..client.loop import LoopThread
from ..client.predictor import AsyncPredictor, Options
from ..command.images import Image
from ..command.progress import failure, outcome
from ..command.results import Line
from ..command.scoring import StopError, answers
from ..local import StartError
from .local import start
from .parts import write_part
from .sources import Unit

CONCURRENCY = 16  # images under way in a process: two batches


class Done(NamedTuple):
    """A part that has been written.

    Attributes:
        counts: images by their verdict, `failed` among them.
        failed: lines of those without an answer, as they are told.
    """

    counts: Mapping[str, int]
    failed: Sequence[str]


class ScoringError(RuntimeError):
    """A unit cannot be scored, and no other could; says why."""


class Scorer:
    """One process that scores, with its own model, opened and proven by its golden values.

    Args:
        settings: by name; see `settings.given_settings`.
        top_k: classes asked for of each image.
        folder: of the parts.
        model: SHA-256 of the model that answers; a version that is published meanwhile is another.
    """

    def __init__(self, settings: Mapping[str, Any], top_k: int, folder: str, model: str) -> None:
        self._loop = LoopThread("awnet-scorer")
        self._settings, self._options = settings, Options(top_k)
        self._folder, self._model = Path(folder), model
        self._predictor: AsyncPredictor | None = None

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Scores the unit of a row. Ray Data asks again elsewhere where this process dies."""
        try:
            return {"done": pickle.dumps(self._score(row["number"], pickle.loads(row["unit"])))}  # noqa: S301 # our own
        except (StartError, StopError, SettingsError, OSError) as error:  # no other unit would fare better
            return {"done": pickle.dumps(ScoringError(str(error)))}

    def _score(self, number: int, unit: Unit) -> Done:
        if self._predictor is None:
            self._predictor = self._loop.run(opened(settings_of(self._settings), self._options))
        lines = self._loop.run(_lines(self._predictor, unit.images()))
        if others := {line["model"]["sha256"] for line in lines if "model" in line} - {self._model}:
            raise StopError(f"another model answers ({min(others)[:12]}) than when the run began ({self._model[:12]})")
        write_part(self._folder, number, lines)
        return summed(lines)


def summed(lines: Sequence[Line]) -> Done:
    """What a part's lines are told as."""
    return Done(Counter(map(outcome, lines)), [failure(line) for line in lines if "error" in line])


async def _lines(predictor: AsyncPredictor, images: Iterable[Image]) -> list[Line]:
    async with aclosing(answers(predictor, images, CONCURRENCY, {})) as found:
        return [line async for line in found if line is not None]


def on_ray(
    units: Mapping[int, Unit],
    settings: Mapping[str, Any],
    *,
    top_k: int,
    folder: Path,
    model: str,
    address: str | None,
    scorers: int | None,
) -> Iterator[Done]:
    """Scores units by their numbers on Ray Data; yields as parts are written, in any order.

    Args:
        address: of a cluster; None: a Ray of this machine, which ends with the iteration.
        scorers: processes, each on one core; None: as many as the cluster has cores.

    Raises StartError, ScoringError.
    """
    import ray
    import ray.exceptions
    from ray.data import ActorPoolStrategy, DataContext, from_items

    start(address, signal.default_int_handler)
    try:
        context = DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        processes = scorers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        rows = [{"number": number, "unit": pickle.dumps(unit)} for number, unit in units.items()]
        scored = from_items(rows, override_num_blocks=len(rows)).map(
            cast(Any, Scorer),
            fn_constructor_args=(settings, top_k, str(folder.absolute()), model),
            compute=ActorPoolStrategy(size=min(processes, len(rows))),
            num_cpus=1,
        )
        for row in scored.iter_rows():
            done: Done | ScoringError = pickle.loads(row["done"])  # noqa: S301 # of our own processes
            if isinstance(done, ScoringError):
                raise done
            yield done
    except ray.exceptions.RayError as error:
        raise ScoringError(f"Ray has given up: {str(error).strip().splitlines()[0]}") from error
    finally:
        ray.shutdown()

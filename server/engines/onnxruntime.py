"""The embedded engine: ONNX Runtime in this process."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import ParamSpec, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..core import contract
from ..core.contract import Contract
from ..core.cpu_limits import usable_cores
from ..core.engine import Leisure, Model, Outputs, Runner, Signals, Terms, outputs_of
from ..core.images import ImageInput
from ..core.memory import return_memory
from ..core.modes import Mode
from ..errors import ContractError, NotReady
from .batching import NO_DEADLINE, Batcher, Feed, Run
from .disk import Disk
from .model_file import ModelFile
from .onnx_cut import Cutter, outputs_in, property_of
from .repository import Repository

P = ParamSpec("P")
T = TypeVar("T")

NICENESS = 19  # of the thread in the background: whoever else wants the core gets 68 times as much of it


class EmbeddedEngine:
    """Runs models of a repository with ONNX Runtime on the CPU, all on one pool of workers.

    Requests run on `threads` workers with one thread each, which gives the most answers a second. A lone image, with no
    other to share the cores with, may have more (`lone_threads`). Each mode of a version has a queue of its own, so
    that no batch mixes them. A version that is opened at leisure is loaded and warmed on a thread of its own, one step
    after another, which the kernel runs when nobody else wants the core; where leisure ends, on one like others.

    Args:
        repository: where the models lie, or the file of the only one.
        threads: workers; 0 takes `usable_cores()`.
        lone_threads: that run a lone image, at most `threads`; 0 takes as many. With more than one each mode has a
            second session, whose threads wait actively between two operators, and between two images for a while.
        max_batch: largest batch.
        capacity: images that may wait or run, over all opened versions.
        delay: longest wait for a fuller batch while others run, seconds.
        stall: seconds without progress after which it counts as down.
        repository_seconds: after which files that do not answer are given up.
        on_batch: called with the size of each execution.
    """

    def __init__(
        self,
        repository: Repository | ModelFile,
        *,
        threads: int = 0,
        lone_threads: int = 1,
        max_batch: int = 8,
        capacity: int = 256,
        delay: float = 0.001,
        stall: float = float("inf"),
        repository_seconds: float = 30.0,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._repository = repository
        self._disk = Disk(repository_seconds)
        self._threads = threads or usable_cores()
        self._lone_threads = min(lone_threads or self._threads, self._threads)
        self._max_batch = max_batch
        self._capacity = capacity
        self._delay = delay
        self._stall = stall
        self._on_batch = on_batch
        self._batcher: Batcher | None = None
        self._background = ThreadPoolExecutor(1, "awnet-background", _step_back)
        self._hurried = ThreadPoolExecutor(1, "awnet-hurried")

    async def start(self) -> None:
        """Start the workers."""
        self._batcher = Batcher(
            workers=self._threads,
            max_batch=self._max_batch,
            capacity=self._capacity,
            delay=self._delay,
            on_batch=self._on_batch,
        )

    async def catalogue(self) -> Mapping[str, tuple[int, ...]]:
        return await self._disk.call(self._repository.catalogue)

    async def fingerprint(self) -> object:
        return await self._disk.call(self._repository.fingerprint)

    async def open(self, name: str, version: int, leisure: Leisure | None = None) -> Runner:
        """Load and check one version: one mode after the other at leisure, else side by side.

        Raises ModelNotFound, ManifestError, ContractError; NotReady before `start`; Unavailable where its files do not
        answer.
        """
        if self._batcher is None:
            raise NotReady("the engine has not been started")
        artifact = await self._disk.call(self._repository.read, name, version)
        run = asyncio.get_running_loop().run_in_executor
        executor = None if leisure is None else _Steps(leisure, self._background, self._hurried)
        # A session's own threads are as nice as the thread that made it, for ever.
        maker = executor if self._lone_threads == 1 else None
        # Not in the background: whoever waits for the interpreter should not wait for a core, too.
        promise, parts = await asyncio.to_thread(_taken_apart, artifact.data)
        sha256 = artifact.sha256
        del artifact
        if maker is not None:
            runs = {mode: await run(maker, self._load, promise, mode, parts.pop(mode)) for mode in promise.modes}
        else:
            loading = [run(None, self._load, promise, mode, parts.pop(mode)) for mode in promise.modes]
            runs = dict(zip(promise.modes, await asyncio.gather(*loading), strict=True))
        feeds = {mode: self._batcher.open(run, promise.preprocessing.size) for mode, run in runs.items()}
        return _EmbeddedRunner(Model(name, version, sha256, promise), feeds, executor)

    def _load(self, promise: Contract, mode: Mode, part: bytes) -> Run:
        """One mode of a model, of which `part` is what it needs. Raises ContractError."""
        outputs = outputs_of(mode)
        shared = lone = _session(part, 1)
        _check_tensors(shared, promise, outputs)
        if self._lone_threads > 1:
            lone = _session(part, self._lone_threads)
        return _run(shared, lone, outputs)

    def waiting(self) -> int:
        return self._batcher.pending if self._batcher else 0

    def up(self) -> bool:
        return self._batcher is not None and not self._batcher.stalled(self._stall)

    async def close(self) -> None:
        if self._batcher:
            await self._batcher.close()
            self._batcher = None
        self._background.shutdown(wait=False)
        self._hurried.shutdown(wait=False)


class _EmbeddedRunner:
    """A `Runner`: one version with its ONNX Runtime sessions, each mode fed from the shared queue.

    Args:
        executor: warms it and runs what has no part in the queue; None: threads of the event loop.
    """

    def __init__(self, model: Model, feeds: Mapping[Mode, Feed], executor: Executor | None) -> None:
        self._model = model
        self._feeds = feeds
        self._executor = executor

    @property
    def model(self) -> Model:
        return self._model

    async def warm(self) -> None:
        """Every bucket, and a lone image on the session that runs those."""
        for feed in self._feeds.values():
            await feed.warm(self._model.contract.golden.image, self._executor)
        await asyncio.get_running_loop().run_in_executor(self._executor, return_memory)

    async def infer(self, images: Sequence[ImageInput], terms: Terms = NO_DEADLINE, mode: Mode = "auto") -> Signals:
        feed = self._feeds[mode]
        return await (feed.aside(images, self._executor) if terms.background else feed.submit(images, terms))

    async def close(self) -> None:
        await asyncio.gather(*[feed.close() for feed in self._feeds.values()])
        await asyncio.to_thread(return_memory)


class _Steps(Executor):
    """Runs each step in the background, or among others where there is no leisure any more."""

    def __init__(self, leisure: Leisure, background: Executor, hurried: Executor) -> None:
        self._leisure = leisure
        self._background = background
        self._hurried = hurried

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        executor = self._background if self._leisure() else self._hurried
        return executor.submit(function, *args, **kwargs)


def _step_back() -> None:
    """Let the kernel run this thread where no other wants the core; on Linux alone threads differ in niceness."""
    if sys.platform == "linux":
        with suppress(OSError):  # where a sandbox allows no such call, it is a thread like others
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _run(shared: ort.InferenceSession, lone: ort.InferenceSession, outputs: Sequence[str]) -> Run:
    def run(images: NDArray[np.uint8], alone: bool) -> Outputs:
        logits, p_type, omega = (lone if alone else shared).run(outputs, {"image": images})
        return logits, p_type, omega

    return run


def _session(data: bytes, threads: int) -> ort.InferenceSession:
    """Threads beside the caller's wait actively, see `EmbeddedEngine`."""
    _share_memory()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Plans are kept for each batch size that occurs; as fast without, and 10 MB less.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise ContractError(f"onnxruntime refuses the model: {error}") from error
    session._model_bytes = None  # kept for other providers to fall back upon, of which there are none: a model's size
    return session


@cache
def _share_memory() -> None:
    """Let all sessions of this process take what they compute with from one place, which grows by what is asked for.

    Else each keeps what its largest batch took, and doubles what it has whenever that is not enough.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))


def _taken_apart(data: bytes) -> tuple[Contract, dict[Mode, bytes]]:
    """The model's contract, and the part of it that each mode needs. Raises ContractError."""
    promise = _promised(data)
    if len(promise.modes) == 1:
        return promise, dict.fromkeys(promise.modes, data)
    cutter = Cutter(data)
    # A session computes everything in its model, whatever is asked of it.
    return promise, {mode: cutter.cut(outputs_of(mode)) for mode in promise.modes}


def _promised(data: bytes) -> Contract:
    """The contract that the model carries. Raises ContractError: none, or one that has other outputs than the graph."""
    text = property_of(data, contract.METADATA_KEY)
    if text is None:
        raise ContractError(f"the model carries no {contract.METADATA_KEY!r}: it was not made by export.onnx")
    promise = contract.parse(text)
    if (found := outputs_in(data)) != set(promise.outputs):
        raise ContractError(f"the graph's outputs are {sorted(found)}; the contract asks for {sorted(promise.outputs)}")
    return promise


def _check_tensors(session: ort.InferenceSession, promise: Contract, outputs: Sequence[str]) -> None:
    """Raises ContractError where the tensors that the session has are not those of the contract."""
    size = promise.preprocessing.size
    wanted = {
        "image": ("tensor(uint8)", [3, size, size]),
        **{name: ("tensor(float)", [promise.outputs[name]]) for name in outputs},
    }
    found = {node.name: (node.type, list(node.shape[1:])) for node in (*session.get_inputs(), *session.get_outputs())}
    batch = session.get_inputs()[0].shape[:1]
    if found != wanted or isinstance(batch[0], int):
        raise ContractError(f"the graph's tensors are {found}, batch {batch}; the contract asks for {wanted}")

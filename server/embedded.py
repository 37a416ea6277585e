"""The embedded engine: ONNX Runtime in this process."""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from server import contract
from server.batching import Batcher, Outputs
from server.contract import Contract
from server.engine import Model, Signals
from server.errors import ContractError, ModelNotFound, NotReady
from server.images import Picture

LONE_SPINS = True  # whether the threads of the session for lone images wait actively between two operators
OUTPUTS = ("logits", "p_type", "omega")


class EmbeddedEngine:
    """Serves `<repository>/<name>/<version>/model.onnx` with ONNX Runtime on the CPU.

    Concurrent requests run on `threads` workers with one thread each, which gives the most answers a second. A lone
    image, with no other to share the cores with, runs with all of them, which gives the shortest answer.

    Args:
        repository, name, version: which model; version 'latest' is the highest number.
        threads: workers; 0 takes `usable_cores()`.
        most: largest batch.
        capacity: images that may wait or run.
        on_batch: told the size of each execution.
    """

    def __init__(
        self,
        repository: Path,
        name: str = "awnet",
        version: str = "latest",
        *,
        threads: int = 0,
        most: int = 8,
        capacity: int = 256,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._repository = repository
        self._name = name
        self._version = version
        self._threads = threads or usable_cores()
        self._most = most
        self._capacity = capacity
        self._on_batch = on_batch
        self._batcher: Batcher | None = None

    async def start(self) -> Model:
        """Load and check the model, then start the workers. Raises ModelNotFound, ContractError."""
        path = find(self._repository, self._name, self._version)
        data = await asyncio.to_thread(path.read_bytes)
        shared = await asyncio.to_thread(_session, data, 1, False)
        lone = shared
        if self._threads > 1:
            lone = await asyncio.to_thread(_session, data, self._threads, LONE_SPINS)
        promise = _checked_contract(shared)
        sha256 = hashlib.sha256(data).hexdigest()
        del data
        _return_memory()

        def run(images: NDArray[np.uint8], alone: bool) -> Outputs:
            logits, p_type, omega = (lone if alone else shared).run(OUTPUTS, {"image": images})
            return logits, p_type, omega

        self._batcher = Batcher(
            run,
            size=promise.preprocessing.size,
            workers=self._threads,
            most=self._most,
            capacity=self._capacity,
            on_batch=self._on_batch,
        )
        return Model(self._name, path.parent.name, sha256, promise)

    async def infer(self, pictures: Sequence[Picture]) -> Signals:
        if self._batcher is None:
            raise NotReady("the model is being loaded")
        return await self._batcher.submit(pictures)

    def waiting(self) -> int:
        return self._batcher.pending if self._batcher else 0

    async def close(self) -> None:
        if self._batcher:
            await self._batcher.close()


def find(repository: Path, name: str, version: str) -> Path:
    """The model file of `version`, or of the highest version for 'latest'. Raises ModelNotFound."""
    folder = repository / name
    if version != "latest":
        path = folder / version / "model.onnx"
        if not path.is_file():
            raise ModelNotFound(f"there is no {path}")
        return path
    versions = [int(p.name) for p in folder.glob("*") if p.name.isdecimal() and (p / "model.onnx").is_file()]
    if not versions:
        raise ModelNotFound(f"there is no version in {folder}: export a model first, or name another --repository")
    return folder / str(max(versions)) / "model.onnx"


def usable_cores() -> int:
    """Cores that this process may use: the affinity mask, cut by the cgroup's CPU quota; at least 1.

    ONNX Runtime's own default counts the host's cores, also in a container that may use two of them.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """The smallest CPU quota of this process's cgroups (version 2, or 1), in cores; None where there is none."""
    quotas = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        below = base / path.lstrip("/")
        for folder in (below, *below.parents):
            quotas.append(_quota_of(folder))
            if folder in (base, root):
                break
        quotas.append(_quota_of(root / "cpu"))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return None if limit == "max" or int(limit) <= 0 else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def _session(data: bytes, threads: int, spin: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Plans are kept for each batch size that occurs; as fast without, and 10 MB less.
    options.enable_mem_pattern = False
    # Decoding and the event loop need the cores that spinning threads would hold.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise ContractError(f"onnxruntime refuses the model: {error}") from error


def _return_memory() -> None:
    """Give what loading freed back to the system, where the C library can: 12 MB of a resident 130."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)


def _checked_contract(session: ort.InferenceSession) -> Contract:
    """The model's contract, after comparing it with the tensors that the graph really has."""
    text = session.get_modelmeta().custom_metadata_map.get(contract.METADATA_KEY)
    if text is None:
        raise ContractError(f"the model carries no {contract.METADATA_KEY!r}: it was not made by export.onnx")
    promise = contract.parse(text)
    size = promise.preprocessing.size
    wanted = {
        "image": ("tensor(uint8)", [3, size, size]),
        "logits": ("tensor(float)", [len(promise.labels)]),
        "p_type": ("tensor(float)", [2]),
        "omega": ("tensor(float)", [promise.omega_channels]),
    }
    found = {node.name: (node.type, list(node.shape[1:])) for node in (*session.get_inputs(), *session.get_outputs())}
    batch = session.get_inputs()[0].shape[:1]
    if found != wanted or isinstance(batch[0], int):
        raise ContractError(f"the graph's tensors are {found}, batch {batch}; the contract asks for {wanted}")
    return promise

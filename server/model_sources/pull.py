"""Fetches one version into a repository: nothing where it is there, else into a folder of its own that is renamed last.

What is fetched is read as the server reads a version (`engines.repository`: hash, signature, what the file may hold)
before it has a number. A kill at any moment leaves the repository as it was; the next writer sweeps up.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from domain.files import sync_folder, write

from ..core.contract import METADATA_KEY
from ..core.model_source import ModelSource, parse_model_source
from ..core.regular_files import read_regular
from ..core.version import parse_version
from ..engines.repository import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    MAX_SIGNATURE_BYTES,
    SCHEMA_VERSION,
    SIGNATURE_FILE,
    Repository,
)
from ..errors import AWNetError, SourceError
from .files import alone_in, apart
from .origins import MODEL_FILE, Origin, origin_of
from .transfer import Progress, Transfer

STAGING = ".partial-pull"  # the exporter sweeps what begins with .partial-, under the same lock
SOURCE_FILE = "source.json"  # where a version came from, beside its manifest
MAX_SOURCE_BYTES = 16 << 10


@dataclass(frozen=True)
class Pull:
    """What is to be fetched, and whereto.

    Attributes:
        repository: folder of the models; made where it is missing.
        version: its number there; None takes the next one, or that of a signed manifest.
        signing_key: PEM file of an Ed25519 public key; the source must then have a manifest and its signature beside
            the model.
        seconds: for all of it.
        progress: told of bytes of the model.
        say: told what takes long, and what is tried again.
        before: called with the folder of the model, a number and a model that gets it, before it is there.
    """

    source: ModelSource
    repository: Path
    name: str
    version: int | None = None
    signing_key: Path | None = None
    seconds: float = 600.0
    progress: Progress = lambda done, total: None
    say: Callable[[str], None] = lambda line: None
    before: Callable[[Path, int, bytes], None] = lambda home, version, model: None

    @property
    def home(self) -> Path:
        return self.repository / self.name


@dataclass(frozen=True)
class Pulled:
    """A version that is there now.

    Attributes:
        source: pinned to it.
        new: whether it was not there before.
    """

    version: int
    folder: Path
    source: ModelSource
    new: bool


async def pull(task: Pull) -> Pulled:
    """Fetch it, unless it is there. Raises SourceError; nothing was changed then."""
    try:
        async with asyncio.timeout(task.seconds):
            await apart(lambda _: task.home.mkdir(parents=True, exist_ok=True))
            async with alone_in(task.home, task.say):
                return await _alone(task)
    except TimeoutError:
        raise SourceError(f"{task.source} was not fetched within {task.seconds:g} s") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise SourceError(f"{task.source}: the disk of {task.repository} is full") from None
        raise SourceError(f"{task.repository} cannot be written to: {error.strerror or error}") from None


async def _alone(task: Pull) -> Pulled:
    """Nobody else writes versions of this model."""
    if (there := await _there(task, task.source)) is not None:
        return there
    staging = task.home / STAGING
    async with Transfer(task.say) as transfer:
        origin = origin_of(task.source, transfer)
        expected = await origin.expected()
        if task.source.sha256 not in ("", expected):
            raise SourceError(f"{task.source}: the model there has the SHA-256 {expected}")
        if (
            expected
            and task.signing_key is None
            and (there := await _there(task, task.source.pin(expected))) is not None
        ):
            return there
        try:
            for stale in task.home.glob(".partial-*"):
                shutil.rmtree(stale)
            task.say(f"fetching {task.source}")
            return await _fetch(task, origin, staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


async def _fetch(task: Pull, origin: Origin, staging: Path) -> Pulled:
    manifest = signature = None
    version = task.version
    if task.signing_key is not None:  # first: it is small, and without it the rest is of no use
        manifest = await origin.beside(MANIFEST_FILE, MAX_MANIFEST_BYTES)
        signature = await origin.beside(SIGNATURE_FILE, MAX_SIGNATURE_BYTES)
        version = _number(manifest, task)
    version = version or max([0, *_numbers(task.home)]) + 1
    folder = staging / task.name / str(version)
    folder.mkdir(parents=True)
    fetched = await origin.model(folder, task.progress)
    found = fetched.source.sha256
    if task.source.sha256 not in ("", found):
        raise SourceError(f"{task.source}: what was fetched has the SHA-256 {found}")
    if (there := await _there(task, fetched.source)) is not None:
        return there
    if (task.home / str(version)).exists():
        raise SourceError(f"{task.home / str(version)} is there, and a version is never overwritten")
    write(folder / MANIFEST_FILE, manifest or _manifest(task.name, version, found, fetched.size))
    if signature is not None:
        write(folder / SIGNATURE_FILE, signature)
    write(folder / SOURCE_FILE, json.dumps({"source": str(fetched.source)}, indent=1).encode() + b"\n")
    model = await apart(lambda _: _prove(staging, task, version))
    await apart(lambda _: sync_folder(folder))
    task.before(task.home, version, model)
    target = task.home / str(version)
    folder.rename(target)
    sync_folder(task.home)
    return Pulled(version, target, fetched.source, new=True)


async def _there(task: Pull, source: ModelSource) -> Pulled | None:
    """The version that is `source` already, the newest where several are. Raises SourceError where it is damaged."""
    return await apart(lambda _: _found(task, source))


def _found(task: Pull, source: ModelSource) -> Pulled | None:
    if not source.pinned:
        return None
    for number in sorted(_numbers(task.home), reverse=True):
        folder = task.home / str(number)
        try:
            manifest = json.loads(read_regular(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES))
            sha256 = manifest["files"][MODEL_FILE]["sha256"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        came = _came_from(folder)
        same = source.sha256 == sha256 if source.sha256 else came is not None and came.manifest == source.manifest
        if same and task.version in (None, number):
            _prove(task.repository, task, number)
            return Pulled(number, folder, source.pin(sha256), new=False)
    return None


def _prove(root: Path, task: Pull, version: int) -> bytes:
    """The model of a version. Raises SourceError where a server would refuse it, as far as no runtime tells."""
    try:
        model = Repository(root, task.signing_key).read(task.name, version).data
    except AWNetError as error:
        raise SourceError(f"{task.source}: {error.detail}") from None
    if METADATA_KEY.encode() not in model:
        raise SourceError(f"{task.source} is no model of this server: the file carries no contract")
    return model


def _came_from(folder: Path) -> ModelSource | None:
    try:
        return parse_model_source(json.loads(read_regular(folder / SOURCE_FILE, MAX_SOURCE_BYTES))["source"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _numbers(home: Path) -> list[int]:
    return [number for entry in os.scandir(home) if (number := parse_version(entry.name)) is not None]


def _number(manifest: bytes, task: Pull) -> int:
    """The version that a publisher's manifest speaks of; `Repository` reads the rest of it. Raises SourceError."""
    try:
        document = json.loads(manifest)
        name, version = document["model"], document["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SourceError(f"{task.source}: its {MANIFEST_FILE} names no model and version") from None
    if type(version) is not int or parse_version(str(version)) is None or name != task.name:
        raise SourceError(f"{task.source}: its {MANIFEST_FILE} is that of {str(name)[:40]!r} {str(version)[:20]}")
    if task.version not in (None, version):
        raise SourceError(f"{task.source} is version {version}, as its signature has it, not {task.version}")
    return version


def _manifest(name: str, version: int, sha256: str, size: int) -> bytes:
    """As the exporter writes it."""
    files = {MODEL_FILE: {"sha256": sha256, "bytes": size}}
    document = {"schema_version": SCHEMA_VERSION, "model": name, "version": version, "files": files}
    return (json.dumps(document, indent=1) + "\n").encode()

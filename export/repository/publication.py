"""How a version enters a repository: whole or not at all, whatever ends the process; `repository` has the layout."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from domain.files import alone_in, replace, sync_folder, write

from .layout import CONFIG_FILE, MANIFEST_FILE, MODEL_FILE, STAGING, manifest, numbered


def add_version(
    model: bytes, home: Path, config: Callable[[int], bytes | None], version: int | None = None, after: int = 0
) -> Path:
    """Write `model` into the folder `home` of a model as a new version; returns the folder of that.

    Args:
        config: the `config.pbtxt` that tells of a version, None to leave what is there; what it raises ends the
            publication before anything is written.
        version: None takes the next number, above `after`.

    Raises OSError.
    """
    home.mkdir(parents=True, exist_ok=True)
    with alone_in(home):
        for stale in home.glob(f"{STAGING}*"):
            shutil.rmtree(stale)
        version = version or max([after, *numbered(home)]) + 1
        described = config(version)
        staging, target = home / f"{STAGING}{version}", home / str(version)
        staging.mkdir()
        write(staging / MODEL_FILE, model)
        write(staging / MANIFEST_FILE, manifest(model, home.name, version))
        sync_folder(staging)
        if described is not None:
            replace(home / CONFIG_FILE, described)
        staging.rename(target)
        sync_folder(home)
    return target

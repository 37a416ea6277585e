"""A model in this process: the server's own application without its sockets, and without torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from server.core.bundled import model_repository
from server.core.version import parse_version
from server.engines.model_file import VERSION
from server.engines.repository import MANIFEST_FILE, MODEL_FILE
from server.settings.settings import Settings

from ..local import Local, StartError
from .errors import LoadError, refusal
from .loop import LoopThread
from .predictor import AsyncPredictor, Options, Predictor, Request, SignalsLevel

TIMEOUT_SECONDS = 60.0


class LocalSettings(Settings):
    """The server's settings without its variables and its file: what holds in this process is what its code says."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The arguments alone."""
        return (init_settings,)


class LocalModel(Predictor):
    """A model in this process; made by `load`."""


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    model: str = "awnet",
    version: int | None = None,
    mode: Literal["auto", "robust", "natural"] = "auto",
    threads: int = 0,
    prior: float = 0.01,
    timeout: float = TIMEOUT_SECONDS,
    top_k: int | None = None,
    signals: SignalsLevel | None = None,
) -> LocalModel:
    """A model to be asked in this process, with the answers that a server gives; its golden self-test has passed.

    Args:
        path: a folder of models as the server reads it, or a `model.onnx`; None is `model_repository` in the current
            folder, or the bundled one. A file in such a folder is held to its manifest, any other to its contract.
        model, version: which one of a folder; the highest version where none is named.
        mode: operating mode of calls that name none.
        threads: that run the model; 0 takes as many as there are cores to use.
        prior: share of attacked images among all; `probability` rests on it.
        timeout: seconds that a call may take at most.
        top_k, signals: what each call asks for unless it says otherwise.

    Raises:
        LoadError: there is no such model, it is not whole, or it fails its self-test.
        ValueError: of the other arguments.
    """
    found = model_repository() if path is None else Path(path)
    if found.name == MODEL_FILE and (found.parent / MANIFEST_FILE).exists():
        folder = found.resolve().parent
        found, model, version = folder.parent.parent, folder.parent.name, parse_version(folder.name)
    elif found.is_file():
        version = VERSION
    elif not found.exists():
        raise LoadError(f"{found}: there is no such file or folder")
    given: dict[str, Any] = {
        "repository": found,
        "model": model,
        "version": "latest" if version is None else str(version),
        "mode": mode,
        "threads": threads,
        "prior": prior,
        "timeout_seconds": timeout,
    }
    try:
        settings = LocalSettings(**given)
    except ValidationError as error:
        raise ValueError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from None
    loop = LoopThread("awnet-model")
    try:
        return LocalModel(loop.run(opened(settings, Options(top_k, signals))), loop)
    except BaseException as error:
        loop.close()
        if isinstance(error, StartError):
            raise LoadError(f"{found}: {error}") from error
        raise


async def opened(settings: Settings, options: Options) -> AsyncPredictor:
    """A model in this process, for callers with an event loop, to which it belongs. Raises StartError."""
    return _AsyncLocal(await Local(settings).__aenter__(), options)


class _AsyncLocal(AsyncPredictor):
    """Belongs to the event loop that `local` was entered on, and leaves it."""

    def __init__(self, local: Local, options: Options) -> None:
        super().__init__(options, local.settings.timeout_seconds)
        self._local = local

    async def aclose(self) -> None:
        await self._local.__aexit__()

    async def _ask(self, asked: Request, timeout: float) -> Any:
        query = urlencode(asked.parameters(timeout))
        reply = await self._local.ask(asked.method, f"/{asked.path}", asked.body, query, asked.headers)
        if reply.status != 200:
            raise refusal(reply.status, reply.body, None, None)
        return json.loads(reply.body)

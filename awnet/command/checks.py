"""The checks of `awnet doctor`, each one line about this machine or about the model."""

from __future__ import annotations

import asyncio
import os
import platform
import stat
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import orjson

from domain import __version__
from server.access.keys import Keys, read_file
from server.core.bundled import EXAMPLES
from server.core.cpu_limits import cgroup_quota, usable_cores
from server.core.model_source import parse_model_source
from server.engines.model_file import repository_of
from server.errors import AWNetError
from server.findings.webhook import read_secret
from server.ports.listening import listen
from server.ports.tls import EXPIRES_SOON_SECONDS, Certificates
from server.settings.settings import Settings

from ..local import Local, StartError

LIBRARIES = ("numpy", "pillow", "fastapi", "uvicorn", "uvloop", "httptools", "pydantic", "prometheus-client", "grpcio")
EXTRAS = {
    "training": ("torch", "torchvision", "scipy", "tqdm"),
    "export": ("torch", "onnx"),
    "audit": ("scipy", "tqdm"),
    "signing": ("cryptography",),
    "telemetry": ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
    "parquet": ("pyarrow",),
    "planning": ("simpy",),
    "ray": ("ray",),
}
VECTOR_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "asimddp", "bf16")
DESCRIPTORS_ASIDE = 64  # files, sockets and pipes of a server beside its clients' connections


State = Literal["ok", "warn", "fail"]


class Check(NamedTuple):
    """One line of the report; `warn` may be lived with, `fail` keeps a server from serving."""

    state: State
    about: str
    found: str


def checks(settings: Settings, say: Callable[[str], None]) -> Iterator[Check]:
    """Every check, the quick ones first.

    Args:
        say: told what takes long.
    """
    yield Check("ok", "awnet", f"{__version__}, Python {platform.python_version()}, {Path(__file__).parents[1]}")
    yield processor()
    yield from libraries()
    yield descriptors(settings)
    yield from ports(settings)
    yield from access(settings)
    yield from sending(settings)
    fetched = None
    if settings.model_source:
        fetched, settings = source(settings, say)
        yield fetched
    if settings.engine == "embedded":
        yield from repository(settings)
    if fetched is not None and fetched.state == "fail":
        yield Check("fail", "model", "not opened: its source has not been fetched")
    else:
        yield model(settings)


def processor(info: Path = Path("/proc/cpuinfo")) -> Check:
    """Cores that may be used, and the vector instructions that ONNX Runtime and Pillow look for."""
    name, flags = platform.machine(), set[str]()
    if info.is_file():
        fields = {key.strip(): value.strip() for key, _, value in (row.partition(":") for row in info.open())}
        name = fields.get("model name", name)
        flags = set((fields.get("flags") or fields.get("Features") or "").split())
    quota = cgroup_quota()
    cores = f"{usable_cores()} usable cores" + ("" if quota is None else f", quota {quota:g}")
    has = [flag for flag in VECTOR_FLAGS if flag in flags]
    slow = platform.machine() == "x86_64" and bool(flags) and "avx2" not in flags
    return Check("warn" if slow else "ok", "processor", f"{name}, {cores}, {' '.join(has) or 'no vector instructions'}")


def libraries() -> Iterator[Check]:
    """Versions; the runtime, which two distributions bring under one name; what the extras need."""
    runtimes = {name: found for name in ("onnxruntime-gpu", "onnxruntime") if (found := version(name))}
    try:
        import onnxruntime

        providers = ", ".join(p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers())
        told = f"{' and '.join(f'{name} {v}' for name, v in runtimes.items())}, providers: {providers}"
        both = len(runtimes) > 1
        yield Check(
            "warn" if both else "ok",
            "runtime",
            told + ("; both write the same files: uninstall both, then install one" if both else ""),
        )
    except ImportError as error:
        yield Check("fail", "runtime", f"onnxruntime cannot be loaded: {error}")
    versions = {name: version(name) for name in LIBRARIES}
    missing = [name for name, v in versions.items() if v is None]
    told = ", ".join(f"{name} {v}" for name, v in versions.items() if v)
    yield Check("fail" if missing else "ok", "libraries", f"{', '.join(missing)} missing; {told}" if missing else told)
    listed = "; ".join(
        f"{extra}: "
        + (f"needs {', '.join(absent)}" if (absent := [n for n in names if not version(n)]) else "installed")
        for extra, names in EXTRAS.items()
    )
    yield Check("ok", "extras", listed)


def version(distribution: str) -> str | None:
    """Of an installed distribution."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def descriptors(settings: Settings) -> Check:
    """Whether as many connections as the settings allow can be open."""
    if sys.platform == "win32":
        return Check("ok", "descriptors", "not limited here")
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    wanted = settings.max_connections + DESCRIPTORS_ASIDE
    told = f"{limit} may be open; {settings.max_connections} connections need {wanted}"
    return Check("ok" if limit >= wanted else "warn", "descriptors", told)


def ports(settings: Settings) -> Iterator[Check]:
    """Whether each address can be bound."""
    wanted = list(settings.http_ports.values())
    if settings.grpc_port is not None:
        wanted.append((settings.host, settings.grpc_port, "--grpc-port"))
    for host, port, option in wanted:
        name = option.removeprefix("--")
        try:
            for tried in listen(host, port, option):
                tried.close()
            yield Check("ok", name, f"{host}:{port} is free")
        except AWNetError as error:
            yield Check("fail", name, error.detail)


def access(settings: Settings) -> Iterator[Check]:
    """The file of API keys and the certificate, where the settings name them, and who is let in without keys."""
    if settings.api_keys is not None:
        try:
            text, mode = read_file(settings.api_keys)
            count = len(Keys.parse(text).entries)
            yield _closed("keys", f"{count} names in {settings.api_keys}", mode)
        except AWNetError as error:
            yield Check("fail", "keys", error.detail)
    elif settings.host not in ("127.0.0.1", "::1", "localhost"):
        yield Check("warn", "keys", f"{settings.host} is reached from elsewhere, and nobody needs a key (--api-keys)")
    if settings.tls_certificate is not None and settings.tls_key is not None:
        try:
            certificate = Certificates(settings.tls_certificate, settings.tls_key, settings.tls_client_ca).current
            left = certificate.not_after - time.time()
            told = f"{settings.tls_certificate} is valid for {left / 86_400:.0f} days more"
            state: State = "ok" if left > EXPIRES_SOON_SECONDS else "warn" if left > 0 else "fail"
            yield Check(state, "certificate", told if left > 0 else f"{settings.tls_certificate} has expired")
            yield _closed("tls-key", str(settings.tls_key), settings.tls_key.stat().st_mode)
        except AWNetError as error:
            yield Check("fail", "certificate", error.detail)


def sending(settings: Settings) -> Iterator[Check]:
    """The folder of findings, their webhook's secret, and what OpenTelemetry needs, where the settings ask for them."""
    if settings.findings_dir is not None:
        folder = settings.findings_dir.absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        told = f"{folder} {'can' if writable else 'cannot'} be written to"
        yield Check("ok" if writable else "fail", "findings", told)
    if settings.findings_webhook_secret_file is not None:
        secret = settings.findings_webhook_secret_file
        try:
            read_secret(secret)
            yield _closed("webhook", f"the secret {secret}", secret.stat().st_mode)
        except AWNetError as error:
            yield Check("fail", "webhook", error.detail)
    if settings.otlp_endpoint:
        absent = [name for name in EXTRAS["telemetry"] if not version(name)]
        told = f"needs {', '.join(absent)}, the extra telemetry" if absent else f"to {settings.otlp_endpoint}"
        yield Check("fail" if absent else "ok", "telemetry", told)


def _closed(about: str, told: str, mode: int) -> Check:
    """Of a file with this mode whose contents are secret."""
    loose = bool(mode & (stat.S_IROTH | stat.S_IWOTH))
    return Check("warn" if loose else "ok", about, told + ("; every user of this machine reads it" if loose else ""))


def source(settings: Settings, say: Callable[[str], None]) -> tuple[Check, Settings]:
    """The model source, fetched as a server would, and the settings of one that has it already."""
    from server.model_sources.startup import fetch

    say(f"model source: {settings.model_source_seconds:g} s at most (--model-source-seconds)")
    fetched = {"model_source": ""}  # it is asked once
    try:
        pinned = asyncio.run(fetch(settings, say))
    except AWNetError as error:
        return Check("fail", "source", error.detail), settings.model_copy(update=fetched)
    told = f"{parse_model_source(settings.model_source)}: version {pinned.version} of {settings.model}"
    return Check("ok", "source", told), pinned.model_copy(update=fetched)


def repository(settings: Settings) -> Iterator[Check]:
    """What the folder, or the file, holds, and whether others than its owner may change what will be run."""
    root = settings.repository
    try:
        found = repository_of(root, settings.model, settings.signing_key).catalogue()
    except AWNetError as error:
        yield Check("fail", "repository", error.detail)
        return
    told = "; ".join(f"{name} {', '.join(map(str, versions))}" for name, versions in found.items()) or "no models"
    yield Check("ok" if settings.model in found else "fail", "repository", f"{root.resolve()}: {told}")
    try:
        entries = [root, *root.glob("*"), *root.glob("*/*"), *root.glob("*/*/*")]
        open_to_all = [path for path in entries if path.stat().st_mode & stat.S_IWOTH and not path.is_symlink()]
        unread = [path for path in entries if not os.access(path, os.R_OK)]
    except OSError as error:
        yield Check("fail", "permissions", f"{error.filename}: {error.strerror}")
        return
    if unread:
        yield Check("fail", "permissions", f"{unread[0]} cannot be read")
    elif open_to_all:
        yield Check("warn", "permissions", f"{open_to_all[0]} can be written by every user of this machine")
    else:
        yield Check("ok", "permissions", "readable, and nobody but owner and group can write")


def model(settings: Settings) -> Check:
    """Opens the model as a server would, proves it by its golden values, and asks it for one of the examples."""
    example = EXAMPLES / "ship.png"

    async def tried() -> str:
        begun = time.perf_counter()
        async with Local(settings) as local:
            opened = time.perf_counter() - begun
            told = f"golden values hold, opened in {opened:.1f} s"
            if not example.is_file():
                return told
            image = example.read_bytes()
            for _ in range(3):  # the last one is timed
                begun = time.perf_counter()
                reply = await local.predict(image)
            answer = orjson.loads(reply.body)
            if reply.status != 200:
                raise StartError(f"{example.name} is answered with {reply.status}: {answer.get('detail')}")
            about = answer["model"]
            told = f"{about['name']} version {about['version']}: {told}, an image in "
            return f"{told}{1000 * (time.perf_counter() - begun):.1f} ms"

    try:
        return Check("ok", "model", asyncio.run(tried()))
    except StartError as error:
        return Check("fail", "model", str(error))

"""`awnet pull SOURCE`: fetch a version of a model into a repository, verified, whole or not at all.

Sources, each with `#sha256=...` behind it, the digest of model.onnx, where it is pinned:

  file:///folder/model.onnx                      a file, or the folder of a version
  https://host/path/model.onnx                   of any web server
  hf://org/repository/model.onnx@revision        of Hugging Face: HF_TOKEN, HF_ENDPOINT
  s3://bucket/key/model.onnx?versionId=...       of S3: AWS_ACCESS_KEY_ID, ..., AWS_ENDPOINT_URL_S3
  oci://registry/repository@sha256:...           of a registry, or :tag: DOCKER_CONFIG

Without SOURCE it does what a server would at its start: fetches AWNET_MODEL_SOURCE into AWNET_REPOSITORY, and refuses
what is neither pinned nor signed.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.core.model_source import parse_model_source
from server.core.version import MODEL_NAME, WHAT, parse_version
from server.errors import AWNetError

if TYPE_CHECKING:
    from server.model_sources.pull import Pull

EXAMPLES = """examples:
  awnet pull oci://registry.example/models/awnet:4 --to models
  awnet pull https://example.org/awnet/4/model.onnx --to models --digest sha256:9f86...0a08
  awnet pull hf://org/awnet/model.onnx@main --to models --signing-key publisher.pub.pem
  AWNET_MODEL_SOURCE=oci://registry.example/models/awnet@sha256:... AWNET_REPOSITORY=models awnet pull

exit status: 0 the version is there, 1 it could not be fetched or is not what it has to be, 2 nothing was tried,
130 interrupted
"""
SHOWN_SECONDS = 0.1
MAX_SECONDS = 86_400


def parser() -> argparse.ArgumentParser:
    """The options of `awnet pull`."""
    made = argparse.ArgumentParser(
        "awnet pull", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("source", nargs="?", metavar="SOURCE", help="where it is (default: AWNET_MODEL_SOURCE, as a server takes it)")
    add("--to", type=Path, metavar="DIR", help="repository that it is written to (default: model_repository)")
    add("--name", metavar="NAME", help="name of the model there (default: awnet)")
    add("--version", metavar="N", help="its number there (default: the next one, or that of a signed manifest)")
    add("--digest", metavar="sha256:HEX", help="SHA-256 that model.onnx must have, as #sha256=HEX behind SOURCE")
    add("--signing-key", type=Path, metavar="FILE", help="PEM file of an Ed25519 public key that must have signed it")
    add("--seconds", type=float, metavar="SECONDS", help="longest time for all of it (default: 600)")
    add("--quiet", action="store_true", help="say nothing but what fails")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = parser().parse_args(arguments)
    from server.model_sources.pull import pull
    from server.model_sources.startup import run, summary

    bar = _Bar(shown=sys.stderr.isatty() and not given.quiet)
    try:
        task = dataclasses.replace(
            _task(given), progress=bar.at, say=_nothing if given.quiet else bar.say, before=_tell_triton
        )
    except ValueError as error:  # SettingsError, too
        print(f"awnet pull: {error}", file=sys.stderr)
        return 2
    try:
        found = run(pull(task), signal.SIGTERM)
    except AWNetError as error:
        bar.end()
        print(f"awnet pull: {error.detail}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        bar.end()
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        bar.end()
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    bar.end()
    if not given.quiet:
        print(f"{summary(found)}: {found.folder}")
        print(f"pinned: {found.source}")
    return 0


def _task(given: argparse.Namespace) -> Pull:
    """What the command line, or without SOURCE the settings, ask for. Raises ValueError."""
    from server.model_sources.pull import Pull
    from server.model_sources.startup import task_of
    from server.settings.options import settings_of

    if given.source is None:
        for name in ("to", "name", "version", "digest", "signing_key", "seconds"):
            if getattr(given, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} needs SOURCE; without it the settings say everything")
        settings = settings_of({})
        if not settings.model_source:
            raise ValueError("SOURCE is missing, and AWNET_MODEL_SOURCE is not set")
        return task_of(settings)
    try:
        source = parse_model_source(given.source)
    except ValueError as error:
        if Path(given.source).exists():
            raise ValueError(
                f"SOURCE is an address; that of this path is {Path(given.source).absolute().as_uri()}"
            ) from None
        raise ValueError(f"SOURCE {error}") from None
    if given.digest is not None:
        digest = re.fullmatch("(?:sha256:)?([0-9a-f]{64})", given.digest)
        if digest is None:
            raise ValueError("--digest must be sha256: and 64 hexadecimal digits in lower case")
        if source.sha256 not in ("", digest[1]):
            raise ValueError("--digest is another than that of SOURCE")
        source = source.pin(digest[1])
    name = "awnet" if given.name is None else given.name
    if not re.fullmatch(MODEL_NAME, name):
        raise ValueError(f"--name: {name[:40]!r} is no model name")
    version = None if given.version is None else parse_version(given.version)
    if given.version is not None and version is None:
        raise ValueError(f"--version: {WHAT}")
    seconds = 600.0 if given.seconds is None else given.seconds
    if not 0 < seconds <= MAX_SECONDS:
        raise ValueError(f"--seconds must be above 0 and at most {MAX_SECONDS}")
    return Pull(source, given.to or Path("model_repository"), name, version, given.signing_key, seconds)


def _tell_triton(home: Path, version: int, model: bytes) -> None:
    """Keep up Triton's config.pbtxt, where there is one. Raises SourceError, OSError."""
    if not (home / "config.pbtxt").is_file():
        return
    from domain.files import replace
    from server.errors import SourceError

    from .versions import VersionError, told_to_triton

    try:
        described = told_to_triton(home, version, model)
    except VersionError as error:
        raise SourceError(str(error)) from None
    if described is not None:
        replace(home / "config.pbtxt", described)


def _nothing(line: str) -> None:
    pass


class _Bar:
    """A line on the terminal that tells how far it is."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._begun = self._last = time.monotonic()
        self._open = False

    def at(self, done: int, total: int | None) -> None:
        """So many bytes are there."""
        now = time.monotonic()
        if not self._shown or (now - self._last < SHOWN_SECONDS and done != total):
            return
        self._last, self._open = now, True
        of = f" of {total / 1e6:.1f} MB, {100 * done / total:.0f} %" if total else " MB"
        print(
            f"\r{done / 1e6:.1f}{of}, {done / 1e6 / max(now - self._begun, 1e-3):.1f} MB/s  ", end="", file=sys.stderr
        )

    def say(self, line: str) -> None:
        """Another line."""
        self.end()
        print(line, file=sys.stderr)

    def end(self) -> None:
        """Leave the line."""
        if self._open:
            print(file=sys.stderr)
        self._open = False

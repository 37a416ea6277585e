"""`python -m export.triton_python`: the same models for Triton's Python backend.

The stock Triton image runs `model_repository` as it is, with its onnxruntime backend. A Triton that has the Python
backend only, such as the one in the `nvidia-pytriton` wheel, runs what this program writes: the same files, the same
tensors and the same `config.pbtxt` but for `backend`, and a `model.py` for each version.

Only the standard library is used, so that the small environment of Triton itself can run it.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from domain.files import alone_in, replace, sync_folder, write

from .repository.layout import CONFIG_FILE, MODEL_FILE, NAME, versions

PROGRAM_FILE = "model.py"
PROGRAM = Path(__file__).with_name("repository") / "triton_backend.py"
STAGING = ".partial-"
BACKEND = re.compile(r'^backend: "onnxruntime"$', re.MULTILINE)

EXAMPLES = """examples:
  python -m export.triton_python --repository model_repository --out build/triton/repository
  python deploy/triton/run.py --repository build/triton/repository
"""


class ConversionError(RuntimeError):
    """The repository cannot be converted; what was written before stands."""


def convert(repository: Path, out: Path, name: str = "awnet") -> list[int]:
    """Write every version of `name` in `repository` into `out`; returns the versions, ascending.

    Run again, it adds the versions that are new. A running Triton may watch `out`: each version appears at once and
    whole, after the `config.pbtxt` that describes it.

    Raises:
        ConversionError: no such model; a version that differs from its hash in config.pbtxt, or from the one that
            `out` holds; `out` holds a version that `repository` has not.
    """
    if not NAME.fullmatch(name):
        raise ConversionError(f"{name!r} is no model name: letters, digits, '.', '_' and '-' only")
    source, home = repository / name, out / name
    if source.resolve() == home.resolve():
        raise ConversionError(f"{home} is the model itself: name another --out")
    if not (source / CONFIG_FILE).is_file():
        raise ConversionError(f"there is no {source / CONFIG_FILE}: export a model first, or name another --repository")
    config, found = BACKEND.subn('backend: "python"', (source / CONFIG_FILE).read_text("utf-8"))
    if found != 1:
        raise ConversionError(f'{source / CONFIG_FILE} has no line backend: "onnxruntime"; export.onnx writes one')
    models = {version: (source / str(version) / MODEL_FILE).read_bytes() for version in versions(source)}
    if not models:
        raise ConversionError(f"there is no version in {source}")
    for version, data in models.items():
        sha256 = hashlib.sha256(data).hexdigest()
        if f'key: "sha256.{version}" value {{ string_value: "{sha256}" }}' not in config:
            raise ConversionError(f"{source / CONFIG_FILE} does not name the SHA-256 of version {version}, {sha256}")

    home.mkdir(parents=True, exist_ok=True)
    with alone_in(home):
        for stale in home.glob(f"{STAGING}*"):
            shutil.rmtree(stale)
        present = versions(home)
        if surplus := sorted(set(present) - set(models)):
            raise ConversionError(f"{home} holds versions {surplus} that {source} has not: remove them, or start anew")
        for version in present:
            if (home / str(version) / MODEL_FILE).read_bytes() != models[version]:
                raise ConversionError(f"version {version} in {home} is another model: write to another --out")
        staged = []
        for version in sorted(set(models) - set(present)):
            staging = home / f"{STAGING}{version}"
            staging.mkdir()
            write(staging / MODEL_FILE, models[version])
            write(staging / PROGRAM_FILE, PROGRAM.read_bytes())
            sync_folder(staging)
            staged.append((staging, home / str(version)))
        _put(home / CONFIG_FILE, config.encode())
        for staging, target in staged:
            staging.rename(target)
        for version in present:  # another release of ours may bring another program
            _put(home / str(version) / PROGRAM_FILE, PROGRAM.read_bytes())
        sync_folder(home)
    return sorted(models)


def _put(path: Path, data: bytes) -> None:
    """Put `data` in the place of the file; one that holds it already stays as it is."""
    if not path.is_file() or path.read_bytes() != data:
        replace(path, data)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 written, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="python -m export.triton_python",
        description="Write a model repository for Triton's Python backend.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), metavar="DIR", help="%(default)s")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new repository; made if absent")
    parser.add_argument("--name", default="awnet", help="of the model (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        versions = convert(options.repository, options.out, options.name)
    except (ConversionError, OSError) as error:
        print(f"not converted: {error}", file=sys.stderr)
        return 2
    print(f"{options.out / options.name}: version {', '.join(map(str, versions))} for Triton's Python backend")
    return 0


if __name__ == "__main__":
    sys.exit(main())

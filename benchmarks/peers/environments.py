"""An environment for each peer, from the versions in `apps/NAME.txt`; plain FastAPI runs in this one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

from .contestants import APPS, OURS

HERE = ("fastapi", OURS)  # they need nothing that this environment has not
PACKAGE = {"triton": "nvidia-pytriton"}  # where it is not named like the peer
STAMP = "versions.txt"  # in an environment: what it was made from, written last


def set_up(folder: Path, names: Iterable[str]) -> None:
    """Make what is not there yet; one that was broken off is made again. Raises CalledProcessError."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
    for name in tqdm([name for name in names if name not in HERE], desc="environments"):
        home, wanted = folder / name, APPS / f"{name}.txt"
        if not missing(folder, [name]):
            continue
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([uv, "venv", "--quiet", "--python", "3.11", home], check=True)
        install = [uv, "pip", "install", "--quiet", "--no-deps", "--python", home / "bin/python", "-r", wanted]
        subprocess.run(install, check=True)
        (home / STAMP).write_bytes(wanted.read_bytes())


def missing(folder: Path | None, names: Iterable[str]) -> list[str]:
    """Peers whose environment is not there, not whole, or of other versions."""

    def whole(name: str) -> bool:
        stamp = folder / name / STAMP if folder else None
        return bool(stamp and stamp.is_file() and stamp.read_bytes() == (APPS / f"{name}.txt").read_bytes())

    return [name for name in names if name not in HERE and not whole(name)]


def versions(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Of each contestant, and of its ONNX Runtime."""
    found = {}
    for name in names:
        if name in HERE:
            package = "fastapi" if name == "fastapi" else None
            here = {"version": metadata.version(package)} if package else {}
            found[name] = here | {"onnxruntime": _onnxruntime()}
        else:
            versions = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", (APPS / f"{name}.txt").read_text("utf-8")))
            found[name] = {"version": versions[PACKAGE.get(name, name)], "onnxruntime": versions["onnxruntime"]}
    return found


def _onnxruntime() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)

"""Every command that a text of this repository names can be run."""

from __future__ import annotations

import contextlib
import re

import pytest

from tests.repository import ROOT, tracked
from training.renames import COMMANDS

NOWHERE = "training.nothing"
OURS = "server|export|training|benchmarks|deploy|examples|tests"
# "python -m X", "torchrun ... -m X", and "-m", "X" in a list of arguments; not "-m benchmarks.{name}".
NAMED = re.compile(rf"""-m[ ",']+((?:{OURS})\b(?:\.\w+)*)(?![\w.]*[{{<])""")


def runnable(module: str) -> bool:
    """Whether `python -m MODULE` starts something: a program of ours, or the old name of one."""
    path = ROOT / module.replace(".", "/")
    if path.is_dir():
        return (path / "__main__.py").is_file()
    file = path.with_suffix(".py")
    return module in COMMANDS or (file.is_file() and '__name__ == "__main__"' in file.read_text("utf-8"))


def named() -> dict[str, set[str]]:
    """module -> the files of the repository that say `python -m module`."""
    found: dict[str, set[str]] = {}
    for path in tracked():
        with contextlib.suppress(UnicodeDecodeError):
            for module in NAMED.findall(path.read_text("utf-8")):
                found.setdefault(module, set()).add(path.relative_to(ROOT).as_posix())
    return found


def test_every_command_that_is_named_anywhere_exists() -> None:
    """In documents, help texts, error messages, docstrings, the Makefile and recorded results."""
    found = named()
    assert {"server", "export.onnx", "training.train", "benchmarks.peers"} <= found.keys()
    assert {module: sorted(files) for module, files in found.items() if not runnable(module)} == {}


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        (f"run `python -m {NOWHERE}` first", [NOWHERE]),
        ("torchrun --standalone -m training.train --recipe", ["training.train"]),
        ('[sys.executable, "-m", "server.process"]', ["server.process"]),
        ("python -m benchmarks.{name} or python -m benchmarks.<name>, python -m pip", []),
    ],
)
def test_a_command_is_found_however_it_is_written(text: str, modules: list[str]) -> None:
    """What the test above looks for; templates and other people's programs are none of ours."""
    assert NAMED.findall(text) == modules
    assert not runnable(NOWHERE) and not runnable("training.networks.awnet") and not runnable("training")

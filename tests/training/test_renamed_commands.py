"""Old commands of training: they work, say what they are now, and stand in docs/renames.md."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from training.renames import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
NEW = {"training.audit", "training.audit.pages", "training.calibrate", "training.evaluate"}  # never had another name


Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`python -m` in this process, which has torch already: what it says on stdout and stderr; it must succeed."""

    def run(module: str, *arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        for name in (module, f"{module}.__main__"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        assert end.value.code in (0, None)
        return capsys.readouterr()

    return run


@pytest.mark.parametrize("old", COMMANDS)
def test_an_old_command_does_its_work_and_says_in_one_line_what_it_is_now(old: str, run: Run) -> None:
    """On stdout stands what the first new command says, on stderr the warning and nothing else."""
    help_of_old, warning = run(*old.split(), *([] if old != "training.evaluate --table" else ["1"]), "--help")
    assert help_of_old == run(COMMANDS[old][0], "--help")[0]
    (said,) = warning.splitlines()
    assert said.startswith(f"warning: python -m {old} ") and all(f"python -m {new}" in said for new in COMMANDS[old])


@pytest.mark.parametrize("module", sorted(NEW.union(*COMMANDS.values())))
def test_help_shows_the_command_and_an_example(module: str, run: Run) -> None:
    """What a reader copies from --help is the command that printed it."""
    text, _ = run(module, "--help")
    assert text.startswith(f"usage: python -m {module} ") and f"\n    python -m {module} --" in text


def test_the_document_lists_exactly_the_old_commands() -> None:
    """docs/renames.md, section Commands: old and new, in code."""
    _, _, section = (ROOT / "docs/renames.md").read_text("utf-8").partition("\n## Commands\n")
    rows = re.findall(r"^\| `python -m ([^`]+)` \| (.+) \|$", section.partition("\n## ")[0], re.MULTILINE)
    found = {old: tuple(re.findall(r"`python -m ([^`]+)`", new)) for old, new in rows}
    assert found == COMMANDS

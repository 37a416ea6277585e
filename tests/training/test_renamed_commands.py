"""Old commands of training: they work, say what they are now, and stand in docs/renames.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from training.renames import COMMANDS

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("old", COMMANDS)
def test_an_old_command_does_its_work_and_says_in_one_line_what_it_is_now(old: str) -> None:
    """On stdout stands what the first new command says, on stderr the warning and nothing else."""
    help_of_old = run(*old.split(), *([] if old != "training.evaluate --table" else ["1"]), "--help")
    help_of_new = run(COMMANDS[old][0], "--help")
    assert help_of_old.returncode == 0 and help_of_old.stdout == help_of_new.stdout
    (said,) = help_of_old.stderr.splitlines()
    assert said.startswith(f"warning: python -m {old} ") and all(f"python -m {new}" in said for new in COMMANDS[old])


@pytest.mark.parametrize("module", sorted({module for new in COMMANDS.values() for module in new}))
def test_help_shows_the_command_and_an_example(module: str) -> None:
    """What a reader copies from --help is the command that printed it."""
    text = run(module, "--help").stdout
    assert text.startswith(f"usage: python -m {module} ") and f"\n    python -m {module} --" in text


def test_the_document_lists_exactly_the_old_commands() -> None:
    """docs/renames.md, section Commands: old and new, in code."""
    _, _, section = (ROOT / "docs/renames.md").read_text("utf-8").partition("\n## Commands\n")
    rows = re.findall(r"^\| `python -m ([^`]+)` \| (.+) \|$", section.partition("\n## ")[0], re.MULTILINE)
    found = {old: tuple(re.findall(r"`python -m ([^`]+)`", new)) for old, new in rows}
    assert found == COMMANDS

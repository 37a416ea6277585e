"""`awnet completion`: the shell offers what a command takes, from the command's own help."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from awnet.__main__ import main
from awnet.command import completion
from server.settings.options import choices

COMMANDS = {"serve": "serve", "predict": "predict", "completion": "this"}


@pytest.fixture(scope="module")
def words() -> dict[str, dict[str, list[str]]]:
    return {name: completion.options(name, main) for name in ("serve", "predict")}


def test_options_and_choices_are_those_of_the_help(words: dict[str, dict[str, list[str]]]) -> None:
    assert words["serve"]["--mode"] == ["auto", "robust", "natural"] and words["serve"]["--max-batch"] == []
    assert {"--triton-tls", "--no-triton-tls", "--config", "--help"} <= words["serve"].keys()
    assert {"--out", "--resume", "--url"} <= words["predict"].keys()
    assert words["predict"]["--engine"] == [*choices("engine"), "ray"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["pre"], "predict"),
        (["serve", "--mode", ""], "auto robust natural"),
        (["serve", "--max-ba"], "--max-batch"),
        (["predict", "--resu"], "--resume"),
        (["completion", "z"], "zsh"),
        (["predict", "phot"], "photo.png"),
    ],
)
def test_bash_offers_them(
    typed: list[str], offered: str, words: dict[str, dict[str, list[str]]], tmp_path: Path
) -> None:
    """And files where neither an option nor a choice is wanted."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    (tmp_path / "photo.png").touch()
    line = " ".join(f"'{word}'" for word in ["awnet", *typed])
    asked = f"COMP_WORDS=({line}); COMP_CWORD={len(typed)}; _awnet; echo ${{COMPREPLY[@]}}"
    script = f"{completion.bash(COMMANDS, words)}\n{asked}"
    said = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (said.stdout.strip(), said.stderr) == (offered, "")


def test_a_script_for_fish_names_every_option_once(words: dict[str, dict[str, list[str]]]) -> None:
    lines = completion.fish(COMMANDS, words).splitlines()
    assert len(lines) == len(set(lines)) == len(COMMANDS) + 1 + sum(len(found) for found in words.values())
    assert "complete -c awnet -n '__fish_seen_subcommand_from serve' -l engine -x -a 'embedded triton'" in lines
    assert all(line.count("'") % 2 == 0 for line in lines)


def test_another_shell_is_refused_with_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for given in ([], ["tcsh"], ["bash", "zsh"]):
        assert main(["completion", *given]) == 2
        assert capsys.readouterr().err.startswith("usage: awnet completion {bash,zsh,fish}")

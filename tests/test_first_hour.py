"""The transcript of the first hour: what it may show, and that it follows the documents."""

from __future__ import annotations

import os
from pathlib import Path

from awnet.__main__ import COMMANDS
from benchmarks.harness.report import RESULTS, ROOT
from benchmarks.project.first_hour import FIRST, LAST, SETTINGS, Done, Step, after, chapters, cleaned, python_of
from server.settings.options import settings_of


def test_a_transcript_has_no_folders_hosts_or_keys_of_the_machine(tmp_path: Path) -> None:
    key = "awnet_" + 43 * "x"
    said = (
        f"{tmp_path}/elsewhere {ROOT}/x {os.uname().nodename}\nLooking in indexes: https://me:secret@index.example/simple\n"
        f"from https://index.example/simple, http://127.0.0.1:8000 {key}\n"
    )
    shown = "\n".join(cleaned(said, tmp_path))
    assert shown.splitlines()[0].startswith("~/elsewhere REPOSITORY/x ") and "http://127.0.0.1:8000 awnet_..." in shown
    assert not any(hidden in shown for hidden in (str(tmp_path), str(ROOT), "index.example", "secret", key))


def test_long_output_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    kept = cleaned("\n".join(map(str, range(20))), tmp_path)
    assert kept == [*map(str, range(FIRST)), f"... {20 - FIRST - LAST} lines more ...", *map(str, range(20 - LAST, 20))]


def test_the_hour_follows_the_documents(tmp_path: Path, monkeypatch) -> None:
    """Its commands exist, its settings are some, its programs are those of the pages."""
    steps = [step for chapter in chapters(tmp_path).values() for step in chapter if isinstance(step, Step)]
    asked = {step.command.split()[1] for step in steps if step.command.startswith("awnet ")}
    assert asked - {"--version", "--help", "sevre"} <= COMMANDS.keys() and len(asked) > 8
    assert len(python_of("README.md")) >= 1 and len(python_of("docs/client.md")) >= 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "awnet.toml").write_text(SETTINGS, "utf-8")
    assert settings_of({"config": Path("awnet.toml")}).policy == "reject"


def test_a_command_that_ends_otherwise_than_it_should_is_marked() -> None:
    assert after(Done("$ x", 1.0, 1, 0)) == "# 1.0 s, exit status 1, 0 was expected"
    assert after(Done("$ x", 1.0, 2, 2)) == "# 1.0 s, exit status 2"


def test_no_command_of_the_committed_transcript_ended_otherwise_than_it_should() -> None:
    text = (RESULTS / "first_hour.md").read_text("utf-8")
    assert "was expected" not in text and text.count("\n") < 300
    assert {f"## {chapter}" for chapter in chapters(ROOT)} <= set(text.splitlines())

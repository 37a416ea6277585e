"""The command that makes, lists, replaces and revokes keys, and what it leaves of the file."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from server.access import key_file
from server.access.keys import Keys
from server.errors import StartupError
from server.keys import main
from tests.server.keys import hashed, key, table, write

HAND_WRITTEN = f"""# ours
[anonymous]
scopes = ["predict"]   # for the demo

  [ keys . shop ]  # the shop
sha256 = [
  "{hashed("one")}",   # from before
  "{hashed("two")}",
]
scopes = ["predict"]

# the operators
[keys.ops]
sha256 = '{hashed("ops")}'
scopes = ["predict", "admin"]
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, output and what was said beside it."""
    try:
        status = main(arguments)
    except SystemExit as error:
        status = int(error.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def known(path: Path, made: str) -> str | None:
    """Whose key it is."""
    found = Keys.parse(path.read_text("utf-8")).find(made.strip().encode())
    return None if found is None else found.name


def test_a_key_is_printed_once_and_kept_as_its_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone on standard output; the file is made, for its owner alone."""
    path = tmp_path / "keys.toml"
    status, made, said = run(capsys, "new", "shop", "--scopes", "predict,signals", "--file", str(path))
    assert status == 0 and known(path, made) == "shop"
    assert made.strip() not in path.read_text("utf-8") + said
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [item.name for item in tmp_path.iterdir()] == ["keys.toml"]
    status, listing, _ = run(capsys, "list", "--file", str(path))
    assert status == 0 and listing.startswith("shop  predict,signals  sha256 ")
    assert made.strip() not in listing


def test_keys_are_replaced_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last one stays valid beside its successor, the one before that does not."""
    path = tmp_path / "keys.toml"
    made = [run(capsys, "new", "shop", "--file", str(path))[1]]
    made += [run(capsys, "replace", "shop", "--file", str(path))[1] for _ in range(2)]
    assert [known(path, one) for one in made] == [None, "shop", "shop"]
    assert run(capsys, "revoke", "shop", "--file", str(path))[0] == 0
    assert [known(path, one) for one in made] == [None, None, None]


def test_every_other_line_stays_as_it_was(tmp_path: Path) -> None:
    """Comments, layout, other keys and what callers without one may do."""
    path = write(tmp_path / "keys.toml", HAND_WRITTEN)
    made = key_file.add(path, "new", ("predict",))
    assert path.read_text("utf-8").startswith(HAND_WRITTEN)
    key_file.replace(path, "shop")
    key_file.revoke(path, "new")
    text = path.read_text("utf-8")
    assert known(path, made) is None
    assert known(path, key("two")) == "shop" and known(path, key("one")) is None
    assert known(path, key("ops")) == "ops"
    kept = [line for line in HAND_WRITTEN.splitlines() if hashed("one") not in line and hashed("two") not in line]
    assert [line for line in kept if line not in text.splitlines()] == ["sha256 = [", "]"]
    key_file.revoke(path, "shop")
    assert [line for line in path.read_text("utf-8").splitlines() if line.startswith("#")] == [
        "# ours",
        "# the operators",
    ]
    key_file.revoke(path, "ops")
    assert Keys.parse(path.read_text("utf-8")).anonymous.scopes == {"predict"}


@pytest.mark.parametrize(
    "text",
    [
        f'keys.shop = {{sha256 = "{hashed("shop")}"}}\n',
        f'[keys]\nshop.sha256 = "{hashed("shop")}"\n',
        f'[keys]\nshop = {{sha256 = "{hashed("shop")}"}}\n',
    ],
)
def test_another_layout_is_left_alone(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says so, and nothing is written."""
    path = write(tmp_path / "keys.toml", text)
    for command in ("replace", "revoke"):
        status, out, said = run(capsys, command, "shop", "--file", str(path))
        assert (status, out, said.count("\n")) == (2, "", 1) and "by hand" in said
    assert path.read_text("utf-8") == text


@pytest.mark.parametrize(
    "arguments",
    [
        ("new", "shop"),
        ("new", "my shop"),
        ("new", "../x"),
        ("new", "anonymous"),
        ("new", "x", "--scopes", "everything"),
        ("new", "x", "--expires", "tomorrow"),
        ("replace", "nobody"),
        ("revoke", "nobody"),
        (),
    ],
)
def test_a_slip_changes_nothing(tmp_path: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, and no key on standard output."""
    path = write(tmp_path / "keys.toml", table("shop"))
    before = path.read_text("utf-8")
    status, out, said = run(capsys, *arguments, *(("--file", str(path)) if arguments else ()))
    assert (status, out) == (2, "") and said
    assert path.read_text("utf-8") == before


@pytest.mark.parametrize("command", ["new", "replace", "revoke", "list"])
def test_a_file_that_is_wrong_is_left_alone(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where it is none."""
    broken, missing = write(tmp_path / "keys.toml", "[keys"), tmp_path / "no" / "keys.toml"
    name = () if command == "list" else ("shop",)
    for path in (broken, missing, tmp_path):
        status, out, said = run(capsys, command, *name, "--file", str(path))
        assert (status, out, said.count("\n")) == (2, "", 1)
    assert broken.read_text("utf-8") == "[keys"


def test_a_link_stays_one_and_a_group_keeps_its_access(tmp_path: Path) -> None:
    """Everybody else loses theirs."""
    (tmp_path / "real").mkdir()
    path = write(tmp_path / "real" / "keys.toml", table("shop"))
    path.chmod(0o644)
    link = tmp_path / "keys.toml"
    link.symlink_to(path)
    key_file.add(link, "new", ("predict",))
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert set(Keys.parse(path.read_text("utf-8")).entries) == {"shop", "new"}


def test_commands_at_one_time_lose_nothing(tmp_path: Path) -> None:
    """Each waits for the one before."""
    path = tmp_path / "keys.toml"
    threads = [threading.Thread(target=key_file.add, args=(path, f"k{n}", ("predict",))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(Keys.parse(path.read_text("utf-8")).entries) == {f"k{n}" for n in range(8)}


def test_a_write_that_fails_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, and nothing beside it."""
    path = write(tmp_path / "keys.toml", table("shop"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StartupError, match="No space left"):
        key_file.add(path, "new", ("predict",))
    assert path.read_text("utf-8") == table("shop")
    assert [item.name for item in tmp_path.iterdir()] == ["keys.toml"]


def test_the_file_of_the_settings_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where none is named, or else the one beside."""
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "new", "here")[0] == 0
    monkeypatch.setenv("AWNET_API_KEYS", str(tmp_path / "there.toml"))
    assert run(capsys, "new", "there")[0] == 0
    assert set(Keys.parse((tmp_path / "keys.toml").read_text("utf-8")).entries) == {"here"}
    assert set(Keys.parse((tmp_path / "there.toml").read_text("utf-8")).entries) == {"there"}

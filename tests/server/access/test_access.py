"""Who asks: keys in a file, keys in requests, and what of both is refused."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.access.access import Access
from server.access.caller import SCOPES, Rate
from server.access.keys import MAX_FILE_BYTES, Keys, new_key
from server.errors import Forbidden, StartupError, Unauthorized
from server.settings.settings import Settings
from tests.server.keys import hashed, key, table, write
from tests.server.tiny import ROOT
from tests.waiting import eventually


def access(path: Path | None, **settings: Any) -> Access:
    return Access(Settings(api_keys=path, **settings))


def bearer(name: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {key(name)}".encode())]


def test_without_a_file_everybody_may_everything() -> None:
    """As before there were keys; how much of the scores is told is the setting's."""
    open_to_all = access(None, answers="bands")
    caller = open_to_all.identify([(b"authorization", b"Basic whatever")])
    assert (caller.name, caller.scopes, caller.answers) == (None, frozenset(SCOPES), "bands")
    assert not open_to_all.by_keys


def test_a_key_names_its_caller(tmp_path: Path) -> None:
    """With all that the file says of it, in either header, whatever the case of the scheme."""
    fields = {
        "answers": '"bands"',
        "mode": '"robust"',
        "policy": '"reject"',
        "requests_per_second": 2.5,
        "burst": 10,
        "queue_share": 0.25,
    }
    several = access(write(tmp_path / "keys.toml", table("shop", ["predict"], **fields), table("ops")))
    for headers in (
        bearer("shop"),
        [(b"authorization", f"bEARER   {key('shop')}".encode())],
        [(b"accept", b"*/*"), (b"x-api-key", key("shop").encode())],
    ):
        shop = several.identify(headers)
        assert (shop.name, shop.scopes, shop.answers) == ("shop", {"predict"}, "bands")
        assert (shop.mode, shop.policy, shop.rate, shop.queue_share) == ("robust", "reject", Rate(2.5, 10), 0.25)
    ops = several.identify(bearer("ops"))
    assert (ops.name, ops.scopes, ops.answers) == ("ops", set(SCOPES), "exact")
    shop.require("predict")
    with pytest.raises(Forbidden, match="'admin'"):
        shop.require("admin")


def test_several_keys_have_one_name(tmp_path: Path) -> None:
    """So that one replaces another without a moment in which neither is known."""
    text = f'[keys.shop]\nsha256 = ["{hashed("old")}", "{hashed("new").upper()}"]\nscopes = ["predict"]\n'
    both = access(write(tmp_path / "keys.toml", text))
    assert {both.identify(bearer(name)).name for name in ("old", "new")} == {"shop"}


def test_callers_without_a_key_have_what_the_file_gives_them(tmp_path: Path) -> None:
    """By default nothing; a wrong key is refused all the same, and is no caller without one."""
    closed = access(write(tmp_path / "closed.toml", table("shop")))
    with pytest.raises(Unauthorized, match="needs a key"):
        closed.identify([]).require("predict")
    opened = access(write(tmp_path / "opened.toml", '[anonymous]\nscopes = ["predict"]\nanswers = "verdict"\n'))
    caller = opened.identify([])
    caller.require("predict")
    assert (caller.name, caller.answers) == (None, "verdict")
    with pytest.raises(Unauthorized):
        opened.identify(bearer("shop"))


@pytest.mark.parametrize(
    "headers",
    [
        bearer("other"),
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", key("shop").encode())],
        [(b"authorization", b"Basic " + key("shop").encode())],
        [(b"authorization", b"Token " + key("shop").encode())],
        [(b"authorization", b"Bearer " + key("shop").encode() + b" more")],
        [(b"authorization", b"Bearer " + key("shop").upper().encode())],
        [(b"authorization", b"Bearer " + key("shop").encode() + b"-" * 100_000)],
        [(b"authorization", "Bearer clé".encode("latin-1"))],
        [(b"authorization", b"Bearer " + key("shop").encode() + b"\n")],
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"Bearer " + key("shop").encode())],
        [(b"x-api-key", hashed("shop").encode())],
        [*bearer("shop"), *bearer("shop")],
        [*bearer("other"), *bearer("shop")],
        [*bearer("shop"), (b"x-api-key", key("shop").encode())],
        [*bearer("shop"), (b"x-api-key", b"")],
    ],
)
def test_what_is_not_one_known_key_is_refused(tmp_path: Path, headers: list[tuple[bytes, bytes]]) -> None:
    """Empty, of another scheme, not ASCII, long, its hash, two of them; and no refusal repeats what was sent."""
    known = access(write(tmp_path / "keys.toml", table("shop")))
    with pytest.raises(Unauthorized) as caught:
        known.identify(headers)
    assert "awnet_" not in caught.value.detail
    assert len(caught.value.detail) < 120


def test_a_key_in_an_address_is_refused(tmp_path: Path) -> None:
    """Also beside the right header: addresses stand in the logs of everything on the way."""
    known = access(write(tmp_path / "keys.toml", table("shop")))
    with pytest.raises(Unauthorized, match="header"):
        known.identify(bearer("shop"), b"key=" + key("shop").encode())
    assert known.identify(bearer("shop"), b"top_k=3&model=awnet_two").name == "shop"


@pytest.mark.parametrize(
    ("settings", "anonymous", "warned"),
    [
        ({"answers": "bands"}, None, True),
        ({"answers": "bands", "metrics_port": 0}, None, False),
        ({"answers": "exact"}, None, False),
        ({}, 'scopes = ["predict", "metrics"]\nanswers = "verdict"', True),
        ({}, 'scopes = ["predict"]\nanswers = "verdict"', False),
        ({"answers": "verdict"}, "scopes = []", False),
    ],
)
def test_scores_that_metrics_would_tell_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], anonymous: str | None, warned: bool
) -> None:
    """On a quiet server the histogram of scores is the score of whoever asked last."""
    caplog.set_level(logging.INFO, "awnet")
    path = None if anonymous is None else write(tmp_path / "keys.toml", f"[anonymous]\n{anonymous}\n")
    access(path, **settings)
    assert ("histogram" in caplog.text) == warned


@pytest.mark.parametrize(
    ("expires", "valid"),
    [
        ("2000-01-01", False),
        ("2000-01-01T00:00:00Z", False),
        ("2000-01-01T00:00:00", False),
        ("9999-12-31", True),
        ("9999-12-31T23:59:59-12:00", True),
    ],
)
def test_a_key_is_refused_from_its_expiry_on(tmp_path: Path, expires: str, valid: bool) -> None:
    """A date is its beginning, UTC."""
    dated = access(write(tmp_path / "keys.toml", table("shop", expires=expires)))
    if valid:
        assert dated.identify(bearer("shop")).name == "shop"
    else:
        with pytest.raises(Unauthorized):
            dated.identify(bearer("shop"))


WRONG = {
    "no TOML": "[keys",
    "deep": "x = " + "[" * 20_000,
    "large number": "x = " + "9" * 10_000,
    "unknown table": "[key.shop]\n",
    "unknown field": table("shop", scope='["predict"]'),
    "unknown scope": table("shop", ["predict", "everything"]),
    "unknown answers": table("shop", answers='"some"'),
    "unknown mode": table("shop", mode='"fast"'),
    "bad hash": '[keys.shop]\nsha256 = "abc"\n',
    "a key for its hash": f'[keys.shop]\nsha256 = "{key("shop")}"\n',
    "no hash": '[keys.shop]\nscopes = ["predict"]\n',
    "an empty list of hashes": "[keys.shop]\nsha256 = []\n",
    "one hash twice": table("shop") + table("shop").replace("[keys.shop]", "[keys.other]"),
    "one hash twice in a list": f'[keys.shop]\nsha256 = ["{hashed("a")}", "{hashed("a").upper()}"]\n',
    "a name that is none": table('"my shop"'),
    "a name of two lines": table('"my\\nshop"'),
    "a key as a name": table(key("shop")),
    "the name of nobody": table("anonymous"),
    "a hash of nobody": f'[anonymous]\nsha256 = "{hashed("a")}"\n',
    "no rate": table("shop", requests_per_second=0),
    "a rate that is no number": table("shop", requests_per_second="inf"),
    "a rate in words": table("shop", requests_per_second='"5"'),
    "burst without a rate": table("shop", burst=3),
    "burst that no float holds": table("shop", requests_per_second=1, burst=10**400),
    "no share": table("shop", queue_share=1.5),
    "an expiry in words": table("shop", expires='"2030-01-01"'),
    "an expiry as a number": table("shop", expires=2030),
    "too many": "\n".join(table(f"k{n}") for n in range(1001)),
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_refused_in_one_line(text: str) -> None:
    """That says where it is wrong, and quotes neither key nor hash."""
    with pytest.raises(StartupError) as caught:
        Keys.parse(text)
    assert "\n" not in caught.value.detail
    assert key("shop") not in caught.value.detail and hashed("shop") not in caught.value.detail
    assert caught.value.detail.startswith("the file of keys")


def test_a_new_key_is_256_random_bits(tmp_path: Path) -> None:
    """And is known by its hash."""
    (first, digest), (second, _) = new_key(), new_key()
    assert first != second and len(first) == len("awnet_") + 43
    found = Keys.parse(f'[keys.shop]\nsha256 = "{digest}"\n')
    caller = found.find(first.encode())
    assert caller is not None and caller.name == "shop"
    assert found.find(second.encode()) is None


def test_a_file_that_cannot_be_read_keeps_the_server_from_starting(tmp_path: Path) -> None:
    """Whatever lies there; a FIFO is not waited for."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("missing", "fifo", ".", "large", "binary"):
        with pytest.raises(StartupError, match="the file of keys"):
            access(tmp_path / name)


class Watched:
    """A file of keys that a server has read, and what is told of it later."""

    def __init__(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.path = write(path, table("shop"))
        self.reads: list[str] = []
        self.access = Access(Settings(api_keys=self.path), self.reads.append)
        caplog.set_level(logging.INFO, "awnet")
        self.log = caplog

    def names(self) -> set[str]:
        """Of the keys that are known."""
        known = set()
        for name in ("shop", "new"):
            try:
                known.add(str(self.access.identify(bearer(name)).name))
            except Unauthorized:
                continue
        return known


@pytest.fixture
def watched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Watched:
    return Watched(tmp_path / "keys.toml", caplog)


def test_a_changed_file_is_taken(watched: Watched) -> None:
    """All of it, at once; one that has not changed is not told of."""
    watched.access.check()
    assert watched.reads == []
    write(watched.path, table("new"))
    watched.access.check()
    watched.access.check()
    assert watched.names() == {"new"}
    assert watched.reads == ["loaded"]


def vanish(path: Path) -> None:
    path.unlink()


def spoil(path: Path) -> None:
    path.write_text("[keys")


def become_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [vanish, spoil, become_a_fifo, become_a_folder])
def test_a_file_that_has_gone_or_is_wrong_keeps_the_keys(watched: Watched, harm: Callable[[Path], None]) -> None:
    """Said and counted once, however often it is looked at; a good file is taken again, also the same one."""
    harm(watched.path)
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        watched.access.check()
    assert len(os.listdir("/dev/fd")) == before
    assert watched.names() == {"shop"}
    assert watched.reads == ["refused"]
    assert len([line for line in watched.log.messages if "the keys from before stay" in line]) == 1
    watched.path.rmdir() if watched.path.is_dir() else watched.path.unlink(missing_ok=True)
    write(watched.path, table("shop"))
    watched.access.check()
    assert watched.reads == ["refused", "loaded"]


def test_a_revoked_key_is_refused_within_seconds(watched: Watched) -> None:
    """Nobody has to ask for it, and a signal makes it at once."""
    watched.access.watch()
    try:
        write(watched.path, table("new"))
        eventually(lambda: watched.names() == {"new"})
        begun = time.monotonic()
        write(watched.path, table("shop"))
        watched.access.check_soon()
        eventually(lambda: watched.names() == {"shop"})
        assert time.monotonic() - begun < 0.9
    finally:
        watched.access.close()


def test_a_file_that_everybody_can_open_is_warned_of_once(watched: Watched) -> None:
    """Its hashes help nobody to a key, but whoever can write it makes one."""
    for mode in (0o644, 0o646):
        watched.path.chmod(mode)
        watched.access.check()
    assert len([line for line in watched.log.messages if "every user of this machine" in line]) == 1


def test_the_file_that_the_documents_show_is_one() -> None:
    """Each field that they name is taken."""
    text = (ROOT / "docs/security.md").read_text("utf-8")
    (shown,) = re.findall(r"```toml\n(\[keys.*?)```", text, re.DOTALL)
    caller = Keys.parse(shown).entries["shop"].caller("shop", "exact")
    assert (caller.answers, caller.mode, caller.policy, caller.rate) == ("bands", "robust", "reject", Rate(50, 100))

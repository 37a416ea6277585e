"""A version that is fetched is whole, the right one, and there once; whatever the other side does, or nothing is."""

from __future__ import annotations

import asyncio
import gc
import gzip
import hashlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks.harness.dead_mount import dead_mount, possible
from domain.files import alone_in
from server.core.model_source import parse_model_source
from server.engines.repository import Repository
from server.errors import SourceError
from server.model_sources import origins, transfer
from server.model_sources.files import apart, unpacked
from server.model_sources.pull import Pull, pull
from tests.repository import ROOT
from tests.server.model_sources.conftest import Fetch, files
from tests.server.model_sources.static import Static, body, endless, ranged, redirect, trickle
from tests.server.tiny import publish
from tests.waiting import eventually

VERSION = ["awnet/1/manifest.json", "awnet/1/model.onnx", "awnet/1/source.json"]
OTHER = "0" * 64


def test_a_file_and_a_folder_of_this_machine(fetch: Fetch, repository: Path, tmp_path: Path, digest: str) -> None:
    """Either is a version as the exporter writes it, which the server reads."""
    folder = publish(tmp_path / "elsewhere", "4") / "awnet/4"
    first = fetch(f"file://{folder}")
    assert (first.version, first.new, str(first.source)) == (1, True, f"file://{folder}#sha256={digest}")
    assert files(repository) == VERSION
    assert Repository(repository).read("awnet", 1).sha256 == digest
    again = fetch(f"file://{folder}/model.onnx", version=7)
    assert (again.version, again.new) == (7, True)


def test_a_version_of_a_web_server(fetch: Fetch, repository: Path, web: Static, model: bytes, digest: str) -> None:
    web.routes["/m/model.onnx"] = body(model)
    found = fetch(f"{web.url}/m/model.onnx#sha256={digest}")
    assert (found.version, found.folder) == (1, repository / "awnet/1")
    assert files(repository) == VERSION
    assert json.loads((found.folder / "source.json").read_text()) == {
        "source": f"{web.url}/m/model.onnx#sha256={digest}"
    }


def test_what_is_there_is_not_fetched_again(
    fetch: Fetch, repository: Path, web: Static, model: bytes, digest: str
) -> None:
    """Nor is anybody asked, so that a server starts where its source is away."""
    publish(repository, "3")
    found = fetch(f"{web.url}/model.onnx#sha256={digest}")
    assert (found.version, found.new, web.asked) == (3, False, [])
    web.routes["/model.onnx"] = body(model)
    unpinned = fetch(f"{web.url}/model.onnx")
    assert (unpinned.version, unpinned.new) == (3, False)
    assert files(repository) == ["awnet/3/manifest.json", "awnet/3/model.onnx"]


def test_a_version_that_was_damaged_is_not_taken_for_the_right_one(fetch: Fetch, repository: Path, digest: str) -> None:
    publish(repository, "3")
    file = repository / "awnet/3/model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(SourceError, match="SHA-256 differs"):
        fetch(f"https://nowhere.invalid/model.onnx#sha256={digest}")


def test_a_number_that_is_taken_is_never_overwritten(fetch: Fetch, repository: Path, web: Static, model: bytes) -> None:
    publish(repository, "3", seed=1)
    before = (repository / "awnet/3/model.onnx").read_bytes()
    web.routes["/model.onnx"] = body(model)
    with pytest.raises(SourceError, match="never overwritten"):
        fetch(f"{web.url}/model.onnx", version=3)
    assert (repository / "awnet/3/model.onnx").read_bytes() == before
    assert fetch(f"{web.url}/model.onnx").version == 4


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_wrong_digest_leaves_nothing(
    fetch: Fetch, repository: Path, web: Static, model: bytes, tmp_path: Path, scheme: str
) -> None:
    web.routes["/model.onnx"] = body(model)
    (tmp_path / "model.onnx").write_bytes(model)
    source = f"{web.url}/model.onnx" if scheme == "http" else f"file://{tmp_path}/model.onnx"
    with pytest.raises(SourceError, match=hashlib.sha256(model).hexdigest()):
        fetch(f"{source}#sha256={OTHER}")
    assert files(repository) == []


@pytest.mark.parametrize("data", [b"", b"<html>Sign in</html>", b"\x08\x07" * 100])
def test_what_is_no_model_leaves_nothing(fetch: Fetch, repository: Path, web: Static, data: bytes) -> None:
    """A page for people with status 200 is what one gets most often."""
    web.routes["/model.onnx"] = body(data)
    with pytest.raises(SourceError):
        fetch(f"{web.url}/model.onnx")
    assert files(repository) == []


def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    fetch: Fetch, web: Static, model: bytes, digest: str
) -> None:
    web.routes["/model.onnx"] = ranged(model, [1000, 500, 0])
    assert fetch(f"{web.url}/model.onnx").source.sha256 == digest
    wanted = [asked.headers.get("range", "") for asked in web.asked]
    assert wanted[0] == "" and all(one.startswith("bytes=") for one in wanted[1:]) and len(wanted) == 4


def test_without_a_strong_etag_it_begins_again(fetch: Fetch, web: Static, model: bytes, digest: str) -> None:
    """Two halves of two files would be neither."""
    web.routes["/model.onnx"] = ranged(model, [1000], etag='W/"1"')
    assert fetch(f"{web.url}/model.onnx").source.sha256 == digest
    assert [asked.headers.get("range") for asked in web.asked] == [None, None]


def test_a_file_that_changed_while_it_was_fetched_is_fetched_whole(
    fetch: Fetch, web: Static, model: bytes, digest: str
) -> None:
    web.routes["/model.onnx"] = lambda handler: (
        web.routes.update({"/model.onnx": ranged(model, [])}) or ranged(b"old" * 1000, [700])(handler)
    )
    assert fetch(f"{web.url}/model.onnx").source.sha256 == digest


def test_a_body_that_is_cut_every_time_is_given_up(fetch: Fetch, repository: Path, web: Static, model: bytes) -> None:
    web.routes["/model.onnx"] = ranged(model, [100] * 100, etag="W/1")
    with pytest.raises(SourceError, match=f"given up after {transfer.TRIES} tries"):
        fetch(f"{web.url}/model.onnx")
    assert (len(web.asked), files(repository)) == (transfer.TRIES, [])


def test_a_server_that_is_busy_is_asked_again_when_it_says(fetch: Fetch, web: Static, model: bytes) -> None:
    statuses = [503, 429, 500]

    def answer(handler: object) -> None:
        return (body(b"", statuses.pop(), retry_after="0") if statuses else body(model))(handler)  # type: ignore[arg-type]

    web.routes["/model.onnx"] = answer
    assert fetch(f"{web.url}/model.onnx").new
    assert len(web.asked) == 4


def test_a_body_without_end_is_cut_off(
    fetch: Fetch, repository: Path, web: Static, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that says beforehand that it is too large is not begun."""
    monkeypatch.setattr(origins, "MAX_MODEL_BYTES", 1 << 20)
    web.routes["/endless"] = endless()
    web.routes["/large"] = lambda handler: handler.begin(200, 1 << 21)
    for path in ("/endless", "/large"):
        with pytest.raises(SourceError, match=str(1 << 20)):
            fetch(web.url + path)
    assert files(repository) == []


def test_a_compressed_body_is_refused(fetch: Fetch, web: Static, model: bytes) -> None:
    """A megabyte of zeros is a kilobyte on the way."""
    web.routes["/model.onnx"] = body(model, content_encoding="gzip")
    with pytest.raises(SourceError, match="compressed"):
        fetch(f"{web.url}/model.onnx")
    assert web.asked[0].headers["accept-encoding"] == "identity"


def test_a_part_that_nobody_asked_for_is_refused(fetch: Fetch, web: Static, model: bytes) -> None:
    web.routes["/model.onnx"] = body(model, 206, content_range=f"bytes 0-{len(model) - 1}/{2 * len(model)}")
    with pytest.raises(SourceError, match="sends a part"):
        fetch(f"{web.url}/model.onnx")


def test_what_opens_an_address_is_in_no_log(
    fetch: Fetch, web: Static, model: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Libraries below log whole addresses and headers, at the levels that a debugging operator sets."""
    caplog.set_level(logging.DEBUG)
    web.routes["/model.onnx"] = redirect("/other?signature=secret")
    web.routes["/other"] = body(model)
    assert fetch(f"{web.url}/model.onnx?signature=secret").new
    with pytest.raises(SourceError) as raised:
        fetch(f"{web.url}/nothing?signature=secret")
    assert "secret" not in caplog.text + str(raised.value)


@pytest.mark.parametrize("head", [True, False])
def test_a_server_that_stalls_is_given_up_in_time(fetch: Fetch, repository: Path, web: Static, head: bool) -> None:
    """A byte now and then is progress to a timeout of silence, in a header as in a body."""
    web.routes["/model.onnx"] = trickle(head)
    begun = time.monotonic()
    with pytest.raises(SourceError, match=r"within 0.5 s"):
        fetch(f"{web.url}/model.onnx", seconds=0.5)
    assert time.monotonic() - begun < 5
    assert files(repository) == []


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("file:///etc/passwd", "no https: file"),
        ("ftp://127.0.0.1/model.onnx", "no https: ftp"),
        ("http://192.0.2.1/model.onnx", "not encrypted"),
        ("https://169.254.169.254/latest/meta-data", "no public address"),
        ("https://10.0.0.1/model.onnx", "no public address"),
        ("https://[::ffff:169.254.169.254]/model.onnx", "no public address"),
        ("https://user:password@127.0.0.1/model.onnx", "a user in it"),
        ("https://0.0.0.0/model.onnx", "no public address"),
        ("//169.254.169.254/model.onnx", "not encrypted"),
        ("https:///", "no https"),
        ("", "redirects more than"),
    ],
)
def test_a_redirect_to_where_nobody_should_be_led_is_refused(
    fetch: Fetch, repository: Path, web: Static, where: str, why: str
) -> None:
    """Before anything is connected to."""
    web.routes["/model.onnx"] = redirect(where)
    with pytest.raises(SourceError, match=why):
        fetch(f"{web.url}/model.onnx")
    assert files(repository) == [] and len(web.asked) <= transfer.MAX_REDIRECTS + 2


def test_a_redirect_within_the_server_is_followed_and_a_circle_is_not(fetch: Fetch, web: Static, model: bytes) -> None:
    web.routes |= {"/a": redirect("/b", 307), "/b": redirect(f"{web.url}/c", 301), "/c": body(model)}
    assert fetch(f"{web.url}/a").new
    web.routes["/circle"] = redirect("/circle")
    with pytest.raises(SourceError, match="redirects more than"):
        fetch(f"{web.url}/circle")


def test_plain_http_is_for_this_machine(fetch: Fetch) -> None:
    with pytest.raises(SourceError, match="say https"):
        fetch("http://192.0.2.1/model.onnx")


def test_a_disk_without_room_is_told_before_anything_is_written(
    fetch: Fetch, repository: Path, web: Static, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origins, "MAX_MODEL_BYTES", 1 << 60)
    web.routes["/model.onnx"] = lambda handler: handler.begin(200, 1 << 50)
    with pytest.raises(SourceError, match=f"no room for {1 << 50} bytes"):
        fetch(f"{web.url}/model.onnx")
    assert files(repository) == []


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(fetch: Fetch, repository: Path, web: Static) -> None:
    """The kernel refuses to write more, as it does where a disk is full."""
    web.routes["/model.onnx"] = endless()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(SourceError, match="is full"):
            fetch(f"{web.url}/model.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert files(repository) == []


def test_a_repository_that_cannot_be_written_is_named(
    fetch: Fetch, repository: Path, web: Static, model: bytes
) -> None:
    web.routes["/model.onnx"] = body(model)
    repository.write_text("a file")
    with pytest.raises(SourceError, match="models cannot be written to"):
        fetch(f"{web.url}/model.onnx")


def test_two_at_once_fetch_one_version(repository: Path, web: Static, model: bytes, digest: str) -> None:
    """The second waits, and finds it there."""
    web.routes["/model.onnx"] = body(model)
    said: list[str] = []

    async def both() -> list[bool]:
        task = Pull(parse_model_source(f"{web.url}/model.onnx#sha256={digest}"), repository, "awnet", say=said.append)
        return [found.new for found in await asyncio.gather(pull(task), pull(task))]

    assert sorted(asyncio.run(both())) == [False, True]
    assert (files(repository), web.paths()) == (VERSION, ["/model.onnx"])
    assert sorted(line.split()[0] for line in said) == ["fetching", "waiting:"]


def test_another_writer_is_waited_for_and_not_for_ever(fetch: Fetch, repository: Path, web: Static) -> None:
    """`awnet export` holds the same lock."""
    (repository / "awnet").mkdir(parents=True)
    with alone_in(repository / "awnet"), pytest.raises(SourceError, match=r"within 0.3 s"):
        fetch(f"{web.url}/model.onnx", seconds=0.3)
    assert web.asked == []


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [("SIGKILL", ""), ("SIGTERM", "CancelledError"), ("SIGINT", "KeyboardInterrupt"), ("full", "is full")],
)
def test_one_that_is_interrupted_at_any_step_leaves_nothing_half_written(tmp_path: Path, how: str, said: str) -> None:
    """A whole version or none; what is left of a kill is no version, and the next run sweeps it up."""
    source = publish(tmp_path / "published") / "awnet/1/model.onnx"
    (tmp_path / "runs").mkdir()
    program = [
        sys.executable,
        "-m",
        "tests.server.model_sources.interrupted",
        how,
        f"file://{source}",
        tmp_path / "runs",
    ]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    *interrupted, last = map(json.loads, done.stdout.splitlines())
    assert len(interrupted) > 10 and last["said"] == "version 1"
    assert all(run["whole"] and run["then"] == "version 1" for run in (*interrupted, last))
    assert [run for run in interrupted if not run["said"].endswith(said)] == []
    kept = {*(name for run in interrupted for name in run["left"])}
    assert kept <= {"1", ".partial-pull"} if how == "SIGKILL" else kept <= {"1"}


def test_what_takes_too_long_to_copy_is_given_up_in_time(fetch: Fetch, repository: Path, tmp_path: Path) -> None:
    """2 GiB of a sparse file: the deadline does not wait for the last of them."""
    with (tmp_path / "large.onnx").open("wb") as file:
        file.truncate(origins.MAX_MODEL_BYTES)
    copied: list[int] = []
    with pytest.raises(SourceError, match=r"not fetched within 0.2 s"):
        fetch(f"file://{tmp_path / 'large.onnx'}", seconds=0.2, progress=lambda done, _: copied.append(done))
    assert files(repository) == [] and 0 < copied[-1] < origins.MAX_MODEL_BYTES
    ended = len(copied)
    time.sleep(0.1)
    assert len(copied) == ended, "nor does the thread go on when nobody waits for it"


def test_what_takes_too_long_to_unpack_is_given_up_in_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    size = 256 << 20
    header = tarfile.TarInfo("model.onnx")
    header.size = size
    with gzip.open(tmp_path / "a.tar", "wb", 1) as archive:
        archive.write(header.tobuf())
        archive.writelines(bytes(1 << 20) for _ in range(size >> 20))

    async def run() -> bool:
        try:
            async with asyncio.timeout(0.05):
                await apart(lambda stopped: unpacked(tmp_path / "a.tar", "tar+gzip", tmp_path / "m", size, stopped))
        except TimeoutError:  # not kept, as `pytest.raises` does, with all that it refers to
            return True
        return False

    assert asyncio.run(run())
    gc.collect()
    assert caplog.messages == [], "how the thread was ended is told to nobody"
    unpacked_bytes = (tmp_path / "m").stat().st_size
    time.sleep(0.1)
    assert (tmp_path / "m").stat().st_size == unpacked_bytes < size, "nor does the thread go on"


def test_a_source_that_cannot_be_read_is_not_told_as_the_repository(fetch: Fetch, repository: Path) -> None:
    """A disk that fails in the middle: this file opens, and its first byte cannot be had."""
    with pytest.raises(SourceError, match=r"^/proc/self/mem cannot be read: Input/output error$"):
        fetch("file:///proc/self/mem")
    assert files(repository) == []


@pytest.mark.parametrize("dead", ["source", "models"])
def test_nobody_waits_for_a_dead_mount(fetch: Fetch, tmp_path: Path, dead: str) -> None:
    """Nor does the exit of the process: of the source as of the repository."""
    if not possible():
        pytest.skip("mounting needs root and /dev/fuse")
    source = publish(tmp_path / "source") / "awnet/1/model.onnx"
    (tmp_path / "models").mkdir()
    with dead_mount(tmp_path / dead), pytest.raises(SourceError, match=r"not fetched within 0.5 s"):
        fetch(f"file://{source}", seconds=0.5)


@pytest.mark.process
@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_one_that_is_ended_in_the_middle_leaves_no_version(
    fetch: Fetch, repository: Path, web: Static, model: bytes, sent: signal.Signals, status: int
) -> None:
    """And none that could be taken for one; the next one begins anew, and sweeps up what a kill left."""

    def half(handler: object) -> None:
        handler.begin(200, len(model))  # type: ignore[attr-defined]
        handler.wfile.write(model[:5000])  # type: ignore[attr-defined]
        time.sleep(30)

    web.routes["/model.onnx"] = half
    command = [sys.executable, "-m", "awnet", "pull", f"{web.url}/model.onnx", "--to", str(repository)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWNET_")}
    started = subprocess.Popen(command, cwd=ROOT, env=clean, stderr=subprocess.PIPE, text=True)
    eventually(lambda: list(repository.glob("awnet/.partial-*/awnet/1/model.onnx")))
    started.send_signal(sent)
    said = started.communicate(timeout=30)[1]
    assert (started.returncode, "Traceback" in said) == (status, False)
    assert Repository(repository).catalogue() == {}
    assert (files(repository) == []) == (sent != signal.SIGKILL)
    web.routes["/model.onnx"] = body(model)
    assert fetch(f"{web.url}/model.onnx").version == 1
    assert files(repository) == VERSION

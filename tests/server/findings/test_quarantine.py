"""Flagged images are kept whole or not at all, within their bound, and nobody waits for it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.errors import StartupError
from server.findings.quarantine import BLOCK_BYTES, FOLDER, PART, WAITING_BYTES, Quarantine, Result, forget, read_image
from tests.waiting import PATIENCE_SECONDS, eventually

ROOT = Path(__file__).parents[3]
DAY = 86_400.0
AT_ONCE_SECONDS = 0.5  # nothing that waits for a disk or a lock takes less here


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def made(number: int, blocks: int = 1) -> bytes:
    return random.Random(number).randbytes(blocks * BLOCK_BYTES)


def names(journal: Path) -> set[str]:
    return {path.name for path in (journal / FOLDER).iterdir() if len(path.name) == 64}


def total(journal: Path) -> int:
    """Bytes of what is there in whole blocks; files may go meanwhile."""
    found = 0
    for path in (journal / FOLDER).iterdir():
        try:
            found += -(-path.stat().st_size // BLOCK_BYTES) * BLOCK_BYTES if path.name != "lock" else 0
        except FileNotFoundError:
            continue
    return found


def write(journal: Path, images: list[bytes], most_bytes: int = 1 << 30, keep_seconds: float = DAY) -> list[Result]:
    """A process that keeps these and ends; what it counted."""
    counted: list[Result] = []
    quarantine = Quarantine(journal, most_bytes, keep_seconds, counted.append)
    quarantine.start()
    for data in images:
        quarantine.keep(digest(data), data)
    quarantine.stop()
    return counted


def test_an_image_is_kept_as_it_was_sent_under_its_hash_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert write(tmp_path / "journal", [b"file"]) == ["kept"]
    finally:
        os.umask(before)
    assert names(tmp_path / "journal") == {digest(b"file")}
    assert read_image(tmp_path / "journal", digest(b"file")) == b"file"
    folder = tmp_path / "journal" / FOLDER
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_a_folder_that_others_may_enter_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir(mode=0o755)
    write(tmp_path, [])
    assert (tmp_path / FOLDER).stat().st_mode & 0o777 == 0o700


def test_the_oldest_go_and_there_is_never_more_than_the_bound(tmp_path: Path) -> None:
    bound = 20 * BLOCK_BYTES
    sizes = random.Random(0)
    images = [made(n, sizes.randint(1, 7)) for n in range(60)]
    for number, data in enumerate(images):
        assert write(tmp_path, [data], bound) == ["kept"]
        os.utime(tmp_path / FOLDER / digest(data), (number, time.time() - 1000 + number))
        assert total(tmp_path) <= bound
    there = names(tmp_path)
    assert there == {digest(data) for data in images[-len(there) :]}
    assert len(there) >= 3


def test_small_files_count_as_blocks_so_that_their_number_is_bounded(tmp_path: Path) -> None:
    write(tmp_path, [b"%d" % n for n in range(100)], 16 * BLOCK_BYTES)
    assert len(names(tmp_path)) <= 16


def test_an_image_over_the_bound_drives_out_nothing(tmp_path: Path) -> None:
    assert write(tmp_path, [b"small", made(0, 5)], 4 * BLOCK_BYTES) == ["lost", "kept"]
    assert names(tmp_path) == {digest(b"small")}


@pytest.mark.parametrize("most_bytes", [1 << 30, 0])
def test_what_is_too_old_goes_without_another_image_even_where_none_is_kept_any_more(
    tmp_path: Path, most_bytes: int
) -> None:
    write(tmp_path, [b"old", b"new"])
    os.utime(tmp_path / FOLDER / digest(b"old"), (0, time.time() - 8 * DAY))
    write(tmp_path, [], most_bytes, 7 * DAY)
    assert names(tmp_path) == {digest(b"new")}


def test_an_image_that_comes_again_is_kept_once_and_its_time_begins_anew(tmp_path: Path) -> None:
    write(tmp_path, [b"file"])
    path = tmp_path / FOLDER / digest(b"file")
    os.utime(path, (0, time.time() - 6 * DAY))
    assert write(tmp_path, [b"file"], keep_seconds=7 * DAY) == ["kept"]
    assert time.time() - path.stat().st_mtime < DAY


@pytest.mark.parametrize("left", [b"", b"fil", b"fals"])
def test_what_is_not_the_image_is_never_taken_for_it_and_is_mended_when_it_comes_again(
    tmp_path: Path, left: bytes
) -> None:
    write(tmp_path, [b"file"])
    (tmp_path / FOLDER / digest(b"file")).write_bytes(left)
    assert read_image(tmp_path, digest(b"file")) is None
    write(tmp_path, [b"file"])
    assert read_image(tmp_path, digest(b"file")) == b"file"


@pytest.mark.parametrize("name", ["../secret", "lock", "", "A" * 64, "a" * 64 + "\n"])
def test_only_hashes_are_looked_up(tmp_path: Path, name: str) -> None:
    write(tmp_path, [])
    (tmp_path / "secret").write_text("secret")
    assert read_image(tmp_path, name) is None and not forget(tmp_path, name)


def test_a_removed_image_is_gone_and_its_room_is_used(tmp_path: Path) -> None:
    write(tmp_path, [b"first", b"second"], 2 * BLOCK_BYTES)
    assert forget(tmp_path, digest(b"first")) and not forget(tmp_path, digest(b"first"))
    write(tmp_path, [b"third"], 2 * BLOCK_BYTES)
    assert read_image(tmp_path, digest(b"first")) is None
    assert names(tmp_path) == {digest(b"second"), digest(b"third")}


def test_links_in_the_folder_are_not_written_through(tmp_path: Path) -> None:
    write(tmp_path, [])
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / FOLDER / PART).symlink_to(tmp_path / "mine")
    (tmp_path / FOLDER / digest(b"file")).symlink_to(tmp_path / "mine")
    write(tmp_path, [b"file"])
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert read_image(tmp_path, digest(b"file")) == b"file"


def test_nobody_waits_for_a_process_that_holds_the_lock_and_memory_is_bounded(tmp_path: Path) -> None:
    counted: list[Result] = []
    quarantine = Quarantine(tmp_path, 1 << 30, DAY, counted.append)
    lock = os.open(tmp_path / FOLDER / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    quarantine.start()
    large = bytes(WAITING_BYTES // 4)
    begun = time.monotonic()
    for number in range(8):
        quarantine.keep(f"{number:064x}", large)
    Quarantine(tmp_path, 1 << 30, DAY)  # nor does another one's start
    assert time.monotonic() - begun < AT_ONCE_SECONDS
    assert counted == 4 * ["lost"]
    os.close(lock)
    eventually(lambda: counted.count("kept") == 4, PATIENCE_SECONDS, "what waited is written")
    quarantine.stop()


WRITER = """
import sys
from pathlib import Path
from tests.server.findings.test_quarantine import made, digest
from server.findings.quarantine import Quarantine
quarantine = Quarantine(Path(sys.argv[1]), int(sys.argv[2]), 1e9)
for n in range(int(sys.argv[3]), int(sys.argv[3]) + int(sys.argv[4])):
    data = made(n, 1 + n % 6)
    assert quarantine._done(lambda lock: quarantine._write(digest(data), data, lock))
    print(n, flush=True)
"""


def writer(journal: Path, most_bytes: int, begin: int, number: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WRITER, journal, str(most_bytes), str(begin), str(number)]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.process
def test_several_processes_share_the_folder_and_its_bound(tmp_path: Path) -> None:
    """Half of their images are the same ones."""
    bound = 30 * BLOCK_BYTES
    running = [writer(tmp_path, bound, begin, 60) for begin in (0, 30, 60)]
    (tmp_path / FOLDER).mkdir(exist_ok=True)
    while any(one.poll() is None for one in running):
        assert total(tmp_path) <= bound
    assert [one.returncode for one in running] == [0, 0, 0]
    for one in running:
        assert one.stdout is not None
        one.stdout.close()
    there = names(tmp_path)
    assert there and all(read_image(tmp_path, name) is not None for name in there)


@pytest.mark.process
def test_a_kill_leaves_whole_images_only_and_what_is_left_of_another_goes(tmp_path: Path) -> None:
    for attempt in range(3):
        running = writer(tmp_path, 1 << 30, 1000 * attempt, 1000)
        assert running.stdout is not None
        for _ in range(5 + attempt):
            running.stdout.readline()
        running.send_signal(signal.SIGKILL)
        running.wait()
        running.stdout.close()
        there = names(tmp_path)
        assert len(there) >= 5 * (attempt + 1)
        assert all(read_image(tmp_path, name) is not None for name in there)
    (tmp_path / FOLDER / PART).write_bytes(b"half of an im")
    write(tmp_path, [])
    assert not (tmp_path / FOLDER / PART).exists()
    assert total(tmp_path) == int((tmp_path / FOLDER / "lock").read_text())


FULL = """
import logging, resource, signal, sys, time
from pathlib import Path
from server.findings.quarantine import FOLDER, Quarantine
from tests.server.findings.test_quarantine import digest, made
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
said, counted = [], []
handler = logging.Handler(); handler.emit = lambda record: said.append(record.levelname)
logging.getLogger("awnet.findings").addHandler(handler)
quarantine = Quarantine(Path(sys.argv[1]), 1 << 30, 1e9, counted.append)
quarantine.start()
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
for n in range(10):
    quarantine.keep(digest(made(n)), made(n))
while len(counted) < 10:
    time.sleep(0.01)
assert counted == 10 * ["lost"] and said == ["ERROR"], (counted, said)
assert [path.name for path in (Path(sys.argv[1]) / FOLDER).iterdir()] == ["lock"]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
quarantine.keep(digest(b"file"), b"file")
quarantine.stop()
assert counted[10:] == ["kept"] and said == ["ERROR", "WARNING"], (counted, said)
"""


@pytest.mark.process
def test_a_full_disk_is_counted_and_logged_once_and_leaves_no_half_of_an_image(tmp_path: Path) -> None:
    """In a process of its own, since the limit on files is one of the process."""
    result = subprocess.run([sys.executable, "-c", FULL, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("")
    with pytest.raises(StartupError, match="flagged images cannot be kept in"):
        Quarantine(tmp_path, 1, DAY)


def test_a_folder_that_was_removed_with_all_images_is_made_again(tmp_path: Path) -> None:
    counted: list[Result] = []
    quarantine = Quarantine(tmp_path, 1 << 30, DAY, counted.append)
    quarantine.start()
    quarantine.keep(digest(b"first"), b"first")
    eventually(lambda: counted == ["kept"], PATIENCE_SECONDS, "it is kept")
    shutil.rmtree(tmp_path / FOLDER)
    quarantine.keep(digest(b"second"), b"second")
    quarantine.stop()
    assert counted == ["kept", "kept"] and names(tmp_path) == {digest(b"second")}
    assert (tmp_path / FOLDER).stat().st_mode & 0o777 == 0o700


def test_the_log_says_once_that_what_is_too_old_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Personal data that outlives its time is not passed over in silence."""
    monkeypatch.setattr("server.findings.quarantine.SWEEP_SECONDS", 0.01)
    quarantine = Quarantine(tmp_path, 1 << 30, DAY)
    shutil.rmtree(tmp_path / FOLDER)
    (tmp_path / FOLDER).write_text("")
    quarantine.start()
    eventually(lambda: caplog.records, PATIENCE_SECONDS, "it is said")
    time.sleep(0.2)
    (tmp_path / FOLDER).unlink()
    eventually(lambda: len(caplog.records) > 1, PATIENCE_SECONDS, "it works again")
    quarantine.stop()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]

"""The journal: what was written is there, and what was changed is named."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from awnet.command.verify_log import main as verify_log
from benchmarks.harness.waiting import eventually
from server.errors import StartupError
from server.findings import recorder as recording
from server.findings.chain import Link, Report, chains, sealed, segments, verify
from server.findings.evidence import evidence
from server.findings.journal import Journal
from server.findings.ocsf import document
from server.findings.reading import events, findings, left_open
from server.findings.recorder import Recorder
from tests.server.findings.test_coalescing import seen
from tests.server.findings.test_ocsf import finding

KEEP = (1 << 30, 86_400.0)


def write(folder: Path, number: int, **options: Any) -> Link:
    """So many events by a process of its own; the head afterwards."""
    journal = Journal(folder, *KEEP, **options)
    for n in range(number):
        journal.append([document(finding(id=f"{n:032x}"))])
    journal.close()
    return journal.head


def chain(folder: Path) -> Path:
    (found,) = chains(folder)
    return found


def lines(folder: Path) -> list[bytes]:
    return [line for path in segments(chain(folder)) for line in path.read_bytes().splitlines(keepends=True)]


def test_every_event_is_there_in_its_order_over_several_processes_and_segments(tmp_path: Path) -> None:
    for _ in range(3):
        head = write(tmp_path, 40, segment_bytes=20_000)
    report = verify(chain(tmp_path))
    assert (report.lines, report.problems, report.notes, report.head) == (120, [], [], head)
    assert len(segments(chain(tmp_path))) > 3
    numbers = [event["unmapped"]["chain"]["sequence"] for event in events(chain(tmp_path))]
    assert numbers == list(range(1, 121)) == [event["metadata"]["sequence"] for event in events(chain(tmp_path))]


def replaced(n: int, old: bytes, new: bytes) -> Callable[[list[bytes]], list[bytes]]:
    return lambda found: [line.replace(old, new) if number == n else line for number, line in enumerate(found, 1)]


Forge = Callable[[list[bytes]], list[bytes]]


def forged(found: list[bytes]) -> list[bytes]:
    """Line 6 made anew with a right hash of its own, as anybody can."""
    import hashlib

    body = found[5].rpartition(b',"hash":"')[0].replace(b'"count":7', b'"count":1')
    return [*found[:5], b'%s,"hash":"%s"}}}\n' % (body, hashlib.sha256(body).hexdigest().encode()), *found[6:]]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (replaced(4, b'"count":7', b'"count":1'), [":4: line 4 changed"]),
        (replaced(12, b'"count":7', b'"count":1'), [":12: line 12 changed"]),
        (lambda found: [*found[:4], b"{}\n", *found[4:]], [":5: changed or inserted"]),
        (lambda found: [*found[:4], *found[5:]], [":5: line 5 before it removed"]),
        (lambda found: [*found[:4], *found[9:]], [":5: lines 5 to 9 before it removed"]),
        (lambda found: found[3:], [":1: lines 1 to 3 before it removed"]),
        (lambda found: [*found[:7], found[2], *found[7:]], [":8: inserted: line 3 is there twice"]),
        (lambda found: [*found[:4], found[5], found[4], *found[6:]], [":6: moved: line 5 stands behind line 6"]),
        (forged, [":7: it does not follow line 6: one of the two was replaced"]),
        (replaced(1, b'"previous":"0', b'"previous":"1'), [":1: line 1 changed", ":1: changed: it is the first"]),
    ],
)
def test_a_change_is_named_with_its_place(
    tmp_path: Path, spoil: Forge, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 12)
    assert verify_log([str(tmp_path)]) == 0
    (path,) = segments(chain(tmp_path))
    path.write_bytes(b"".join(spoil(lines(tmp_path))))
    problems = verify(chain(tmp_path)).problems
    assert len(problems) == len(said), problems
    assert all(part in problem for part, problem in zip(said, problems, strict=True)), problems
    capsys.readouterr()
    assert verify_log([str(tmp_path)]) == 1
    assert all(part in capsys.readouterr().out for part in said[:1])


@pytest.mark.parametrize("seed", range(20))
def test_no_change_of_any_byte_goes_unnoticed(tmp_path: Path, seed: int) -> None:
    """But in the last line's own hash and end, which a head that was kept shows."""
    head = write(tmp_path, 5)
    (path,) = segments(chain(tmp_path))
    data = bytearray(path.read_bytes())
    place = random.Random(seed).randrange(len(data) - 70)
    data[place] ^= 1
    path.write_bytes(data)
    assert verify(chain(tmp_path), [head]).problems


def test_a_segment_that_somebody_removed_is_missed(tmp_path: Path) -> None:
    write(tmp_path, 40, segment_bytes=20_000)
    segments(chain(tmp_path))[0].unlink()
    assert "before it removed" in verify(chain(tmp_path)).problems[0]


def test_a_cut_end_and_a_chain_made_anew_are_found_by_a_head_that_was_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without one they are not, which is what a chain without a key can promise."""
    head = write(tmp_path / "true", 9)
    (path,) = segments(chain(tmp_path / "true"))
    path.write_bytes(b"".join(lines(tmp_path / "true")[:6]))
    assert verify_log([str(tmp_path / "true")]) == 0
    assert verify_log([str(tmp_path / "true"), "--head", str(head)]) == 1
    assert "line 9, whose hash was kept, is not there" in capsys.readouterr().out
    write(tmp_path / "anew", 9)
    assert verify_log([str(tmp_path / "anew"), "--head", str(head)]) == 1
    assert "it was removed" in capsys.readouterr().out
    assert verify_log([str(tmp_path / "anew"), "--head", "nonsense"]) == 2
    assert verify_log([str(tmp_path / "nowhere")]) == 2


def test_each_of_several_heads_is_compared(tmp_path: Path) -> None:
    """A daily job has one for each day; the last one given may be the oldest."""
    early, late = write(tmp_path, 4), write(tmp_path, 5)
    (path,) = segments(chain(tmp_path))
    path.write_bytes(b"".join(lines(tmp_path)[:6]))
    for given in ([late, early], [early, late]):
        (problem,) = verify(chain(tmp_path), given).problems
        assert problem.startswith("line 9, whose hash was kept, is not there")


def test_a_chain_that_says_it_no_longer_keeps_the_line_of_a_head_is_not_believed(tmp_path: Path) -> None:
    """Whoever makes a chain anew can begin it anywhere; that older lines were over their age is what they would say."""
    head = write(tmp_path, 9)
    (path,) = segments(chain(tmp_path))
    line, _ = sealed(document(finding()), Link(head.chain, 30, "0" * 64), {"kept_from": 31})
    path.unlink()
    path.with_name("000000000031.jsonl").write_bytes(line)
    assert verify(chain(tmp_path)).problems == []
    (problem,) = verify(chain(tmp_path), [head]).problems
    assert problem == "line 9, whose hash was kept, is no longer kept: nothing says whether it was removed"


@pytest.mark.parametrize("name", ["\u00b2.jsonl", "notes.jsonl", "000000000003.jsonl/"])
def test_what_else_lies_in_a_chains_folder_is_no_segment(tmp_path: Path, name: str) -> None:
    head = write(tmp_path, 3)
    other = chain(tmp_path) / name
    other.mkdir() if name.endswith("/") else other.write_bytes(b"x")
    assert verify(chain(tmp_path)) == Report(chain(tmp_path), 3, [], [], head)
    assert write(tmp_path, 1).sequence == 4


def test_a_line_that_was_changed_is_read_as_no_finding_and_can_set_no_mark(tmp_path: Path) -> None:
    write(tmp_path, 2)
    (path,) = segments(chain(tmp_path))
    path.write_bytes(path.read_bytes().replace(b'"count":', b'"count":9', 1))
    assert verify(chain(tmp_path)).problems
    assert [found.id for found in findings(tmp_path)] == [f"{1:032x}"]


def test_lines_that_are_no_events_end_no_recorder(tmp_path: Path) -> None:
    """Made by somebody who can write there, with hashes that are right: what comes is written all the same."""
    head = write(tmp_path, 1)
    (path,) = segments(chain(tmp_path))
    line, _ = sealed({"metadata": {}, "unmapped": {"awnet": {}}}, head, {})
    path.write_bytes(path.read_bytes() + line)
    recorder = Recorder(Journal(tmp_path, *KEEP), 60.0)
    recorder.start()
    recorder.write(document(finding()))
    recorder.stop()
    assert verify(chain(tmp_path)).lines == 3


def test_what_a_full_disk_leaves_no_room_for_is_lost_and_not_counted_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(recording, "PENDING_BYTES", 0)
    counted, lost = [], []
    journal = Journal(tmp_path, *KEEP)
    recorder = Recorder(journal, 60.0, lambda *event: counted.append(event), lost.append)
    with monkeypatch.context() as disk:
        disk.setattr(os, "write", full)
        recorder.start()
        recorder.see([seen(1, client="a")])
        eventually(lambda: journal.pending_bytes > 0)  # kept in memory, as much as has room
        recorder.see([seen(2, client="b")])
        eventually(lambda: lost == [1])
    assert counted == [("image", "create")]
    recorder.stop()
    assert len(findings(tmp_path)) == 1


@pytest.mark.parametrize("cut", [1, 2, 60, 500, 1500])
def test_a_line_that_the_end_of_its_process_cut_is_closed_and_the_chain_goes_on(tmp_path: Path, cut: int) -> None:
    write(tmp_path, 5)
    (path,) = segments(chain(tmp_path))
    os.truncate(path, path.stat().st_size - cut)
    assert verify(chain(tmp_path)).problems == []
    for _ in range(2):
        write(tmp_path, 2)
    report = verify(chain(tmp_path))
    assert report.problems == []
    assert bool(report.notes) == (cut > 1)  # of a line without its end nothing is lost
    assert report.lines == (9 if cut == 1 else 8)


def test_torn_twice_is_closed_twice(tmp_path: Path) -> None:
    """The process that closed a line was itself ended before it wrote one."""
    write(tmp_path, 5)
    (path,) = segments(chain(tmp_path))
    os.truncate(path, path.stat().st_size - 700)
    Journal(tmp_path, *KEEP).close()
    with path.open("ab") as f:
        f.write(b'{"activity_id":1,')
    write(tmp_path, 1)
    assert verify(chain(tmp_path)).problems == []
    with path.open("r+b") as f:
        data = f.read().replace(b'{"activity_id":1,\n', b'{"activity_id":2,\n')
        f.seek(0)
        f.write(data)
    assert verify(chain(tmp_path)).problems  # a torn line that was changed afterwards is no torn line


def test_a_chain_whose_end_was_changed_is_left_alone_and_another_begun(tmp_path: Path) -> None:
    write(tmp_path, 5)
    (path,) = segments(chain(tmp_path))
    before = path.read_bytes().rpartition(b'"count":7')
    path.write_bytes(before[0] + b'"count":1' + before[2])
    spoilt = path.read_bytes()
    journal = Journal(tmp_path, *KEEP)
    assert journal.broken == [path.parent] and journal.folder.name == "chain-1"
    journal.close()
    assert path.read_bytes() == spoilt


def test_processes_never_write_into_one_chain(tmp_path: Path) -> None:
    journals = [Journal(tmp_path, *KEEP) for _ in range(3)]
    assert [journal.folder.name for journal in journals] == ["chain-0", "chain-1", "chain-2"]
    journals[1].close()
    again = Journal(tmp_path, *KEEP)
    assert again.folder.name == "chain-1"
    for journal in (journals[0], again, journals[2]):
        journal.append([document(finding())])
        journal.close()
    assert [verify(folder).lines for folder in chains(tmp_path)] == [1, 1, 1]


def test_the_oldest_segments_go_and_are_not_missed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 60_000, 86_400.0, segment_bytes=10_000)
    for _ in range(200):
        journal.append([document(finding())])
    journal.close()
    sizes = [path.stat().st_size for path in segments(chain(tmp_path))]
    assert sum(sizes) <= 60_000 + max(sizes)
    report = verify(chain(tmp_path))
    assert report.problems == [] and "no longer kept" in report.notes[0]
    segments(chain(tmp_path))[0].unlink()
    assert verify(chain(tmp_path)).problems  # that one is


def test_segments_over_their_age_go(tmp_path: Path) -> None:
    write(tmp_path, 40, segment_bytes=20_000)
    for path in segments(chain(tmp_path)):
        os.utime(path, (1, 1))
    write(tmp_path, 1)
    assert verify(chain(tmp_path)).lines == 1
    assert verify(chain(tmp_path)).problems == []


FULL = """
import fcntl, resource, sys
from pathlib import Path
from server.findings.chain import verify
from server.findings.journal import Journal
from server.findings.ocsf import document
from benchmarks.harness.waiting import eventually
from tests.server.findings.test_coalescing import seen
from tests.server.findings.test_ocsf import finding
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path(sys.argv[1]), 1 << 30, 1e9)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
failed = 0
for n in range(20):
    try:
        journal.append([document(finding())])
    except OSError:
        failed += 1
assert failed > 10 and journal.pending_bytes > 10_000
fcntl.flock(journal._lock, fcntl.LOCK_UN)  # as if it had been killed
restarted = Journal(Path(sys.argv[1]), 1 << 30, 1e9)
assert restarted.head.sequence == 1 and restarted.pending_bytes == 1  # the end of the torn line
fcntl.flock(restarted._lock, fcntl.LOCK_UN)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.append([])
journal.close()
report = verify(journal.folder)
assert (report.lines, report.problems, report.notes) == (20, [], []), report
"""


@pytest.mark.process
def test_what_a_full_disk_did_not_take_is_written_once_it_does(tmp_path: Path) -> None:
    """Nor does it keep a process that was killed meanwhile from starting again.

    In a process of its own, since the limit on files is one of the process.
    """
    root = Path(__file__).parents[3]
    result = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="findings cannot be written to"):
        Journal(tmp_path / "file", *KEEP)


def test_findings_are_read_with_their_last_event_the_newest_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path, *KEEP)
    journal.append([document(finding(id="1" * 32, time=1000)), document(finding(id="2" * 32, time=2000))])
    journal.append([document(finding(id="1" * 32, time=3000, activity="close"))])
    journal.close()
    listed = findings(tmp_path)
    assert [(found.id[0], found.event["activity_name"]) for found in listed] == [
        ("1", "Close"),
        ("2", "Create"),
    ]
    (event,) = left_open(chain(tmp_path))
    assert (event["finding_info"]["uid"][0], event["activity_name"]) == ("2", "Close")
    assert "not counted" in event["message"]
    json.dumps(event)


def test_a_report_of_nothing_is_no_problem(tmp_path: Path) -> None:
    Journal(tmp_path, *KEEP).close()
    assert verify(chain(tmp_path)) == Report(chain(tmp_path))


def test_a_changed_line_is_no_evidence(tmp_path: Path) -> None:
    """What somebody has made of a finding does not speak for it: that a line was changed stands beside it."""
    journal = Journal(tmp_path, *KEEP)
    one = finding(id="a" * 32)
    journal.append([document(one), document(replace(one, activity="update", time=one.time + 1))])
    journal.close()
    (path,) = segments(chain(tmp_path))
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(b'"count":7', b'"count":1'))
    made = evidence(tmp_path, one.id, {}, False)
    assert made is not None
    held = zipfile.ZipFile(io.BytesIO(made))
    assert held.read("events.jsonl") == first
    assert json.loads(held.read("finding.json"))["activity_name"] == "Create"
    assert "line 2 changed" in str(json.loads(held.read("journal.json"))[0]["problems"])

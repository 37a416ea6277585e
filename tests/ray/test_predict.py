"""`awnet predict --engine ray`: one row for each image, whatever happens on the way."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow.parquet import ParquetFile, read_table, write_table

from awnet.__main__ import main
from awnet.command.images import PathError
from awnet.command.results import COLUMNS, OutputError
from awnet.ray import sources
from awnet.ray.parts import Parts, part, write_part
from awnet.ray.scoring import Scorer, ScoringError
from awnet.ray.settings import scorer_settings
from awnet.ray.sources import Files, _cut, filesystem, shown, units
from benchmarks.deployment import ray_cluster
from benchmarks.harness.processes import Process, free_port
from benchmarks.harness.ray import SCORER, START_SECONDS, below, variables
from benchmarks.harness.report import bundled_model
from benchmarks.harness.waiting import eventually
from server.settings.settings import Settings
from tests.repository import ROOT
from tests.requires import MOTO_SERVER, requires

EXAMPLES = {path.name: path.read_bytes() for path in sorted((ROOT / "examples").glob("*.png"))}
RUN = {"model": "m"}


def table(path: Path, rows: Sequence[tuple[str, Any]], group: int = 1000) -> Path:
    """A Parquet file with the columns `key` and `image`."""
    keys, images = zip(*rows, strict=True)
    write_table(pyarrow.table({"key": keys, "image": list(images)}), path, row_group_size=group)
    return path


def bundled_sha256() -> str:
    return hashlib.sha256((bundled_model() / "model.onnx").read_bytes()).hexdigest()


def rows_of(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_table(folder).to_pylist()
    return found


@pytest.mark.parametrize(
    ("sizes", "units"),
    [
        ([], []),
        ([0], []),
        ([3, 3, 3], [((0, 1, 2), 0, 9, 0)]),
        ([6, 6], [((0,), 0, 6, 0), ((1,), 0, 6, 6)]),
        ([25], [((0,), 0, 10, 0), ((0,), 10, 10, 10), ((0,), 20, 5, 20)]),
        ([4, 12, 0, 4], [((0,), 0, 4, 0), ((1,), 0, 10, 4), ((1,), 10, 2, 14), ((3,), 0, 4, 16)]),
    ],
)
def test_units_are_row_groups_together_or_in_pieces(sizes: list[int], units: list[Any]) -> None:
    """At most ten rows each, every row in one, in their order."""
    assert list(_cut(sizes, 10)) == units


def test_each_row_of_a_parquet_file_is_read_once(tmp_path: Path) -> None:
    """However its row groups lie: bytes, structs of Hugging Face, and rows that hold nothing."""
    rows = [(f"k{number}", f"image {number}".encode()) for number in range(230)]
    path = table(tmp_path / "a.parquet", rows, group=70)
    for most in (1, 50, 100, 1000):
        found = [image for unit in units([str(path)], "image", "key", most) for image in unit.images()]
        assert [(image.name, image.read()) for image in found] == rows
    (unit,) = units([str(path)], "image", None)
    assert [image.name for image in unit.images()][:2] == [f"{path}#0", f"{path}#1"]
    structs = [("a", {"bytes": b"one", "path": "x.png"}), ("b", {"bytes": None, "path": "y.png"})]
    (unit,) = units([str(table(tmp_path / "b.parquet", structs))], "image", "key")
    good, bad = unit.images()
    assert good.read() == b"one"
    with pytest.raises(ValueError, match="no encoded image"):
        bad.read()


def test_rows_that_cannot_be_read_are_images_that_cannot_be(tmp_path: Path) -> None:
    """A damaged page costs its rows, and not the run: each image has its row all the same."""
    rows = [(f"k{number}", bytes([number]) * 5000) for number in range(200)]
    path = table(tmp_path / "a.parquet", rows, group=100)
    (unit,) = units([str(path)], "image", "key")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + whole[len(whole) // 2 + 1 :])
    found = list(unit.images())
    assert len(found) == unit.count == 200
    with pytest.raises(ValueError):
        found[-1].read()


def promising(path: Path, rows: int, *, everywhere: bool) -> Path:
    """The file with one group of ten rows, whose footer says that the group has so many, and so does the file."""
    data, size = path.read_bytes(), ParquetFile(path).metadata.row_group(0).total_byte_size
    length = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - length : -8]
    # Thrift's compact protocol: 0x16 is a field of 64 bits, 0x19 the list behind the number of the file's rows.
    parts = [(b"\x16" + _number(size) + b"\x16", b"")] + [(b"\x16", b"\x19")] * everywhere
    for before, behind in parts:
        assert footer.count(before + _number(10) + behind) == 1
        footer = footer.replace(before + _number(10) + behind, before + _number(rows) + behind)
    path.write_bytes(data[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    return path


def _number(value: int) -> bytes:
    """A zigzag varint."""
    left, out = ((value << 1) ^ (value >> 63)) & ((1 << 64) - 1), bytearray()
    while left > 127:
        out.append(left & 127 | 128)
        left >>= 7
    return bytes([*out, left])


@pytest.mark.parametrize(
    ("rows", "everywhere", "said"),
    [
        (11, False, "its footer says 10 rows, its groups others"),
        (-5, True, "its footer says -5 rows, its groups others"),
        (10**12, False, "its footer says 10 rows, its groups others"),
        (10**12, True, "1000000000000 rows in "),
    ],
)
def test_a_footer_that_promises_what_cannot_be_is_told_at_once(
    tmp_path: Path, rows: int, everywhere: bool, said: str
) -> None:
    """Before anything is begun, and before a unit is made of each thousand of them."""
    path = table(tmp_path / "a.parquet", [(f"k{number}", b"image") for number in range(10)])
    with pytest.raises(PathError, match=f"a.parquet: no Parquet file that can be read: {said}"):
        units([str(promising(path, rows, everywhere=everywhere))], "image", "key")


def test_rows_that_a_footer_promises_and_that_are_not_there_are_images_that_cannot_be_read(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", [(f"k{number}", b"image") for number in range(10)])
    (unit,) = units([str(promising(path, 13, everywhere=True))], "image", "key")
    *there, eleventh, _, last = unit.images()
    assert [image.read() for image in there] == [b"image"] * 10
    assert (eleventh.name, last.name) == (f"{path}#10", f"{path}#12")
    with pytest.raises(ValueError, match="the file ends before this row"):
        last.read()


def test_rows_that_fit_into_no_memory_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes may unpack to gigabytes; large rows are read one by one."""
    path = table(tmp_path / "a.parquet", [(f"k{number}", bytes([number]) * (3 << 20)) for number in range(4)])
    (unit,) = units([str(path)], "image", "key")
    monkeypatch.setattr(sources, "READ_BYTES", 4 << 20)
    assert [len(image.read()) for image in unit.images()] == [3 << 20] * 4
    monkeypatch.setattr(sources, "READ_BYTES", 2 << 20)
    for image in unit.images():
        with pytest.raises(ValueError, match="3 MiB each"):
            image.read()


def test_a_folder_gives_its_images_and_tables_by_path_and_so_does_an_address(tmp_path: Path) -> None:
    """What it is called is what was asked for; file:// is read by the file systems of Arrow, as s3:// is."""
    (tmp_path / "in").mkdir()
    for name in ("b.png", "a.JPG", "in/c.webp", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    table(tmp_path / "in/d.parquet", [("k", b"row")])
    expected = [("a.JPG", b"a.JPG"), ("b.png", b"b.png"), ("in/c.webp", b"in/c.webp"), ("in/d.parquet#0", b"row")]
    for source in (str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}"):
        base = source.rstrip("/")
        found = [image for unit in units([source], "image", None) for image in unit.images()]
        assert [(image.name.removeprefix(f"{base}/"), image.read()) for image in found] == expected
    assert shown("s3://key:secret@bucket/a/b?region=x&secret=y") == "s3://bucket/a/b"
    assert shown("s3://key:sec/ret@bucket/a@b") == "s3://b"  # the slash was to be %2F: rather too little is told
    assert shown("hdfs://host:9000/a@b") == "hdfs://host:9000/a@b"
    for wrong in ("s3://key:sec ret@bucket/a", "s3://key:sec/ret@bucket/a", "foo://key:secret@bucket/a?more=secret"):
        with pytest.raises(PathError, match="bucket/a") as refusal:
            filesystem(wrong)
        assert "ret" not in str(refusal.value)


@requires("moto")
def test_a_bucket_gives_the_same_and_its_keys_are_told_to_nobody(tmp_path: Path) -> None:
    """By pyarrow's client of S3, from moto's server: a folder with images and a table, and each of them alone."""
    port = free_port()
    with Process([MOTO_SERVER, "-H", "127.0.0.1", "-p", str(port)], tmp_path / "moto.log") as moto:
        moto.answering(f"http://127.0.0.1:{port}/moto-api/")
        query = f"scheme=http&endpoint_override=127.0.0.1%3A{port}&region=us-east-1"
        system, _ = filesystem(f"s3://key:secret@photos?{query}&allow_bucket_creation=true")
        system.create_dir("photos/in")
        for name, data in (("photos/b.png", b"b"), ("photos/in/a.png", b"a"), ("photos/notes.txt", b"notes")):
            with system.open_output_stream(name) as f:
                f.write(data)
        write_table(pyarrow.table({"image": [b"row"]}), "photos/in/c.parquet", filesystem=system)
        for path, expected in (
            ("photos", [("b.png", b"b"), ("in/a.png", b"a"), ("in/c.parquet#0", b"row")]),
            ("photos/in/a.png", [("in/a.png", b"a")]),
        ):
            found = [
                image for unit in units([f"s3://key:secret@{path}?{query}"], "image", None) for image in unit.images()
            ]
            assert [(image.name, image.read()) for image in found] == [
                (f"s3://photos/{n}", data) for n, data in expected
            ]
        with pytest.raises(PathError, match=r"^s3://photos/none: no such file or folder$"):
            units([f"s3://key:secret@photos/none?{query}"], "image", None)


def test_what_is_not_there_is_told_before_anything_is_begun(tmp_path: Path) -> None:
    """A path, a column, a table that is none, a folder without images."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.parquet").write_bytes(b"nothing")
    path = table(tmp_path / "a.parquet", [("k", b"x")])
    empty = tmp_path / "empty.parquet"
    write_table(read_table(path).slice(1), empty)
    for source, column, why in (
        (tmp_path / "nowhere", "image", "no such file or folder"),
        (tmp_path / "empty", "image", "holds no image and no Parquet file"),
        (tmp_path / "none.parquet", "image", "no Parquet file that can be read"),
        (path, "pixels", "has no column pixels; it has key, image"),
        (empty, "image", "no row, and so no image"),
    ):
        with pytest.raises(PathError, match=why):
            units([str(source)], column, None)


def test_a_run_goes_on_with_the_same_images_and_model_alone(tmp_path: Path) -> None:
    """And nobody else writes at the same time; a folder that is there is not touched."""
    (tmp_path / "a.png").write_bytes(b"a")
    found = units([str(tmp_path / "a.png")], "image", None)
    out = tmp_path / "out"
    first = Parts(out, found, RUN, resume=False)
    with pytest.raises(OutputError, match="another process writes"):
        Parts(out, found, RUN, resume=True)
    write_part(first.folder, 0, [{"file": "a.png", "error": {"title": "bad"}}])
    first.close()
    for resume, run, given, why in (
        (False, RUN, found, "go on with --resume"),
        (True, {"model": "n"}, found, r"a run with other model \(m, now n\)"),
        (True, RUN, [Files("x", ("a", "b"), ("a", "b"))], "a run with other images"),
    ):
        with pytest.raises(OutputError, match=why):
            Parts(out, given, run, resume)
    again = Parts(out, found, RUN, resume=True)
    assert again.left() == []
    assert again.publish() == 1  # image without an answer
    again.close()
    with pytest.raises(OutputError, match="is there already"):
        Parts(out, found, RUN, resume=True)


def test_what_another_has_left_under_the_name_is_not_taken_for_a_run(tmp_path: Path) -> None:
    """Nothing of it is changed, let alone removed once the run ends."""
    folder = tmp_path / "out.partial"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not of a run"):
        Parts(tmp_path / "out", [Files("x", ("a",), ("a",))], RUN, resume=True)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    for wrong in ("[]", "[" * 100_000):
        (folder / "_run.json").write_text(wrong)
        with pytest.raises(OutputError, match="no file of ours"):
            Parts(tmp_path / "out", [Files("x", ("a",), ("a",))], RUN, resume=True)


def test_a_part_with_a_row_too_few_is_not_published(tmp_path: Path) -> None:
    """The promise is checked and not believed."""
    parts = Parts(tmp_path / "out", [Files("x", ("a", "b"), ("a", "b"))], RUN, resume=False)
    write_part(parts.folder, 0, [{"file": "a"}])
    with pytest.raises(OutputError, match="has 1 rows for 2 images"):
        parts.publish()
    assert not (tmp_path / "out").exists()
    write_part(parts.folder, 0, [{"file": "a"}, {"file": "b"}])
    (tmp_path / "out").write_text("somebody else's")
    with pytest.raises(OutputError, match="out: "):
        parts.publish()
    parts.close()


def test_a_run_that_began_nothing_leaves_nothing(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "out", [Files("x", ("a",), ("a",))], RUN, resume=False)
    parts.close()
    assert list(tmp_path.iterdir()) == []


def test_mistakes_end_with_status_2_and_one_line(
    tmp_path: Path, no_variables: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a Ray is started."""
    image = str(ROOT / "examples/ship.png")
    out = ["--out", str(tmp_path / "out")]
    for arguments, why in (
        ([str(tmp_path / "nowhere"), *out], "no such file or folder"),
        ([image, *out, "--part", "0"], "must be at least 1"),
        ([image, *out, "--max-batch", "none"], "setting max_batch"),
        ([image, *out, "--model", "other"], "other"),
        ([image, "--out", str(tmp_path)], "is there already"),
        ([image, *out, "--address", f"127.0.0.1:{free_port()}"], "no Ray at 127.0.0.1"),
    ):
        assert main(["predict", "--engine", "ray", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert why in line
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["predict", "--engine=ray", str(ROOT / "examples"), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("awnet predict --engine ray needs ray: install") and "'.[ray]'" in line


def test_a_busy_machine_fails_no_image(no_variables: None) -> None:
    """A deadline is for somebody who waits: offline there is none but the one that was set."""
    assert scorer_settings(Settings())["timeout_seconds"] == 3600
    assert (
        scorer_settings(Settings(timeout_seconds=5, threads=2)).items() >= {"timeout_seconds": 5, "threads": 2}.items()
    )


def test_a_scorer_says_why_no_unit_can_be_scored(tmp_path: Path, no_variables: None) -> None:
    """A model that is another one, or is not there, and a folder that is gone: the run ends, and says it in a line."""
    (unit,) = units([str(ROOT / "examples/ship.png")], "image", None)
    row = {"number": 0, "unit": pickle.dumps(unit)}
    for settings, folder, model, why in (
        ({"threads": 1}, tmp_path, "0" * 64, r"another model answers .* than when the run began \(000000000000\)"),
        ({"threads": 1, "model": "other"}, tmp_path, "", "other"),
        ({"threads": 1}, tmp_path / "gone", bundled_sha256(), "No such file"),
    ):
        error = pickle.loads(Scorer(settings, 1, str(folder), model)(row)["done"])
        assert isinstance(error, ScoringError)
        assert re.search(why, str(error)), error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.process
def test_each_image_has_one_row_though_a_scorer_is_killed_and_the_run_before_was_interrupted(
    tmp_path: Path, no_variables: None
) -> None:
    """The row that `awnet predict` writes of the same image; of what is none, a row that says so."""
    expected_path, out = tmp_path / "expected.parquet", tmp_path / "out"
    assert main(["predict", str(ROOT / "examples"), "--out", str(expected_path), "--quiet"]) == 0
    expected = {Path(row["file"]).name: row for row in read_table(expected_path).to_pylist()}

    rows: list[tuple[str, Any]] = [
        (f"{number}/{name}", data) for number in range(10) for name, data in EXAMPLES.items()
    ]
    rows[5:5] = [("text", b"no image"), ("nothing", None)]
    source = table(tmp_path / "images.parquet", rows, group=100)
    found = units([str(source)], "image", "key", 20)

    # What an earlier run has left: its first part.
    model = next(iter(expected.values()))["model_sha256"]
    before = Parts(out, found, {"model": model, "mode": "auto", "top_k": 1}, resume=False)
    Scorer({"threads": 1}, 1, str(before.folder), model)({"number": 0, "unit": pickle.dumps(found[0])})
    kept = part(before.folder, 0).stat()
    before.close()

    command = [sys.executable, "-m", "awnet", "predict", "--engine", "ray", source, "--id-column", "key", "--out", out]
    with Process(
        [*command, "--part", "20", "--scorers", "2", "--resume"], tmp_path / "log", variables(tmp_path)
    ) as run:
        eventually(lambda: not run.running or len(before.left()) < len(found) - 1, START_SECONDS, "a part is there")
        for pid in below(run.pid, SCORER)[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        left = len(before.left()) if before.folder.exists() else 0
        assert run.popen.wait(START_SECONDS) == 1, run.text()  # two images have no answer
    assert left > 0, "it was over before a process was killed"

    scored = rows_of(out)
    assert Counter(row["file"] for row in scored) == Counter(key for key, _ in rows)
    assert [row["file"] for row in scored] == [key for key, _ in rows]
    for row in scored:
        name = row["file"].partition("/")[2]
        if not name:
            assert row["error"] in ("File cannot be read", "Unsupported media type", "Unsupported image"), row
            continue
        assert {**row, "file": None} == {**expected[name], "file": None}
    assert (out / "part-000000.parquet").stat().st_ino == kept.st_ino, "what had been scored was scored again"
    assert set(scored[0]) == set(COLUMNS)


@pytest.mark.slow
@pytest.mark.process
def test_each_image_has_one_row_though_a_node_of_the_cluster_is_killed(no_variables: None) -> None:
    """With its scorers, and no node comes in its place; the rows say what `awnet predict` says in one process."""
    with tempfile.TemporaryDirectory() as folder:  # sockets lie below it: the path of a test would be too long
        found = ray_cluster.scored(Path(folder), 400, (1, 1))
    assert found["scorers_by_node"][1] == 1 and found["parts_when_killed"] < found["parts"] == ray_cluster.PARTS, found
    assert (found["status"], found["rows"], found["in_order"]) == (0, 400, True), found["said"]
    wrong = ("ids_missing", "ids_more_than_once", "ids_of_no_image", "without_answer", "unlike_one_process")
    assert {name: found[name] for name in wrong} == dict.fromkeys(wrong, 0)

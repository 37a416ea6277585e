"""`awnet predict`: one result for each image, the same as /predict gives, whatever happens on the way."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from awnet.__main__ import main
from awnet.client.retries import Retries
from awnet.command.answerers import in_the_open
from awnet.command.engines import engines
from awnet.command.images import PathError, images
from awnet.command.results import COLUMNS
from benchmarks.harness.processes import free_port
from tests.repository import ROOT
from tests.server.tiny import Running, encoded, noise, publish
from tests.waiting import eventually


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("repository"))


@pytest.fixture(autouse=True)
def tiny(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run in this process opens the tiny model."""
    monkeypatch.setenv("AWNET_REPOSITORY", str(repository))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images in a folder and one below it, not in the order of their names."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for seed, name in enumerate(("f.png", "b.jpg", "d.webp", "a.PNG", "more/z.png", "e.jpeg")):
        kind = {"jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}.get(name.rpartition(".")[2], "PNG")
        (folder / name).write_bytes(encoded(noise(24, 24, seed=seed), kind))
    (folder / "notes.txt").write_text("no image")
    return folder


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def files(path: Path) -> list[str]:
    return [str(line["file"]) for line in lines(path)]


def test_answers_are_those_of_a_server_to_the_byte(
    repository: Path, photos: Path, tmp_path: Path, process: None
) -> None:
    """In this process, by a server, and by hand: the same result, the same file."""
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    server = Running(repository)
    try:
        server.wait_ready()
        assert main(["predict", str(photos), "--out", str(here), "--top-k", "3"]) == 0
        assert main(["predict", str(photos), "--out", str(there), "--top-k", "3", "--url", server.url]) == 0
        assert here.read_bytes() == there.read_bytes()
        for line in here.read_bytes().splitlines():
            written = orjson.loads(line)
            sent = Path(written["file"]).read_bytes()
            body = server.http.post("/predict?top_k=3", content=sent, headers={"Content-Type": "image/png"}).content
            results = body[body.index(b'"results":[') + len(b'"results":[') : body.index(b'],"timing_ms"')]
            assert line.endswith(results[1:])
            assert written["model"] == orjson.loads(body)["model"]
    finally:
        server.stop()


def test_bounds_of_a_servers_clients_are_none_of_a_command(photos: Path, tmp_path: Path) -> None:
    """The same file of settings serves and scores: who asks for a folder is not one client of many."""
    config, out = tmp_path / "server.toml", tmp_path / "out.jsonl"
    config.write_text('requests_per_second = 0.01\nqueue_share = 0.001\nanswers = "verdict"\n', "utf-8")
    assert main(["predict", str(photos), "--out", str(out), "--config", str(config)]) == 0
    assert [isinstance(line["adversarial"]["score"], float) for line in lines(out)] == 6 * [True]  # type: ignore[index]


def test_images_that_are_scored_here_are_no_findings_of_a_server(photos: Path, tmp_path: Path) -> None:
    """Whose settings the command may have: nobody is paged because somebody scores a folder of attacks."""
    settings = ["--findings-dir", str(tmp_path / "findings"), "--findings-at", "suspicious"]
    assert main(["predict", str(photos), *settings, "--out", str(tmp_path / "out.jsonl"), "--quiet"]) in (0, 1)
    assert (tmp_path / "out.jsonl").exists() and not (tmp_path / "findings").exists()


def test_paths_are_files_folders_patterns_and_archives_in_a_stable_order(photos: Path, tmp_path: Path) -> None:
    """In the order of the paths, by name within each, each image once; of folders only what ends like an image."""
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("z.png", "in/a.png", "readme.txt"):
            archive.writestr(name, encoded(noise(24, 24)) if name.endswith("png") else "text")
    out = tmp_path / "out.jsonl"
    paths = [str(photos / "f.png"), str(packed), str(photos), f"{photos}/**/*.png"]
    assert main(["predict", *paths, "--out", str(out)]) == 0
    names = [
        "f.png",
        "../packed.zip/in/a.png",
        "../packed.zip/z.png",
        "a.PNG",
        "b.jpg",
        "d.webp",
        "e.jpeg",
        "more/z.png",
    ]
    wanted = [str(tmp_path / name[3:]) if name.startswith("../") else str(photos / name) for name in names]
    assert files(out) == wanted


@pytest.mark.parametrize("packed", [False, True])
def test_standard_input_is_an_image_or_an_archive(
    packed: bool, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    data = encoded(noise(24, 24))
    if packed:
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w") as archive:
            archive.writestr("a.png", data)
        data = held.getvalue()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert main(["predict", "-"]) == 0
    assert orjson.loads(capfdbinary.readouterr().out)["file"] == ("-/a.png" if packed else "-")


def test_a_bad_file_is_told_by_name_and_stops_none_of_the_others(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1, a line that says why, in its place."""
    whole = (photos / "b.jpg").read_bytes()
    (photos / "c.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").write_bytes(b"")
    (photos / "gone.png").symlink_to(tmp_path / "nowhere")
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(photos), "--out", str(out)]) == 1
    bad = {str(line["file"]): line["error"] for line in lines(out) if "error" in line}
    assert [Path(name).name for name in bad] == ["c.jpg", "empty.png", "gone.png"]
    assert files(out) == sorted(files(out), key=lambda name: (name.count("more"), name)) and len(lines(out)) == 9
    said = capsys.readouterr().err
    assert all(f"{name}: {error['title']}" in said for name, error in bad.items())
    assert "9 of 9 images" in said and "3 failed" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["*.gif"], "*.gif matches nothing"),
        (["empty"], "empty holds no image"),
        (["/dev/zero"], "/dev/zero is neither a file nor a folder; - reads standard input"),
        (["a.png", "pipe.png"], "pipe.png is neither a file nor a folder"),
        (["pipe.zip"], "pipe.zip is neither a file nor a folder"),
        (["*.zip"], "pipe.zip: it is no regular file"),
        (["a\0b"], "a\0b: embedded null byte"),
        (["broken.zip"], "broken.zip is no ZIP archive"),
        (["a.png", "--out", "a.txt"], "--out a.txt: the name must end in .jsonl, .csv, .parquet"),
        (["a.png", "--out", "there.csv"], "there.csv is there already"),
        (["a.png", "--out", "no/where.csv"], "no/where.csv.partial: No such file or directory"),
        (["a.png", "--resume"], "--resume needs the --out"),
        (["a.png", "--top-k", "0"], "--concurrency and --top-k must be at least 1"),
        (["a.png", "--key", "x"], "--key is for the server of --url"),
        (["a.png", "--url", "ftp://x"], "'ftp://x' is no address of a server: write http://HOST:PORT"),
        (["a.png", "--url", "http://x", "--key", "@none"], "--key @none: No such file or directory"),
        (["a.png", "--url", "http://x", "--threads", "2"], "--threads is a setting of the server"),
        (["a.png", "--mode", "robsut"], "setting mode (AWNET_MODE)"),
        (["a.png", "--engine", "rai"], f"--engine rai: there are {', '.join(engines())}: ray is meant?"),
        (["a.png", "--repository", "nowhere"], "Startup failed: awnet cannot be served: there is no"),
        (["a.png", "--out", "a.csv", "--repository", "nowhere"], "Startup failed: awnet cannot be served: there is no"),
    ],
)
def test_what_cannot_be_begun_is_told_in_one_line_and_writes_nothing(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.zip").write_bytes(b"PK")
    (tmp_path / "there.csv").write_text("kept")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    if "zip" in arguments[0] and arguments[0] != "broken.zip":
        (tmp_path / "broken.zip").unlink()
        os.mkfifo(tmp_path / "pipe.zip")
    if arguments[0] == "a.png":
        (tmp_path / "a.png").write_bytes(encoded(noise(24, 24)))
    before = {path.name for path in tmp_path.iterdir()}
    assert main(["predict", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)
    assert {path.name for path in tmp_path.iterdir()} == before and (tmp_path / "there.csv").read_text() == "kept"


@pytest.mark.process
@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9, at any byte: what was answered is not asked for again, and the file is the same, byte by byte."""
    folder = tmp_path / "many"
    folder.mkdir()
    for seed in range(300):
        (folder / f"{seed:03}.png").write_bytes(encoded(noise(24, 24, seed=seed)))
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    journal = out.with_name("out.jsonl.partial")
    command = [sys.executable, "-m", "awnet", "predict", str(folder), "--out", str(out), "--concurrency", "1"]
    run = subprocess.Popen(command, cwd=ROOT)
    eventually(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 20, 60)
    run.send_signal(signal.SIGKILL)
    assert run.wait(60) == -signal.SIGKILL and not out.exists()
    kept = journal.read_bytes()
    journal.write_bytes(kept + b'{"file":"' + str(folder).encode())  # the line that it was writing
    answered = kept.count(b"\n")
    assert 20 <= answered < 300
    assert main(["predict", str(folder), "--out", str(out)]) == 2  # without --resume it is nobody's to take
    assert "go on with --resume" in capsys.readouterr().err
    assert main(["predict", str(folder), "--out", str(out), "--resume"]) == 0
    assert f"{answered} before" in capsys.readouterr().err and not journal.exists()
    assert main(["predict", str(folder), "--out", str(whole), "--resume"]) == 0  # --resume may begin a run, too
    assert out.read_bytes() == whole.read_bytes() and len(lines(out)) == 300


def test_a_changed_image_and_one_that_failed_are_asked_for_again(photos: Path, tmp_path: Path) -> None:
    """A name is not enough: an earlier answer counts for the same bytes only."""
    out = tmp_path / "out.jsonl"
    good = (photos / "f.png").read_bytes()
    (photos / "f.png").write_bytes(good[:40])
    assert main(["predict", str(photos), "--out", str(out)]) == 1
    out.rename(tmp_path / "out.jsonl.partial")
    (photos / "f.png").write_bytes(good)
    (photos / "b.jpg").write_bytes(encoded(noise(24, 24, seed=99), "JPEG"))
    assert main(["predict", str(photos), "--out", str(out), "--resume"]) == 0
    fresh = tmp_path / "fresh.jsonl"
    assert main(["predict", str(photos), "--out", str(fresh)]) == 0
    assert out.read_bytes() == fresh.read_bytes()


def test_answers_of_two_models_are_not_mixed(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that goes on with another model ends at once, and leaves the journal as it was."""
    out, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    assert main(["predict", str(photos / "f.png"), "--out", str(out)]) == 0
    out.rename(journal)
    before = journal.read_bytes()
    other = publish(tmp_path / "other", seed=5)
    assert main(["predict", str(photos), "--out", str(out), "--resume", "--repository", str(other)]) == 2
    assert "another model answers" in capsys.readouterr().err
    assert journal.read_bytes() == before and not out.exists()


def test_two_runs_do_not_write_one_file(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = tmp_path / "out.jsonl.partial"
    with journal.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["predict", str(photos), "--out", str(tmp_path / "out.jsonl"), "--resume"]) == 2
    assert capsys.readouterr().err == f"another process writes {journal}\n"


def test_tables_have_a_row_for_each_image_with_the_same_values(photos: Path, tmp_path: Path) -> None:
    """CSV and Parquet hold what the JSON lines hold; what failed has a row, too."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    (photos / "c.jpg").write_bytes(b"none")
    outs = {kind: tmp_path / f"out.{kind}" for kind in ("jsonl", "csv", "parquet")}
    for out in outs.values():
        assert main(["predict", str(photos), "--out", str(out)]) == 1
    rows = list(csv.DictReader(outs["csv"].open(newline="", encoding="utf-8")))
    table = parquet.read_table(outs["parquet"]).to_pylist()
    assert list(rows[0]) == list(table[0]) == list(COLUMNS)
    assert len(lines(outs["jsonl"])) == len(rows) == len(table) == 7
    for line, row, typed in zip(lines(outs["jsonl"]), rows, table, strict=True):
        assert row["file"] == typed["file"] == line["file"]
        if "error" in line:
            assert row["error"] == typed["error"] == line["error"]["title"] and typed["score"] is None  # type: ignore[index]
            continue
        judged = line["adversarial"]
        assert float(row["score"]) == typed["score"] == judged["score"]  # type: ignore[index]
        assert row["verdict"] == typed["verdict"] == judged["verdict"]  # type: ignore[index]
        assert (row["calibrated"] == "true") == typed["calibrated"] == judged["calibrated"]  # type: ignore[index]
        assert int(row["width"]) == typed["width"] == 24


def test_names_that_are_no_text_can_be_written(tmp_path: Path) -> None:
    """A file name is bytes; JSON is text."""
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / 'a\udcff\n".png').write_bytes(encoded(noise(24, 24)))
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(folder), "--out", str(out)]) == 0
    assert files(out) == [f'{folder}/a\\xff\n".png']


def test_names_of_an_archive_reach_neither_a_terminal_nor_a_spreadsheet_as_orders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are whoever's who made it: escape sequences are not printed, formulas are text in a CSV file."""
    packed, out = tmp_path / "a.zip", tmp_path / "out.csv"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("\x1b[2Jbad.png", b"none")
    assert main(["predict", str(packed), "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "\x1b" not in said and "?[2Jbad.png" in said
    for number, name in enumerate(("=1+1", "\uff1d1+1")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.png").write_bytes(encoded(noise(24, 24)))
        with contextlib.chdir(tmp_path):
            assert main(["predict", name, "--out", f"{number}.csv"]) == 0
        assert (tmp_path / f"{number}.csv").read_text("utf-8").splitlines()[1].startswith(f"'{name}/a.png,")


@pytest.mark.parametrize(
    ("compression", "at", "broken"),
    [
        (zipfile.ZIP_DEFLATED, 35, b"\xff" * 10),
        (zipfile.ZIP_BZIP2, 35, b"\xff" * 10),
        (zipfile.ZIP_LZMA, 60, b"\xa5" * 30),
        (zipfile.ZIP_LZMA, 37, b"\0\0"),  # the length of its properties
    ],
)
def test_a_broken_file_in_an_archive_stops_none_of_the_others(
    compression: int, at: int, broken: bytes, tmp_path: Path
) -> None:
    """However it was packed: each way of packing has errors of its own."""
    packed, out = tmp_path / "a.zip", tmp_path / "out.jsonl"
    with zipfile.ZipFile(packed, "w", compression) as archive:
        archive.writestr("a.png", encoded(noise(24, 24)))
        archive.writestr("b.png", encoded(noise(24, 24)))
    data = packed.read_bytes()
    packed.write_bytes(data[:at] + broken + data[at + len(broken) :])
    assert main(["predict", str(packed), "--out", str(out)]) == 1
    assert ["error" in line for line in lines(out)] == [True, False]


@pytest.mark.parametrize(
    ("at", "broken"), [(6, b"\xff"), (8, b"\0\x08"), (30, b"\xff\xff")], ids=["version", "name", "extra"]
)
def test_an_archive_whose_directory_is_broken_is_told_by_its_name(
    at: int, broken: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, whatever is wrong with it."""
    packed = tmp_path / "a.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("\xff.png", encoded(noise(24, 24)))
    data = packed.read_bytes().replace("\xff".encode(), b"\xff\xff")
    begin = data.index(b"PK\1\2") + at
    packed.write_bytes(data[:begin] + broken + data[begin + len(broken) :])
    assert main(["predict", str(packed)]) == 2
    assert capsys.readouterr().err == f"{packed} is no ZIP archive that can be read\n"


def test_standard_input_has_an_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`awnet predict - < /dev/zero` fills no memory."""
    monkeypatch.setattr("awnet.command.images.MAX_STDIN_BYTES", 1 << 20)
    with Path("/dev/zero").open() as endless:
        monkeypatch.setattr(sys, "stdin", endless)
        assert main(["predict", "-"]) == 2
    assert capsys.readouterr().err == "standard input has more than 1 MiB: name the files\n"


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Somebody whom the modes of files bind, as root they do not bind."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_may_not_be_read_is_told_and_not_passed_over() -> None:
    """Of a folder that is named nothing is begun; one below it fails as an image does, and stops none of the others."""
    with tempfile.TemporaryDirectory() as made:
        (closed := Path(made, "photos", "closed")).mkdir(parents=True)
        (Path(made, "photos", "a.png")).write_bytes(b"image")
        Path(made).chmod(0o755)
        closed.chmod(0)
        with nobody():
            found = images([f"{made}/photos"])
            with pytest.raises(PathError, match="closed: Permission denied"):
                images([str(closed)])
            with pytest.raises(PathError, match=r"closed/a\.png: Permission denied"):
                images([f"{closed}/a.png"])
        closed.chmod(0o700)
    assert [image.name for image in found] == [f"{made}/photos/a.png", f"{closed}/"]
    with pytest.raises(PermissionError):
        found[1].read()


def test_nobody_waits_for_a_pipe_that_lies_among_images(photos: Path, tmp_path: Path) -> None:
    os.mkfifo(photos / "pipe.png")
    assert main(["predict", str(photos), "--out", str(tmp_path / "out.jsonl")]) == 0
    assert not any(name.endswith("pipe.png") for name in files(tmp_path / "out.jsonl"))


class _Moody(http.server.BaseHTTPRequestHandler):
    """Answers each request with the next of `answers`; the last one again and again."""

    answers: list[tuple[int, dict[str, str], dict[str, object]]]
    asked: list[dict[str, str]]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append({name.lower(): value for name, value in self.headers.items()} | {"path": self.path})
        status, headers, document = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        body = orjson.dumps(document)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


GOOD = {
    "request_id": "1",
    "model": {"name": "m", "version": "1", "sha256": "0" * 64},
    "mode": "auto",
    "results": [{"predictions": [], "adversarial": {"verdict": "clean"}}],
}
BUSY = {"type": "urn:awnet:problem:queue-full", "title": "Too many requests", "detail": "later", "status": 503}


@contextlib.contextmanager
def moody(*answers: tuple[int, dict[str, str], dict[str, object]]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    handler = type("Handler", (_Moody,), {"answers": list(answers), "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/base/", handler.asked  # type: ignore[attr-defined]
        finally:
            server.shutdown()


def test_a_server_that_says_later_is_asked_again(photos: Path, tmp_path: Path) -> None:
    """As late as it says; below its own path; with the key."""
    (tmp_path / "key.txt").write_text("awnet_secret\n")
    later = (503, {"Retry-After": "0"}, BUSY)
    with moody(later, (429, {}, BUSY), (200, {}, GOOD)) as (url, asked):
        asking = [
            "predict",
            str(photos / "f.png"),
            "--url",
            url,
            "--key",
            f"@{tmp_path / 'key.txt'}",
            "--mode",
            "robust",
        ]
        assert main(asking) == 0
    assert all(one["path"].startswith("/base/predict?top_k=1&mode=robust&timeout_ms=") for one in asked)
    assert len(asked) == 3
    assert {one["authorization"] for one in asked} == {"Bearer awnet_secret"}


def test_a_server_that_is_too_busy_in_the_end_fails_that_image_alone(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("awnet.command.answerers.PATIENCE", Retries(attempts=2, first_seconds=0.0))
    with moody((503, {"Retry-After": "0"}, BUSY)) as (url, asked):
        assert main(["predict", str(photos), "--url", url, "--concurrency", "2"]) == 1
    assert len(asked) == 12 and capsys.readouterr().err.count("Too many requests: later") == 6


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses_the_key_is_not_asked_for_every_image(
    status: int, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.csv"
    with moody((status, {}, {"type": "urn:awnet:problem:unauthorized", "detail": "no such key"})) as (url, asked):
        assert main(["predict", str(photos), "--url", url, "--out", str(out), "--concurrency", "1"]) == 2
    assert len(asked) == 1 and not list(tmp_path.glob("out*"))
    said = capsys.readouterr().err
    assert "no such key" in said and ("--key takes one" in said) == (status == 401)


def test_where_nobody_answers_nothing_is_begun(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("awnet.command.answerers.PATIENCE", Retries(attempts=2, first_seconds=0.0))
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["predict", str(photos), "--url", url]) == 2
    assert capsys.readouterr().err.startswith(f"{url}")


def test_another_program_behind_the_address_is_told(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Page(_Moody):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert main(["predict", str(photos), "--url", f"http://127.0.0.1:{server.server_port}"]) == 2
        server.shutdown()
    assert "does not answer JSON" in capsys.readouterr().err


def test_a_key_that_would_go_over_a_network_in_the_open_is_warned_of() -> None:
    """Once; on this machine nobody can read along."""
    assert in_the_open("http://192.0.2.1") and in_the_open("http://scores.example")
    for url in ("http://127.0.0.1:8000", "http://localhost", "http://[::1]:80", "https://192.0.2.1"):
        assert not in_the_open(url)

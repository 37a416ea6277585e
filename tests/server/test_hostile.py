"""Images that are made to be slow, wrong or too many, against a running server, and good clients beside them."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pytest
from PIL import Image

from benchmarks.harness.image_files import chunk, grey_jpeg, png, progressive, scan, segment
from tests.server.http.test_upload import FORM, form, part
from tests.server.tiny import CALL, ROOT, SIZE, Running, encoded, noise

pytestmark = pytest.mark.process
GOOD = encoded(noise())
SECONDS = 10  # in which a refusal comes on any machine; on an idle one it takes milliseconds


def transparent(side: int) -> bytes:
    """A few hundred bytes, and seconds of decoding."""
    file = io.BytesIO()
    Image.new("RGBA", (side, side)).save(file, "WEBP", lossless=True)
    return file.getvalue()


BLACK = (b"\0" + bytes(3 * SIZE)) * SIZE
INDEXED = (b"\0" + b"\x09" * SIZE) * SIZE
SLOW = transparent(4000)
HOSTILE: dict[str, tuple[int, list[bytes]]] = {
    "3000 scans": (422, [progressive(4000, 4000, 3000)]),
    "60 scans of 16 megapixels": (413, [progressive(4000, 4000, 60)]),
    "32 progressive images": (413, [progressive(2000, 2000, 30)] * 32),
    "a million segments": (422, [grey_jpeg(SIZE, SIZE, scan(bytes(8)), before=segment(0xFE, b"") * (1 << 20))]),
    "a scan without data": (422, [grey_jpeg(SIZE, SIZE, scan(b""))]),
    "one row of 16 megapixels": (422, [png(4000, 4000, 8, 6, b"\0" + bytes(16000))]),
    "one row of 16 megapixels, 32 times": (422, [png(4000, 4000, 8, 6, b"\0" + bytes(16000))] * 32),
    "one row": (422, [png(SIZE, SIZE, 8, 2, BLACK[: 3 * SIZE + 1])]),
    "transparent WebP, 32 times": (413, [SLOW] * 32),
    "no palette": (422, [png(SIZE, SIZE, 8, 3, INDEXED)]),
    "a palette of five bytes": (422, [png(SIZE, SIZE, 8, 3, INDEXED, chunk(b"PLTE", bytes(5)))]),
    "indices outside the palette": (422, [png(SIZE, SIZE, 8, 3, INDEXED, chunk(b"PLTE", bytes(6)))]),
    "an unknown critical chunk": (422, [png(SIZE, SIZE, 8, 2, BLACK, chunk(b"CgBI", b""))]),
    "HEIC": (415, [b"\0\0\0\x18ftypheic" + bytes(1000)]),
    "AVIF": (415, [b"\0\0\0\x18ftypavif" + bytes(1000)]),
    "text that unpacks to 256 MB": (
        200,
        [png(SIZE, SIZE, 8, 2, BLACK, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(256 << 20))))],
    ),
    "EXIF with 65,000 entries": (
        200,
        [
            grey_jpeg(
                SIZE,
                SIZE,
                scan(bytes(8)),
                before=segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\1\0\0\2" * 16000),
            )
        ],
    ),
}


@pytest.fixture(scope="module")
def server(process: None, repository: Path) -> Iterator[Running]:
    """A server with its default limits."""
    running = Running(repository, shutdown_seconds=1)
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


def ask(server: Running, *files: bytes) -> httpx.Response:
    return server.http.post("/predict", content=form(*map(part, files)), headers={"content-type": FORM})


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_image_has_its_answer_at_once(server: Running, name: str) -> None:
    """The right one, and the next good request is answered; nothing of it reaches standard error."""
    status, files = HOSTILE[name]
    begun = time.monotonic()
    answer = ask(server, *files)
    assert answer.status_code == status, answer.text
    assert time.monotonic() - begun < SECONDS
    assert ask(server, GOOD).status_code == 200
    assert "Warning" not in server.text() and "Traceback" not in server.text()


def test_small_images_are_answered_while_large_ones_are_decoded(server: Running) -> None:
    """Every decoding process has work for seconds; a good client waits for none of it."""
    done = threading.Event()

    def hog() -> None:
        with httpx.Client(base_url=server.url, **CALL) as http:
            while not done.is_set():
                http.post("/predict", content=SLOW, headers={"content-type": "image/webp"})

    threads = [threading.Thread(target=hog) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        waits = []
        for _ in range(20):
            begun = time.monotonic()
            assert ask(server, GOOD).status_code == 200
            waits.append(time.monotonic() - begun)
            assert server.ready()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    alone = time.monotonic()
    assert ask(server, SLOW).status_code == 200
    assert sorted(waits)[10] < max(0.5, (time.monotonic() - alone) / 2)


@pytest.mark.parametrize("filling", ['""', "0", "[]", '{"a":0}'])
def test_json_that_no_tensor_needs_is_refused_before_it_is_parsed(server: Running, filling: str) -> None:
    """Eight megabytes of short texts would hold the whole process for half a second."""
    count = (8 << 20) // (len(filling) + 1) - 100
    data = ",".join([filling] * count)
    body = f'{{"inputs":[{{"name":"image","datatype":"UINT8","shape":[1,3,32,32],"data":[{data}]}}]}}'
    answer = server.http.post("/v2/models/awnet/infer", content=body.encode())
    assert answer.status_code == 400
    assert "the JSON part has more than" in answer.text


def test_json_with_as_many_images_as_are_allowed_is_read(server: Running) -> None:
    """Flat or nested: the bound is what they need."""
    nested = [[[[0] * SIZE] * SIZE] * 3] * 32
    for data in (nested, [0] * (32 * 3 * SIZE * SIZE)):
        tensor = {"name": "image", "datatype": "UINT8", "shape": [32, 3, SIZE, SIZE], "data": data}
        answer = server.http.post("/v2/models/awnet/infer", content=orjson.dumps({"inputs": [tensor]}))
        assert answer.status_code == 200, answer.text


def test_sigterm_ends_the_server_in_time_whatever_is_decoded(process: None, repository: Path) -> None:
    """Its clients get no answer after the shutdown time; no process of it is left."""
    running = Running(repository, shutdown_seconds=1, decode_workers=1)
    running.wait_ready()
    threads = []
    for _ in range(4):

        def hog() -> None:
            with httpx.Client(base_url=running.url, **CALL) as http, contextlib.suppress(httpx.TransportError):
                http.post("/predict", content=SLOW, headers={"content-type": "image/webp"})

        threads.append(threading.Thread(target=hog))
        threads[-1].start()
    time.sleep(0.5)
    begun = time.monotonic()
    running.stop()
    assert time.monotonic() - begun < SECONDS
    for thread in threads:
        thread.join()


def test_a_process_that_is_stuck_ends_all_the_same() -> None:
    """A thread inside of a library cannot be ended; the process can."""
    code = (
        "import threading, time\n"
        "from server.process import servers\n"
        "servers.LEAVING_MARGIN_SECONDS = 0.1\n"
        "threading.Thread(target=servers._end_at_last, args=(0.1, threading.Event()), daemon=True).start()\n"
        "time.sleep(600)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ends now" in done.stderr

"""Bad requests and their answers: the right status, a problem document, no trace, and the next request works."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.server.core.test_images import chunk, png
from tests.server.http.test_upload import FORM, form, part
from tests.server.tiny import Running, encoded, noise

PNG = encoded(noise())
JPEG = encoded(noise(40, 40), "JPEG")
MIB = 1 << 20  # the limit of the fixture's server


def upload(*files: bytes) -> tuple[dict[str, str], bytes]:
    return {"content-type": FORM}, form(*map(part, files))


def raw(data: bytes, kind: str = "image/png") -> tuple[dict[str, str], bytes]:
    return {"content-type": kind}, data


BAD: dict[str, tuple[int, tuple[dict[str, str], bytes]]] = {
    "an empty body": (422, raw(b"")),
    "an empty form": (400, ({"content-type": FORM}, b"")),
    "no image without a type": (415, ({}, b"hello, world")),
    "no image as octet-stream": (415, raw(b"hello, world", "application/octet-stream")),
    "no boundary": (400, ({"content-type": "multipart/form-data"}, form(part(PNG)))),
    "the wrong boundary": (400, ({"content-type": FORM + "Y"}, form(part(PNG)))),
    "an unterminated part": (400, ({"content-type": FORM}, part(PNG))),
    "no field named image": (422, ({"content-type": FORM}, form(part(PNG, 'form-data; name="file"; filename="a"')))),
    "image as a plain field": (422, ({"content-type": FORM}, form(part(PNG, 'form-data; name="image"')))),
    "an empty file name": (422, ({"content-type": FORM}, form(part(PNG, 'form-data; name="image"; filename=""')))),
    "an empty file": (422, upload(b"")),
    "1500 parts": (413, upload(*[b"x"] * 1500)),
    "too many images": (413, upload(*[PNG] * 5)),
    "a large text field": (400, ({"content-type": FORM}, form(part(b"x" * 500_000, 'form-data; name="t"'), part(PNG)))),
    "a large preamble": (400, ({"content-type": FORM}, b"x" * 500_000 + form(part(PNG)))),
    "a body over the limit": (413, upload(b"x" * (MIB + 1))),
    "a raw body over the limit": (413, raw(b"x" * (MIB + 1))),
    "json without an image": (422, raw(b"{}", "application/json")),
    "json of another shape": (400, raw(b"[]", "application/json")),
    "json that is none": (400, raw(b"image", "application/json")),
    "a gif": (415, upload(encoded(noise(), "GIF"))),
    "a gif called png": (415, raw(encoded(noise(), "GIF"))),
    "a declared gif": (415, raw(PNG, "image/gif")),
    "a tiff": (415, upload(encoded(noise(), "TIFF"))),
    "an svg": (415, upload(b"<svg xmlns='x'/>")),
    "a pdf": (415, upload(b"%PDF-1.7 ...")),
    "a zip called png": (415, upload(b"PK\x03\x04 ...")),
    "a jpeg cut at 10 bytes": (422, upload(JPEG[:10])),
    "half a jpeg": (422, upload(JPEG[: len(JPEG) // 2])),
    "a jpeg without its end": (422, upload(JPEG[:-2])),
    "a png with a bad checksum": (422, upload(PNG[:-20] + bytes([PNG[-20] ^ 1]) + PNG[-19:])),
    "a png with bad pixel data": (
        422,
        upload(PNG[:33] + chunk(b"IDAT", b"not deflated") + chunk(b"IEND", b"")),
    ),
    "196 megapixels": (413, upload(png(14_000, 14_000, rows=b""))),
    "65535 x 1": (422, upload(png(65_535, 1))),
    "0 x 0": (422, upload(png(0, 0))),
    "1 x 1": (422, upload(png(1, 1))),
    "an animated png": (422, upload(encoded(noise(), save_all=True, append_images=[noise(seed=1)]))),
}


def problem(answer: httpx.Response) -> dict[str, object]:
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, object] = answer.json()
    assert set(document) - {"image"} == {"type", "title", "status", "detail", "request_id"}
    assert document["status"] == answer.status_code
    assert document["request_id"] == answer.headers["x-request-id"]
    assert str(document["type"]).startswith("urn:awnet:problem:")
    for leak in ("Traceback", ".py", "/work", "site-packages", "<_io", "0x"):
        assert leak not in answer.text
    return document


def still_serves(served: Running) -> None:
    assert served.http.post("/predict", files={"image": ("a.png", PNG)}).status_code == 200


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_gets_its_answer(served: Running, name: str) -> None:
    """As a problem document, and the next good request works."""
    status, (headers, body) = BAD[name]
    answer = served.http.post("/predict", content=body, headers=headers, timeout=60)
    assert answer.status_code == status, answer.text
    problem(answer)
    still_serves(served)


@pytest.mark.parametrize(
    "query",
    [
        "top_k=0",
        "top_k=11",
        "top_k=-1",
        "top_k=1.5",
        "top_k=abc",
        "top_k=",
        "top_k=%D9%A3",
        "top_k=1&top_k=2",
        "signals=maybe",
        "signals=",
        "timeout_ms=0",
        "timeout_ms=-5",
        "timeout_ms=soon",
        "timeout_ms=1e3",
        "priority=high",
        "priority=",
        "version=1&version=1",
        "unknown=1",
        "top_k=1&x",
        "top_k=" + "9" * 500,
        "x=" + "y" * 2000,
    ],
)
def test_an_unknown_query_is_refused(served: Running, query: str) -> None:
    """A misspelt parameter must not be silently without effect."""
    answer = served.http.post(f"/predict?{query}", files={"image": ("a.png", PNG)})
    assert answer.status_code == 422
    assert problem(answer)["type"] == "urn:awnet:problem:invalid-query"


def test_the_first_offending_image_is_named_where_none_is_left(served: Running) -> None:
    """Counted from 0, as results are."""
    answer = served.http.post("/predict", files=[("image", ("a", f)) for f in (b"GIF89a", JPEG[:-2], b"")])
    assert answer.status_code == 415
    assert problem(answer)["image"] == 0


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_a_wrong_method_is_told_the_right_one(served: Running, method: str) -> None:
    """405 with Allow."""
    answer = served.http.request(method, "/predict")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


def test_a_wrong_method_elsewhere_is_a_problem_too(served: Running) -> None:
    """Routes that FastAPI answers speak the same language."""
    answer = served.http.post("/metrics")
    assert answer.status_code == 405
    assert "GET" in answer.headers["allow"]
    problem(answer)


def test_an_unknown_path_is_a_problem(served: Running) -> None:
    """404, not FastAPI's own shape."""
    answer = served.http.get("/nothing")
    assert answer.status_code == 404
    problem(answer)


def test_an_encoded_body_is_unsupported(served: Running) -> None:
    """Unpacking it would be another bomb to defuse."""
    headers = {"content-type": "image/png", "content-encoding": "gzip"}
    answer = served.http.post("/predict", content=PNG, headers=headers)
    assert answer.status_code == 415
    problem(answer)


def test_a_client_that_cannot_read_json_is_told(served: Running) -> None:
    """406; the usual wildcards are fine."""
    for accept, status in [
        ("text/html", 406),
        ("image/png", 406),
        ("application/jsonp", 406),
        ("*/*", 200),
        ("text/html, application/json", 200),
        ("Application/JSON", 200),
        ("APPLICATION/*;q=0.5", 200),
        ("application/json;q=0", 406),
        ("application/json; Q=0.000, */*", 406),
        ("application/*;q=0, */*;q=1", 406),
        ("*/*;q=0", 406),
        ("*/*;q=0, application/json;q=0.001", 200),
        ("application/json;charset=utf-8;q=0.3", 200),
        (", ,application/json", 200),
    ]:
        answer = served.http.post("/predict", files={"image": ("a", PNG)}, headers={"accept": accept})
        assert answer.status_code == status


def test_a_chunked_body_over_the_limit_is_cut_off(served: Running) -> None:
    """Its length is not announced, so it is counted."""

    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * (MIB // 16)

    answer = served.http.post("/predict", content=endless(), headers={"content-type": "image/png"})
    assert answer.status_code == 413
    problem(answer)
    still_serves(served)


def test_a_chunked_body_within_the_limit_is_answered(served: Running) -> None:
    """Piece by piece is as good as at once."""
    pieces = (PNG[at : at + 100] for at in range(0, len(PNG), 100))
    answer = served.http.post("/predict", content=pieces, headers={"content-type": "image/png"})
    assert answer.status_code == 200


def exchange(served: Running, request: bytes, then: bytes = b"") -> bytes:
    """Bytes over a socket, until the server closes."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        connection.sendall(request)
        if then:
            connection.sendall(then)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return answer


HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"


def test_an_announced_oversize_is_refused_before_it_is_sent(served: Running) -> None:
    """`Expect: 100-continue` never gets its 100."""
    answer = exchange(
        served, HEAD + f"Content-Length: {MIB + 1}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"100 Continue" not in answer


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: abc\r\n",
    ],
)
def test_contradictory_lengths_are_refused(served: Running, headers: bytes) -> None:
    """The seed of request smuggling."""
    answer = exchange(served, HEAD + headers + b"Connection: close\r\n\r\nhello")
    assert answer.startswith(b"HTTP/1.1 400")


def test_a_client_that_leaves_in_the_middle_of_its_upload_does_no_harm(served: Running) -> None:
    """No 5xx is counted, and the next request is answered."""
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(HEAD + b"Content-Length: 5000\r\n\r\nhalf")
    still_serves(served)
    assert not re.search(r'code="500".* [1-9]', served.http.get("/metrics").text)


def test_requests_on_one_connection_do_not_disturb_each_other(served: Running) -> None:
    """A bad one between two good ones, pipelined on a kept connection."""
    good = HEAD + f"Content-Length: {len(PNG)}\r\n\r\n".encode() + PNG
    bad = HEAD + b"Content-Length: 3\r\n\r\nbad"
    last = HEAD + f"Content-Length: {len(PNG)}\r\nConnection: close\r\n\r\n".encode() + PNG
    answer = exchange(served, good + bad + last)
    statuses = re.findall(rb"HTTP/1.1 (\d+) ", answer)
    assert statuses == [b"200", b"415", b"200"]
    assert json.loads(answer[answer.rindex(b"\r\n\r\n") :])["results"]

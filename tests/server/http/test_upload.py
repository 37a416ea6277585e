"""What is taken out of a request body, and what is refused in it."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from typing import Any

import httpx
import pytest

from server.errors import MalformedUpload, MissingImage, TooManyImages, UnsupportedMedia
from server.http import upload
from server.http.upload import (
    INLINE_BYTES,
    JSON_TYPE,
    Upload,
    _any_disposition,
    _disposition,
    shown_name,
    uploads,
)

FORM = "multipart/form-data; boundary=X"


def taken(content_type: str, body: bytes, max_images: int) -> list[Upload]:
    return asyncio.run(uploads(content_type, body, max_images))


def encoded_images(content_type: str, body: bytes, max_images: int) -> list[bytes]:
    return [upload.data for upload in taken(content_type, body, max_images)]


def part(content: bytes = b"data", disposition: str = 'form-data; name="image"; filename="a.png"') -> bytes:
    return f"--X\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--X--\r\n"


def test_one_and_several_files_come_out_in_their_order() -> None:
    """Results are matched to uploads by position."""
    assert encoded_images(FORM, form(part(b"one")), 8) == [b"one"]
    assert encoded_images(FORM, form(part(b"one"), part(b"two"), part(b"three")), 8) == [b"one", b"two", b"three"]


def test_any_bytes_survive() -> None:
    """Line ends, dashes and almost-boundaries inside a file are its own."""
    data = b"\r\n--Y\r\n\r\n--\r\n--" + bytes(range(256)) + b"\r\n"
    assert encoded_images(FORM, form(part(data)), 8) == [data]


@pytest.mark.parametrize("count", [1, 3])
def test_what_a_usual_client_sends_is_understood(count: int) -> None:
    """httpx builds the body here; curl and browsers follow the same RFC."""
    files = [("image", ('na;me "quoted" ü.png', bytes([n]) * 100, "image/png")) for n in range(count)]
    request = httpx.Request("POST", "http://x", files=files, data={"note": "hello"})
    request.read()
    assert encoded_images(request.headers["content-type"], request.content, 8) == [
        bytes([n]) * 100 for n in range(count)
    ]


@pytest.mark.parametrize(
    "content_type",
    [
        'multipart/form-data; boundary="X"',
        "Multipart/Form-Data; charset=utf-8; BOUNDARY=X",
        "multipart/form-data;boundary=X; charset=utf-8",
    ],
)
def test_the_boundary_is_found_however_it_is_written(content_type: str) -> None:
    """Quotes, case and further parameters are allowed."""
    assert encoded_images(content_type, form(part()), 8) == [b"data"]


def test_the_short_way_reads_what_the_general_one_does() -> None:
    """Headers made of what stands in such headers, in any order: no part of a form has two readings."""
    pieces = [
        *(
            'Content-Disposition: form-data; name="image"; filename="a.png"',
            "Content-Disposition: form-data",
            ";",
            "; ",
        ),
        *("name=", "filename=", "filename*=utf-8''", '"', '"image"', '"a;b.png"', "a", "\\", '\\"', "%22", " ", "="),
        *("\r\nContent-Type: image/png", "\r\n", "\n", "\r", "\t", "ü", "\0", "content-disposition:", "\r\n X: y"),
    ]
    rng, plain = random.Random(0), 0
    for _ in range(30_000):
        text = "".join(rng.choices(pieces, k=rng.randrange(1, 7)))
        if rng.random() < 0.8:
            text = "Content-Disposition: form-data; name=" + text
        headers = text.encode()
        found: list[Any] = []
        for read in (_disposition, _any_disposition):
            try:
                found.append(read(headers))
            except MalformedUpload as error:
                found.append(error.detail)
        assert found[0] == found[1], headers
        plain += upload._PLAIN.fullmatch(headers) is not None
    assert plain > 300


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\0b.png", "x" * 3000, "a.exe"])
def test_the_file_name_does_not_matter(name: str) -> None:
    """Nothing is opened by it, so it cannot hurt."""
    assert encoded_images(FORM, form(part(disposition=f'form-data; name="image"; filename="{name}"')), 8) == [b"data"]


@pytest.mark.parametrize(
    "content_type",
    [
        "image/png",
        "IMAGE/JPEG",
        "image/webp; q=1",
        "image/jpg",
        "",
        "application/octet-stream",
        "Application/Octet-Stream",
    ],
)
def test_a_raw_body_is_the_image(content_type: str) -> None:
    """No form is needed for one image."""
    assert encoded_images(content_type, b"data", 8) == [b"data"]


@pytest.mark.parametrize(
    "content_type", ["image/gif", "application/jsonx", "text/plain", "multipart/mixed; boundary=X"]
)
def test_other_content_types_are_unsupported(content_type: str) -> None:
    """Told apart from an image that is broken."""
    with pytest.raises(UnsupportedMedia):
        encoded_images(content_type, form(part()), 8)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary at all",
        b"x" * 100_000 + b"\r\n" + form(part()),  # a preamble beyond what anyone sends
        form(part())[:-6],
        part(b"cut")[:-1],
        b"--X",
        b"--X\r\n",
        b"--X\r\nContent-Disposition: form-data; name=image\r\n--X--\r\n",
        b"--X\r\nContent-Type: image/png\r\n\r\ndata\r\n--X--\r\n",
        b"--X\r\n\r\ndata\r\n--X--\r\n",
        b"--X garbage\r\nContent-Disposition: form-data; name=image\r\n\r\ndata\r\n--X--\r\n",
        b"--X\r\n"
        + b"A: b\r\n" * 5000
        + b'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\nd\r\n--X--\r\n',
        form(*[part(b"x", 'form-data; name="other"') for _ in range(1500)]),
        form(part(b"x" * (2 << 20), 'form-data; name="text"'), part()),
        form(part(disposition='attachment; name="image"; filename="a"')),
        form(part(disposition='form-data; filename="a"')),
    ],
)
def test_a_form_that_is_not_well_built_is_malformed(body: bytes) -> None:
    """Nothing is guessed."""
    with pytest.raises(MalformedUpload):
        encoded_images(FORM, body, 8)


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=", f"multipart/form-data; boundary={'b' * 71}"],
)
def test_a_missing_or_overlong_boundary_is_malformed(content_type: str) -> None:
    """RFC 2046 allows 1 to 70 characters."""
    with pytest.raises(MalformedUpload):
        encoded_images(content_type, form(part()), 8)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("image/png", b""),
        (FORM, b"--X--\r\n"),
        (FORM, form(part(disposition='form-data; name="file"; filename="a.png"'))),
        (FORM, form(part(disposition='form-data; name="image"'))),
        (FORM, form(part(disposition='form-data; name="image"; filename=""'))),
        (FORM, form(part(b""))),
    ],
)
def test_a_request_without_an_image_says_so(content_type: str, body: bytes) -> None:
    """An empty body, another field's name, a plain field, an empty file name, an empty file."""
    with pytest.raises(MissingImage):
        encoded_images(content_type, body, 8)


def test_more_files_than_allowed_are_too_many() -> None:
    """The limit itself is allowed."""
    assert len(encoded_images(FORM, form(*[part()] * 8), 8)) == 8
    for count in (9, 10, 1500):
        with pytest.raises(TooManyImages):
            encoded_images(FORM, form(*[part()] * count), 8)


EMPTY_INPUT = (
    b'--X\r\nContent-Disposition: form-data; name="image"; filename=""\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n\r\n"
)


@pytest.mark.parametrize(
    "body",
    [
        b"This is a multi-part message in MIME format.\r\n" + form(part()),
        b"\r\n" + form(part()),
        b"\r\n\r\n" + form(part()),
        form(part()).replace(b"--X\r\n", b"--X \t \r\n"),
        form(part()).replace(b"--X--\r\n", b"--X--"),
        form(part()).replace(b"--X--\r\n", b"--X--  \r\nepilogue\r\n--X\r\n--X--"),
        form(part(disposition='form-data;\r\n name="image";\r\n\tfilename="a.png"')),
        form(part()).replace(b"Content-Disposition", b"X-Note: one\r\n  two\r\n\tthree\r\ncontent-disposition"),
        EMPTY_INPUT + form(part()),
        part() + EMPTY_INPUT + b"--X--\r\n",
        EMPTY_INPUT * 3 + form(part()),
    ],
    ids=[
        "preamble",
        "leading line end",
        "two of them",
        "padding",
        "no line end behind",
        "epilogue",
        "folded disposition",
        "folded header",
        "empty input before",
        "empty input behind",
        "three empty inputs",
    ],
)
def test_what_the_standards_allow_is_accepted(body: bytes) -> None:
    """RFC 2046, 5.1.1, and what browsers send for a file input in which nothing was chosen."""
    assert encoded_images(FORM, body, 8) == [b"data"]


def test_empty_inputs_alone_are_no_image() -> None:
    """And a thousand of them are no reason to read on."""
    for count in (1, 3, 1000):
        with pytest.raises(MissingImage):
            encoded_images(FORM, EMPTY_INPUT * count + b"--X--\r\n", 8)


def test_a_wrong_name_of_the_field_is_told_beside_the_right_one() -> None:
    """`curl -F file=@a.png` is answered with what to change; a name is shown in one line, and not at any length."""
    named = [
        part(disposition=f'form-data; name="{name}"; filename="a.png"') for name in ("file", "a\tb", "file", "x" * 99)
    ]
    for parts, said in (
        (named[:1], "there is no file in the field 'image': the form has 'file'"),
        (named, f"there is no file in the field 'image': the form has 'file', 'a_b', '{'x' * 40}'"),
        ([], "there is no file in the field 'image'"),
    ):
        with pytest.raises(MissingImage) as raised:
            taken(FORM, form(*parts), 8)
        assert raised.value.detail == said


def test_other_fields_beside_the_image_are_ignored() -> None:
    """A form may carry a note or a token."""
    assert encoded_images(FORM, form(part(b"n", 'form-data; name="note"'), part(b"one")), 8) == [b"one"]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("ship.png", "ship.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\pictures\\ship.png", "ship.png"),
        ("folder/", None),
        ("  ", None),
        ("a\0b\x1b[31m\u202egnp.exe", "a_b_[31m_gnp.exe"),
        ("one\u2028two\u2029\ud800.png", "one_two__.png"),
        ("x" * 3000, "x" * 128),
        ("\u00fc.png", "\u00fc.png"),
    ],
)
def test_a_name_is_shown_in_one_line_of_visible_characters(given: str, shown: str | None) -> None:
    """No folder, no control character, nothing that turns the direction of writing, and no more than fits."""
    assert shown_name(given) == shown


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('form-data; name="image"; filename="ship.png"', "ship.png"),
        ("form-data; name=image; filename=ship.png", "ship.png"),
        ('form-data; name="image"; filename="a%22b.png"', 'a"b.png'),
        ('form-data; name="image"; filename="a\\"b.png"', 'a"b.png'),
        ("form-data; name=image; filename=x; filename*=UTF-8''%e2%82%ac.png", "\u20ac.png"),
        ('form-data; name="image"; filename="\xfc.png"', "\xfc.png"),
    ],
)
def test_names_are_read_as_clients_write_them(disposition: str, name: str) -> None:
    """Percent signs of browsers, backslashes of curl, and RFC 8187."""
    [upload] = taken(FORM, form(part(disposition=disposition)), 8)
    assert upload == Upload(b"data", name)


def test_a_name_that_is_no_utf_8_is_shown_all_the_same() -> None:
    """Old clients send what their system has."""
    [upload] = taken(FORM, form(part()).replace(b"a.png", b"\xfc.png"), 8)
    assert upload.name == "\ufffd.png"


def in_json(image: Any, **more: Any) -> bytes:
    return json.dumps({"image": image, **more}).encode()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (b64(b"one"), [Upload(b"one")]),
        ([b64(b"one"), b64(b"two")], [Upload(b"one"), Upload(b"two")]),
        ({"base64": b64(b"one")}, [Upload(b"one")]),
        ({"base64": b64(b"one"), "name": None}, [Upload(b"one")]),
        ([{"base64": b64(b"one"), "name": "x/a.png"}, b64(b"two")], [Upload(b"one", "a.png"), Upload(b"two")]),
        ([b64(b"one"), ""], [Upload(b"one"), Upload(b"")]),
        (b64(bytes(INLINE_BYTES)), [Upload(bytes(INLINE_BYTES))]),
    ],
)
def test_json_holds_images_as_base64(image: Any, expected: list[Upload]) -> None:
    """One, or a list of them, with their names or without; a large one is read on another thread."""
    assert taken("application/json; charset=utf-8", in_json(image), 8) == expected


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "an object"),
        (in_json("YQ==", top_k=1), "options stand in the query"),
        (in_json(3), "base64"),
        (in_json([["YQ=="]]), "base64"),
        (in_json({"base64": "YQ==", "url": "http://x"}), "base64"),
        (in_json({"base64": "YQ==", "name": 3}), "base64"),
        (in_json({"name": "a.png"}), "base64"),
        (in_json("no base64!"), "not base64"),
        (in_json("YQ"), "not base64"),
        (in_json("YQ==\n"), "not base64"),
        (in_json("\u00fc"), "not base64"),
        (in_json("data:image/png;base64,YQ=="), "data: address"),
    ],
)
def test_json_of_another_shape_is_malformed(body: bytes, sentence: str) -> None:
    """The sentence says what is wanted; a slip in a member's name does not go unnoticed."""
    with pytest.raises(MalformedUpload, match=sentence):
        taken(JSON_TYPE, body, 8)


@pytest.mark.parametrize("body", [b"{}", in_json(None), in_json([]), in_json("")])
def test_json_without_an_image_says_so(body: bytes) -> None:
    """As a form without a file does."""
    with pytest.raises(MissingImage):
        taken(JSON_TYPE, body, 8)


@pytest.mark.parametrize(
    "body",
    [in_json(["YQ=="] * 9), in_json(["YQ=="] * 10_000), b"[" * 10_000, b'{"a":' * 10_000, b"[" + b'"",' * 10_000],
    ids=["nine", "ten thousand", "nested lists", "nested objects", "empty texts"],
)
def test_more_than_the_images_can_need_is_refused_before_it_is_read(body: bytes) -> None:
    """A parser would build an object of every two bytes."""
    with pytest.raises(TooManyImages):
        taken(JSON_TYPE, body, 8)

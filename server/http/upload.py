"""A request body to the encoded images in it: `multipart/form-data`, one raw image, or JSON with base64.

The whole body is in memory already (its size is limited), so a part of a form is found by searching for the boundary;
there is no streaming parser to pay for or to confuse. File names tell a file from a plain field and are repeated in
the answer; nothing else is done with them.
"""

from __future__ import annotations

import asyncio
import binascii
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

import orjson

from ..errors import MalformedUpload, MissingImage, TooManyImages, UnsupportedMedia

# Without a type, or with one that says nothing, the decoder recognises the bytes, as it does in any case.
RAW_TYPES = ("image/png", "image/jpeg", "image/jpg", "image/webp", "application/octet-stream", "")
JSON_TYPE = "application/json"
FIELD = "image"
# Unicode's categories of controls, directions of writing, private and unassigned characters, and ends of lines.
UNSHOWN = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
MAX_NAME = 128  # characters of a file name
INLINE_BYTES = 64 << 10  # a form or JSON of more is read on another thread than the event loop's
MAX_OTHER_FIELDS = 8
MAX_FIELD_SHOWN = 40  # characters of their names
EMPTY_FILES = 8  # inputs in which nothing was chosen
OTHER_FIELD_BYTES = 64 << 10
PART_HEADER_BYTES = 4 << 10
PREAMBLE_BYTES = 4 << 10

_BOUNDARY = re.compile(r"""boundary=(?:"([^"\r\n]{1,70})"|([^\s";,]{1,70}))\s*(?:;|$)""", re.IGNORECASE)
_DISPOSITION = re.compile(rb"(?:^|\r\n)content-disposition:[ \t]*form-data[ \t]*(;[^\r\n]*)?(?:\r\n|$)", re.IGNORECASE)
_FOLD = re.compile(rb"\r\n[ \t]+")
# What nearly every client sends. Nothing in it has two readings, and the general way below has the same.
_PLAIN = re.compile(
    rb'Content-Disposition: form-data; name="([^"\\%\r\n]*)"(?:; filename="([^"\\%\r\n]*)")?'
    rb"(?:\r\nContent-Type: [^\r\n]*)?"
)
_PARAMETER = re.compile(rb';[ \t]*([A-Za-z*]+)=("(?:[^"\\]|\\.)*"|[^;\s"]*)')


class Upload(NamedTuple):
    """One file as it came in, and its name where it has one, fit to be shown."""

    data: bytes
    name: str | None = None


async def uploads(content_type: str, body: bytes, max_images: int) -> list[Upload]:
    """The encoded images of a request, one or more, at most `max_images`; a file may be empty.

    Raises:
        UnsupportedMedia: neither multipart/form-data nor PNG, JPEG, WebP, nor JSON.
        MalformedUpload: no boundary, cut, or not built as RFC 7578 says; JSON of another shape.
        MissingImage: no file in the field `image`, or an empty one alone.
        TooManyImages: more than `max_images`.
    """
    media, _, rest = content_type.partition(";")
    media = media.strip().lower()
    if media == "multipart/form-data":
        boundary = _boundary(rest)
        if len(body) > INLINE_BYTES:
            found = await asyncio.to_thread(_files, boundary, body, max_images)
        else:
            found = _files(boundary, body, max_images)
    elif media == JSON_TYPE:
        if len(body) > INLINE_BYTES:
            found = await asyncio.to_thread(_of_json, body, max_images)
        else:
            found = _of_json(body, max_images)
    elif media in RAW_TYPES:
        if not body:
            raise MissingImage("the body is empty")
        found = [Upload(body)]
    else:
        raise UnsupportedMedia(
            "the body must be multipart/form-data with a file field 'image', a raw image/png, image/jpeg, image/webp, "
            "or application/json with base64"
        )
    if len(found) == 1 and not found[0].data:
        raise MissingImage("the file is empty", image=0)
    return found


def shown_name(name: str) -> str | None:
    """A file name of a client's, fit to be shown: its last part, in one line of visible characters, not too long."""
    last = name.replace("\\", "/").rpartition("/")[2]
    visible = last[: 4 * MAX_NAME]
    if not visible.isprintable():
        visible = "".join("_" if unicodedata.category(c) in UNSHOWN else c for c in visible)
    return visible.strip()[:MAX_NAME] or None


def _of_json(body: bytes, max_images: int) -> list[Upload]:
    """`{"image": IMAGE}` or a list of them; IMAGE is base64, or `{"name": ..., "base64": ...}`."""
    # The parser is not given more than so many images can need.
    if sum(map(body.count, (b"{", b"[", b",", b":"))) > 8 * max_images + 64 or body.count(b'"') > 16 * max_images + 64:
        raise TooManyImages(f"the JSON holds more than {max_images} images can need")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise MalformedUpload("the body is not JSON") from None
    if not isinstance(document, dict) or document.keys() - {FIELD}:
        raise MalformedUpload("the JSON must be an object with the one member 'image'; options stand in the query")
    images = document.get(FIELD)
    images = images if isinstance(images, list) else [] if images is None else [images]
    if not images:
        raise MissingImage("there is no image in the member 'image'")
    if len(images) > max_images:
        raise TooManyImages(f"more than {max_images} images in one request")
    return [_image_of_json(image, place) for place, image in enumerate(images)]


def _image_of_json(image: Any, place: int) -> Upload:
    name = None
    if isinstance(image, dict):
        given = image.get("name") or ""
        if image.keys() - {"name", "base64"} or not isinstance(given, str):
            raise MalformedUpload("an image is base64, or an object with 'base64' and perhaps 'name'", image=place)
        name, image = shown_name(given), image.get("base64")
    if not isinstance(image, str):
        raise MalformedUpload("an image is base64, or an object with 'base64' and perhaps 'name'", image=place)
    try:
        return Upload(binascii.a2b_base64(image.encode("ascii"), strict_mode=True), name)
    except (binascii.Error, UnicodeEncodeError):
        kind = (
            "a data: address is not taken, only the base64 in it" if image.startswith("data:") else "it is not base64"
        )
        raise MalformedUpload(f"an image cannot be read: {kind}", image=place) from None


def _boundary(parameters: str) -> bytes:
    found = _BOUNDARY.search(parameters)
    if not found:
        raise MalformedUpload("multipart/form-data without a boundary")
    return (found[1] or found[2]).encode("latin-1")


def _files(boundary: bytes, body: bytes, max_images: int) -> list[Upload]:
    delimiter = b"\r\n--" + boundary
    start = 0 if body.startswith(delimiter[2:]) else body.find(delimiter, 0, PREAMBLE_BYTES) + 2
    if start == 1:
        raise MalformedUpload("the body does not start with its boundary" if body else "the body is empty")
    # More than are allowed are not cut up before they are refused: one part, the end, and what stands behind it.
    pieces = body[start + len(delimiter) - 2 :].split(delimiter, max_images + MAX_OTHER_FIELDS + EMPTY_FILES + 2)
    files: list[Upload] = []
    others: list[str] = []
    other_bytes, empty = 0, 0
    for piece in pieces:
        if piece.startswith(b"--"):
            break
        line = piece.find(b"\r\n", 0, PART_HEADER_BYTES)
        head = piece.find(b"\r\n\r\n", line, PART_HEADER_BYTES)
        if line < 0 or piece[:line].strip(b" \t") or head < 0:
            raise MalformedUpload("a part of the body has no headers, or too many")
        name, filename = _disposition(piece[line + 2 : head] if head > line else b"")
        if name == FIELD:
            if filename == "" and head + 4 == len(piece) and empty < EMPTY_FILES:
                empty += 1  # as a browser sends an input in which nothing was chosen
                continue
            if not filename:
                raise MissingImage("the field 'image' holds no file: send it with a file name")
            files.append(Upload(piece[head + 4 :], shown_name(filename)))
            if len(files) > max_images:
                raise TooManyImages(f"more than {max_images} images in one request")
        else:
            others.append(name)
            other_bytes += len(piece)
            if len(others) > MAX_OTHER_FIELDS or other_bytes > OTHER_FIELD_BYTES:
                raise MalformedUpload("too many or too large fields other than 'image'")
    else:
        raise MalformedUpload("the body is cut: its closing boundary is missing")
    if not files:
        raise MissingImage(f"there is no file in the field 'image'{_instead(others)}")
    return files


def _instead(others: Sequence[str]) -> str:
    """The fields that there are in place of the right one, in words fit to be shown."""
    names = dict.fromkeys(repr((shown_name(name) or "")[:MAX_FIELD_SHOWN]) for name in others)
    return f": the form has {', '.join(names)}" if names else ""


def _disposition(headers: bytes) -> tuple[str, str | None]:
    """(field name, file name if there is one) of one part."""
    plain = _PLAIN.fullmatch(headers)
    if plain is None:
        return _any_disposition(headers)
    name, filename = plain.groups()
    return name.decode("utf-8", "replace"), None if filename is None else filename.decode("utf-8", "replace")


def _any_disposition(headers: bytes) -> tuple[str, str | None]:
    """`_disposition` of headers as RFC 7578 and 8187 have them, and of some that they do not have."""
    if b"\n " in headers or b"\n\t" in headers:
        headers = _FOLD.sub(b" ", headers)
    found = _DISPOSITION.search(headers)
    if not found:
        raise MalformedUpload("a part has no 'Content-Disposition: form-data'")
    given = {key.lower(): value.strip(b'"') for key, value in _PARAMETER.findall(found[1] or b"")}
    if b"name" not in given:
        raise MalformedUpload("a part has no name")
    field, extended, plain = given[b"name"].decode("utf-8", "replace"), given.get(b"filename*"), given.get(b"filename")
    if extended:  # of RFC 8187, which forms should not have and some do: CHARSET'LANGUAGE'PERCENT-ENCODED
        return field, unquote(extended.rpartition(b"'")[2].decode("utf-8", "replace"))
    return field, None if plain is None else plain.decode("utf-8", "replace").replace("%22", '"').replace('\\"', '"')

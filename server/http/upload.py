"""A request body to the encoded images in it: `multipart/form-data`, or one raw image.

The whole body is in memory already (its size is limited), so a part is found by searching for the boundary; there is
no streaming parser to pay for or to confuse. File names are read to tell a file from a plain field, and never used.
"""

from __future__ import annotations

import re

from ..errors import MalformedUpload, MissingImage, TooManyImages, UnsupportedMedia

# Without a type, or with one that says nothing, the decoder recognises the bytes, as it does in any case.
RAW_TYPES = ("image/png", "image/jpeg", "image/jpg", "image/webp", "application/octet-stream", "")
FIELD = "image"
MAX_OTHER_FIELDS = 8
EMPTY_FILES = 8  # inputs in which nothing was chosen
OTHER_FIELD_BYTES = 64 << 10
PART_HEADER_BYTES = 4 << 10
PREAMBLE_BYTES = 4 << 10

_BOUNDARY = re.compile(r"""boundary=(?:"([^"\r\n]{1,70})"|([^\s";,]{1,70}))\s*(?:;|$)""", re.IGNORECASE)
_DISPOSITION = re.compile(rb"(?:^|\r\n)content-disposition:[ \t]*form-data[ \t]*(;[^\r\n]*)?(?:\r\n|$)", re.IGNORECASE)
_FOLD = re.compile(rb"\r\n[ \t]+")
_PARAMETER = re.compile(rb';[ \t]*([A-Za-z*]+)=("(?:[^"\\]|\\.)*"|[^;\s"]*)')


def encoded_images(content_type: str, body: bytes, max_images: int) -> list[bytes]:
    """The encoded images of a request, one or more, at most `max_images`.

    Raises:
        UnsupportedMedia: neither multipart/form-data nor PNG, JPEG, WebP.
        MalformedUpload: no boundary, cut, or not built as RFC 7578 says.
        MissingImage: no file in the field `image`.
        TooManyImages: more than `max_images`.
    """
    media, _, rest = content_type.partition(";")
    media = media.strip().lower()
    if media == "multipart/form-data":
        return _files(_boundary(rest), body, max_images)
    if media not in RAW_TYPES:
        raise UnsupportedMedia(
            "the body must be multipart/form-data with a file field 'image', or a raw image/png, image/jpeg, image/webp"
        )
    if not body:
        raise MissingImage("the body is empty")
    return [body]


def _boundary(parameters: str) -> bytes:
    found = _BOUNDARY.search(parameters)
    if not found:
        raise MalformedUpload("multipart/form-data without a boundary")
    return (found[1] or found[2]).encode("latin-1")


def _files(boundary: bytes, body: bytes, max_images: int) -> list[bytes]:
    delimiter = b"\r\n--" + boundary
    start = 0 if body.startswith(delimiter[2:]) else body.find(delimiter, 0, PREAMBLE_BYTES) + 2
    if start == 1:
        raise MalformedUpload("the body does not start with its boundary" if body else "the body is empty")
    # More than are allowed are not cut up before they are refused: one part, the end, and what stands behind it.
    pieces = body[start + len(delimiter) - 2 :].split(delimiter, max_images + MAX_OTHER_FIELDS + EMPTY_FILES + 2)
    files: list[bytes] = []
    others, other_bytes, empty = 0, 0, 0
    for piece in pieces:
        if piece.startswith(b"--"):
            break
        line = piece.find(b"\r\n", 0, PART_HEADER_BYTES)
        head = piece.find(b"\r\n\r\n", line, PART_HEADER_BYTES)
        if line < 0 or piece[:line].strip(b" \t") or head < 0:
            raise MalformedUpload("a part of the body has no headers, or too many")
        name, filename = _disposition(_FOLD.sub(b" ", piece[line + 2 : head]) if head > line else b"")
        if name == FIELD:
            if filename == b"" and head + 4 == len(piece) and empty < EMPTY_FILES:
                empty += 1  # as a browser sends an input in which nothing was chosen
                continue
            if not filename:
                raise MissingImage("the field 'image' holds no file: send it with a file name")
            files.append(piece[head + 4 :])
            if len(files) > max_images:
                raise TooManyImages(f"more than {max_images} images in one request")
        else:
            others, other_bytes = others + 1, other_bytes + len(piece)
            if others > MAX_OTHER_FIELDS or other_bytes > OTHER_FIELD_BYTES:
                raise MalformedUpload("too many or too large fields other than 'image'")
    else:
        raise MalformedUpload("the body is cut: its closing boundary is missing")
    if not files:
        raise MissingImage("there is no file in the field 'image'")
    for index, file in enumerate(files):
        if not file:
            raise MissingImage("the file is empty", image=index)
    return files


def _disposition(headers: bytes) -> tuple[str, bytes | None]:
    """(field name, file name if there is one) of one part."""
    found = _DISPOSITION.search(headers)
    if not found:
        raise MalformedUpload("a part has no 'Content-Disposition: form-data'")
    given = {key.lower(): value.strip(b'"') for key, value in _PARAMETER.findall(found[1] or b"")}
    if b"name" not in given:
        raise MalformedUpload("a part has no name")
    return given[b"name"].decode("utf-8", "replace"), given.get(b"filename*") or given.get(b"filename")

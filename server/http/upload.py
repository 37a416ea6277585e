"""A request body to the encoded images in it: `multipart/form-data`, or one raw `image/*`.

The whole body is in memory already (its size is limited), so a part is found by searching for the boundary; there is
no streaming parser to pay for or to confuse. File names are read to tell a file from a plain field, and never used.
"""

from __future__ import annotations

import re

from ..errors import MalformedUpload, MissingImage, TooManyImages, UnsupportedMedia

RAW_TYPES = ("image/png", "image/jpeg", "image/jpg", "image/webp")
FIELD = "image"
MAX_OTHER_FIELDS = 8
OTHER_FIELD_BYTES = 64 << 10
PART_HEADER_BYTES = 4 << 10

_BOUNDARY = re.compile(r"""boundary=(?:"([^"\r\n]{1,70})"|([^\s";,]{1,70}))\s*(?:;|$)""", re.IGNORECASE)
_DISPOSITION = re.compile(rb"(?:^|\r\n)content-disposition:[ \t]*form-data[ \t]*(;[^\r\n]*)?(?:\r\n|$)", re.IGNORECASE)
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
    if not body.startswith(delimiter[2:]):
        raise MalformedUpload("the body does not start with its boundary" if body else "the body is empty")
    # One more than is allowed, so that a thousand parts are not cut up before they are refused.
    pieces = body[len(delimiter) - 2 :].split(delimiter, max_images + MAX_OTHER_FIELDS + 1)
    files: list[bytes] = []
    others, other_bytes = 0, 0
    for piece in pieces[:-1] if pieces[-1].startswith(b"--") else pieces:
        head = piece.find(b"\r\n\r\n", 0, PART_HEADER_BYTES)
        if not piece.startswith(b"\r\n") or head < 0:
            raise MalformedUpload("a part of the body has no headers, or too many")
        name, filename = _disposition(piece[2:head] if head > 2 else b"")
        if name == FIELD:
            if not filename:
                raise MissingImage("the field 'image' holds no file: send it with a file name")
            files.append(piece[head + 4 :])
            if len(files) > max_images:
                raise TooManyImages(f"more than {max_images} images in one request")
        else:
            others, other_bytes = others + 1, other_bytes + len(piece)
            if others > MAX_OTHER_FIELDS or other_bytes > OTHER_FIELD_BYTES:
                raise MalformedUpload("too many or too large fields other than 'image'")
    if not pieces[-1].startswith(b"--"):
        raise MalformedUpload("the body is cut: its closing boundary is missing")
    if not files:
        raise MissingImage("there is no file in the field 'image'")
    for index, file in enumerate(files):
        if not file:
            raise MissingImage("the file is empty", image=index)
    return files


def _disposition(headers: bytes) -> tuple[str, bool]:
    """(field name, whether a file name is given) of one part."""
    found = _DISPOSITION.search(headers)
    if not found:
        raise MalformedUpload("a part has no 'Content-Disposition: form-data'")
    given = {key.lower(): value.strip(b'"') for key, value in _PARAMETER.findall(found[1] or b"")}
    if b"name" not in given:
        raise MalformedUpload("a part has no name")
    return given[b"name"].decode("utf-8", "replace"), bool(given.get(b"filename") or given.get(b"filename*"))

"""Prints an image's name by digest, as its registry has it now: what BASE is set to for a build that repeats.

    python -m deploy.image.digest python:3.11-slim-bookworm

The digest is the SHA-256 of the manifest's own bytes, computed here; what the registry says of itself is held to it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

HUB = "registry-1.docker.io"
# A list for several platforms first: its digest fits each of them.
KINDS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
MAX_BYTES = 4 << 20  # of a manifest, as registries have it


class DigestError(Exception):
    """There is none to be had, and why in one line."""


def pinned(image: str, scheme: str = "https", seconds: float = 30.0) -> str:
    """`image` by digest.

    Args:
        image: NAME[:TAG], with a registry before it where that is not Docker Hub.
        scheme: of the registry.

    Raises:
        DigestError: no such image, no answer, or bytes that are not what the registry says.
    """
    name, colon, tag = image.rpartition(":")
    if not colon or "/" in tag:
        name, tag = image, "latest"
    registry, slash, path = name.partition("/")
    if not slash or not re.search(r"[.:]|^localhost$", registry):
        registry, path = HUB, name if slash else f"library/{name}"
    url = f"{scheme}://{registry}/v2/{path}/manifests/{urllib.parse.quote(tag)}"
    try:
        manifest, declared = _manifest(url, {}, seconds)
    except (OSError, ValueError, KeyError) as error:
        raise DigestError(f"{url}: {error}") from None
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    if declared not in (None, digest):
        raise DigestError(f"{url}: the registry says {declared}, its bytes are {digest}")
    return f"{name}@{digest}"


def _manifest(url: str, headers: dict[str, str], seconds: float) -> tuple[bytes, str | None]:
    """Its bytes, and the digest that the registry names; asks for a token where that is wanted."""
    request = urllib.request.Request(url, headers={"Accept": ", ".join(KINDS), **headers})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return answer.read(MAX_BYTES), answer.headers.get("Docker-Content-Digest")
    except urllib.error.HTTPError as refused:
        challenge = dict(re.findall(r'(\w+)="([^"]*)"', refused.headers.get("WWW-Authenticate", "")))
        if refused.code != 401 or headers or "realm" not in challenge:
            raise
        asked = urllib.parse.urlencode({name: challenge[name] for name in ("service", "scope") if name in challenge})
        with urllib.request.urlopen(f"{challenge['realm']}?{asked}", timeout=seconds) as answer:
            given: dict[str, Any] = json.load(answer)
        return _manifest(url, {"Authorization": f"Bearer {given.get('token') or given['access_token']}"}, seconds)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.image.digest", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("image", help="NAME[:TAG]")
    parser.add_argument("--http", action="store_true", help="the registry speaks no TLS")
    given = parser.parse_args(arguments)
    try:
        print(pinned(given.image, "http" if given.http else "https"))
    except DigestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

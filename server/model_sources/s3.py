"""Amazon S3, and what speaks its protocol: one GET, signed with AWS Signature Version 4.

Keys, region and endpoint come from the variables that AWS's own programs read: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION or AWS_DEFAULT_REGION, AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL.
Without keys nothing is signed, as for a public bucket.

Source: docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, whose example tests/ holds.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

from ..errors import SourceError

EMPTY = hashlib.sha256(b"").hexdigest()
DEFAULT_REGION = "us-east-1"


def url_of(bucket: str, key: str, version: str = "", environment: Mapping[str, str] = os.environ) -> str:
    """Where an object is. Raises SourceError where the endpoint is none."""
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or ""
    path = "/" + quote(key, safe="/-_.~")
    if not endpoint:
        host = f"s3.{_region(environment)}.amazonaws.com"
        # A certificate of *.s3... speaks for no name with a dot more.
        base = f"https://{host}/{bucket}" if "." in bucket else f"https://{bucket}.{host}"
    else:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise SourceError("AWS_ENDPOINT_URL_S3 must be https://HOST or http://HOST")
        base = f"{endpoint.rstrip('/')}/{bucket}"
    return base + path + (f"?versionId={quote(version, safe='-_.~')}" if version else "")


def signed(
    url: str,
    environment: Mapping[str, str] = os.environ,
    now: float | None = None,
    more: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The headers that sign a GET of `url` at this moment; none where there are no keys.

    Args:
        now: seconds since 1970.
        more: further headers to sign, names in lower case.
    """
    key, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    if not key or not secret:
        return {}
    parts, region = urlsplit(url), _region(environment)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    headers = {"host": parts.netloc, "x-amz-content-sha256": EMPTY, "x-amz-date": stamp, **(more or {})}
    if token := environment.get("AWS_SESSION_TOKEN"):
        headers["x-amz-security-token"] = token
    names = ";".join(sorted(headers))
    # The query is one `versionId=...` at most, written as it has to be.
    canonical = [
        "GET",
        parts.path,
        parts.query,
        *(f"{name}:{headers[name]}" for name in sorted(headers)),
        "",
        names,
        EMPTY,
    ]
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    hashed = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    place = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        place = hmac.digest(place, part.encode(), "sha256")
    signature = hmac.digest(place, f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashed}".encode(), "sha256").hex()
    headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={key}/{scope},SignedHeaders={names},Signature={signature}"
    return headers


def _region(environment: Mapping[str, str]) -> str:
    return environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or DEFAULT_REGION

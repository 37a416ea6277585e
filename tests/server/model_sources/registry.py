"""Debian's docker-registry, the reference implementation of the distribution specification, and artifacts in it."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import yaml
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509 import CertificateBuilder, Name, NameAttribute, random_serial_number
from cryptography.x509.oid import NameOID

from benchmarks.harness.processes import Process, free_port
from tests.server.model_sources.static import Handler, Static, body
from tests.server.tiny import CALL

PASSWORD = base64.b64encode(b"user:secret").decode()
HASHED = "user:$2b$04$vuodhUXfXY464Zcl4q7VBuXF9QDuSr58pcdQxetCvdT6PvxZLPiL2"  # bcrypt of "secret"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MODELPACK = "application/vnd.cncf.model.weight.v1"


class Registry(Process):
    """One on a port of its own.

    Args:
        auth: its `auth` section.
    """

    def __init__(self, folder: Path, auth: Mapping[str, Any] | None = None) -> None:
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
            "http": {"addr": self.host},
            **({"auth": dict(auth)} if auth else {}),
        }
        (folder / "config.yml").write_text(yaml.safe_dump(config))
        super().__init__(["docker-registry", "serve", folder / "config.yml"], folder / "registry.log")
        self.http = httpx.Client(base_url=f"http://{self.host}", headers={}, **CALL)
        if auth is None:
            self.answering(f"http://{self.host}/v2/")

    def blob(self, data: bytes, name: str = "models/awnet") -> str:
        """Push bytes; returns their digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        begun = self.http.post(f"/v2/{name}/blobs/uploads/")
        assert begun.status_code == 202, begun.text
        where = begun.headers["location"]
        done = self.http.put(f"{where}{'&' if '?' in where else '?'}digest={digest}", content=data)
        assert done.status_code == 201, done.text
        return digest

    def push(self, layers: list[dict[str, Any]], tag: str, name: str = "models/awnet", **more: Any) -> str:
        """Push a manifest; returns its digest."""
        config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": self.blob(b"{}", name), "size": 2}
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers, **more}
        data = json.dumps(document).encode()
        done = self.http.put(f"/v2/{name}/manifests/{tag}", content=data, headers={"content-type": MANIFEST})
        assert done.status_code == 201, done.text
        return hashlib.sha256(data).hexdigest()

    def layer(
        self,
        data: bytes,
        path: str,
        media_type: str = f"{MODELPACK}.raw",
        key: str = "org.cncf.model.filepath",
        name: str = "models/awnet",
    ) -> dict[str, Any]:
        """Push a file as a layer; returns its descriptor."""
        return {
            "mediaType": media_type,
            "digest": self.blob(data, name),
            "size": len(data),
            "annotations": {key: path},
        }

    def __exit__(self, *given: Any) -> None:
        self.http.close()
        super().__exit__(*given)


class Tokens:
    """Gives tokens that a registry trusts, to whoever has the password; keeps the scopes that were asked for.

    Args:
        web: where.
        folder: receives the certificate, for the registry.
    """

    def __init__(self, web: Static, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.scopes: list[str] = []
        self._key = rsa.generate_private_key(65537, 2048)
        subject = Name([NameAttribute(NameOID.COMMON_NAME, "tokens")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self._key.public_key())
            .serial_number(random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .sign(self._key, hashes.SHA256())
        )
        path = folder / "tokens.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.auth = {
            "token": {
                "realm": f"{web.url}/token",
                "service": "registry",
                "issuer": "tokens",
                "rootcertbundle": str(path),
            }
        }
        web.routes["/token"] = self._answer

    def _answer(self, handler: Handler) -> None:
        if handler.headers.get("authorization") != f"Basic {PASSWORD}":
            body(b"{}", 401)(handler)
            return
        asked = parse_qs(urlsplit(handler.path).query)
        self.scopes += asked["scope"]
        body(json.dumps({"token": self.token(asked["scope"][0])}).encode())(handler)

    def token(self, scope: str) -> str:
        """A JSON Web Token for a scope `repository:NAME:ACTIONS`."""
        kind, name, actions = scope.split(":")
        now = int(time.time())
        claims = {
            "iss": "tokens",
            "sub": "user",
            "aud": "registry",
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": "1",
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }
        public = self._key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        short = base64.b32encode(hashlib.sha256(public).digest()[:30]).decode()
        kid = ":".join(short[at : at + 4] for at in range(0, len(short), 4))
        signed = b".".join(_encoded(part) for part in ({"typ": "JWT", "alg": "RS256", "kid": kid}, claims))
        signature = self._key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def _encoded(part: Mapping[str, Any]) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")


def docker_config(folder: Path, host: str, password: str) -> None:
    """docker's config.json with a password for a host, in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": password}}}))

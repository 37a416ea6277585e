"""`python -m export.sign`: sign the manifests of a model repository, so that a server takes nothing else.

The signature (Ed25519, RFC 8032) is over the bytes of `manifest.json`, which names the model, its version and the
SHA-256 of its file, and lies beside it as `manifest.json.sig` in base64. The server is given the public key
(AWNET_SIGNING_KEY) and needs no more than that; the private key stays with whoever publishes.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from domain.files import replace

from .repository.layout import MANIFEST_FILE, MODEL_FILE, NAME, manifest, versions
from .repository.repository import RepositoryError

SIGNATURE_FILE = "manifest.json.sig"

EXAMPLES = """examples:
  python -m export.sign --new-key private.pem                    make a key pair: private.pem and private.pub.pem
  python -m export.sign --key private.pem --repository /models   sign every version in it
  python -m export.sign --key private.pem --repository /models --name awnet --version 3

  AWNET_SIGNING_KEY=private.pub.pem python -m server             refuse what is not signed
"""


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, 2 where something cannot be signed or an option is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m export.sign",
        description="Sign the versions of a model repository.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--new-key", type=Path, metavar="FILE", help="write a new private key there, the public beside")
    parser.add_argument("--key", type=Path, metavar="FILE", help="PEM file of the private key to sign with")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="[model_repository]")
    parser.add_argument("--name", help="only this model")
    parser.add_argument("--version", type=int, help="only this version of it")
    options = parser.parse_args(arguments)
    if (options.key is None) == (options.new_key is None):
        parser.error("give either --key or --new-key")
    if options.version is not None and options.name is None:
        parser.error("--version needs --name")
    try:
        if options.new_key is not None:
            print(f"wrote {options.new_key} and {new_key(options.new_key)}; give the second to the servers")
            return 0
        signed = sign(options.repository, read_key(options.key), options.name, options.version)
    except RepositoryError as error:
        print(f"export.sign: {error}", file=sys.stderr)
        return 2
    for path in signed:
        print(f"signed {path}")
    return 0


def new_key(path: Path) -> Path:
    """Write a new private key to `path`, for its owner alone, and return the file of the public key beside it.

    Raises:
        RepositoryError: either file exists, or cannot be written.
    """
    public = path.with_suffix(f".pub{path.suffix}")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public_bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if public.exists():
        raise RepositoryError(f"{public} exists, and a key is never overwritten")
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secret)
        public.write_bytes(public_bytes)
    except FileExistsError:
        raise RepositoryError(f"{path} exists, and a key is never overwritten") from None
    except OSError as error:
        raise RepositoryError(f"{path} cannot be written: {error.strerror}") from None
    return public


def read_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file. Raises RepositoryError."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise RepositoryError(f"{path} cannot be read as a private key: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise RepositoryError(f"{path} is no Ed25519 key")
    return key


def sign(repository: Path, key: Ed25519PrivateKey, name: str | None = None, version: int | None = None) -> list[Path]:
    """Sign every version, or those of one model, or one; returns the signatures' files.

    A manifest is signed only if it is that of the model beside it; one that is missing (an older export) is written.

    Raises:
        RepositoryError: there is nothing to sign, or a manifest is not that of its model. What was signed before it
            stays signed.
    """
    if not repository.is_dir():
        raise RepositoryError(f"there is no folder {repository}")
    homes = [repository / name] if name else sorted(p for p in repository.iterdir() if NAME.fullmatch(p.name))
    found = [
        home / str(number)
        for home in homes
        if home.is_dir()
        for number in versions(home)
        if version is None or number == version
    ]
    if not found:
        raise RepositoryError(f"there is no such version in {repository}")
    return [_sign(folder, key) for folder in found]


def _sign(folder: Path, key: Ed25519PrivateKey) -> Path:
    right = manifest((folder / MODEL_FILE).read_bytes(), folder.parent.name, int(folder.name))
    path = folder / MANIFEST_FILE
    if not path.exists():
        replace(path, right)
    document = path.read_bytes()
    try:
        fits = json.loads(document) == json.loads(right)
    except ValueError:
        fits = False
    if not fits:
        raise RepositoryError(f"{path} is not the manifest of the model beside it")
    signature = folder / SIGNATURE_FILE
    replace(signature, base64.b64encode(key.sign(document)) + b"\n")
    return signature


if __name__ == "__main__":
    sys.exit(main())

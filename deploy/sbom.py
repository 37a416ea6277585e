"""Writes the software bill of materials: each package of a lock and each model file, with their hashes (CycloneDX 1.6).

    python -m deploy.sbom --lock requirements/server-cpu.txt --out build/sbom.json

A lock has a hash for each file that a package was published as (sdist, a wheel for each platform), and pip takes none
with another: a component has all of them. Nothing is asked of a registry, and the same lock and models give the same
bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tomllib
import uuid
from pathlib import Path
from typing import Any

from server import __version__

ROOT = Path(__file__).resolve().parents[1]
_PACKAGE = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)(?:\s*;\s*([^\\]+?))?\s*\\?$")
_HASH = re.compile(r"--hash=(sha256):([0-9a-f]{64})")


class LockError(Exception):
    """The lock is not one that `make lock` writes."""


def packages(lock: str) -> list[dict[str, Any]]:
    """The components of a lock's text, by name. Raises LockError for a package without a hash."""
    found: dict[str, dict[str, Any]] = {}
    component: dict[str, Any] | None = None
    for line in lock.splitlines():
        if match := _PACKAGE.match(line):
            name, version, marker = match.groups()
            purl = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{version}"
            component = {
                "type": "library",
                "bom-ref": purl,
                "name": name,
                "version": version,
                "purl": purl,
                "hashes": [],
            }
            if marker:
                component["properties"] = [{"name": "awnet:marker", "value": marker}]
            found[purl] = component
        elif match := _HASH.search(line):
            if component is None:
                raise LockError("a hash before any package")
            component["hashes"].append({"alg": "SHA-256", "content": match[2]})
        elif line and not line.lstrip().startswith("#"):
            raise LockError(f"not a line of a lock: {line[:80]!r}")
    if bare := [ref for ref, component in found.items() if not component["hashes"]]:
        raise LockError(f"no hash for {', '.join(bare)}")
    return [found[ref] for ref in sorted(found)]


def models(repository: Path) -> list[dict[str, Any]]:
    """The components of a model repository's files, with the hash that each file has."""
    return [
        {
            "type": "machine-learning-model",
            "bom-ref": f"model:{path.parent.parent.name}@{path.parent.name}",
            "name": path.parent.parent.name,
            "version": path.parent.name,
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
        }
        for path in sorted(repository.glob("*/*/model.onnx"))
    ]


def document(lock: str, repository: Path) -> dict[str, Any]:
    """The bill of what this project installs by `lock` and serves from `repository`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    itself = {"type": "application", "bom-ref": "awnet", "name": project["name"], "version": __version__}
    components = [*packages(lock), *models(repository)]
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": itself | {"licenses": [{"license": {"id": project["license"]}}]}},
        "components": components,
        "dependencies": [{"ref": "awnet", "dependsOn": [component["bom-ref"] for component in components]}],
    }
    named = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(body, sort_keys=True))  # the same content has the same name
    return body | {"serialNumber": f"urn:uuid:{named}"}


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, 2 where the lock is none."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.sbom", description="Write the bill of materials of a lock and the models beside it."
    )
    parser.add_argument("--lock", type=Path, default=ROOT / "requirements/server-cpu.txt", help="[server-cpu.txt]")
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository", help="[model_repository]")
    parser.add_argument("--out", type=Path, help="[standard output]")
    given = parser.parse_args(arguments)
    try:
        text = json.dumps(document(given.lock.read_text("utf-8"), given.repository), indent=1) + "\n"
    except (OSError, LockError) as error:
        print(f"deploy.sbom: {error}", file=sys.stderr)
        return 2
    if given.out is None:
        sys.stdout.write(text)
        return 0
    given.out.parent.mkdir(parents=True, exist_ok=True)
    partial = given.out.with_name(f".partial-{given.out.name}")
    partial.write_text(text, "utf-8")
    partial.replace(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

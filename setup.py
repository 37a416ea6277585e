"""Builds the wheel: all packages go below `awnet/`, so that no other name is taken in site-packages.

The folders of the checkout keep their names. On its way into the wheel `server/` becomes `awnet/server/`, and likewise
`domain`, `export` and `training`; what names one of them from outside is rewritten: absolute imports
(`from domain.statistics import measure`) and the commands in texts (`python -m export.onnx`). Inside a package imports
are relative and stay as they are. An editable install is the checkout itself, with the names that it has there.
docs/decisions/0023-one-name-in-site-packages.md says why; everything else about the package is in pyproject.toml.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
BELOW = ("domain", "server", "export", "training")
MODEL = "awnet"  # the default of AWNET_MODEL: the one model that is in the wheel, in its latest version
DATA = {
    "awnet.planning": ["*.json"],
    "server.http": ["assets/*"],
    "training": ["recipes/**/*.toml"],
    "training.reproduction": ["*.toml"],
}
_COMMANDS = re.compile(rf"\bpython -m (?=(?:{'|'.join(BELOW)})\b)")


def installed(source: str) -> str:
    """A module's source as it stands in the wheel. Raises ValueError where `import X` names one of our packages."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(alias.name.partition(".")[0] in BELOW for alias in node.names):
            raise ValueError(f"line {node.lineno}: between packages, say `from X import Y`")
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] in BELOW:
            begin = node.lineno - 1
            lines[begin] = re.sub(r"\bfrom\s+", "from awnet.", lines[begin], count=1)
    return _COMMANDS.sub("python -m awnet.", "".join(lines))


class Build(build_py):
    """Copies modules as `installed` writes them, and the data that a checkout has beside its packages."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "awnet", ignore_errors=True)  # of an earlier build
        super().run()
        if not self.editable_mode:
            versions = (ROOT / "model_repository" / MODEL).glob("*/model.onnx")
            latest = max((path.parent for path in versions), key=lambda folder: int(folder.name))
            for path in [
                *sorted(latest.iterdir()),
                *sorted((ROOT / "examples").glob("*.png")),
                ROOT / "examples/twins.json",
            ]:
                copy = Path(self.build_lib) / "awnet" / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        copy, copied = super().build_module(module, module_file, package)
        path = Path(copy)
        path.write_text(installed(path.read_text("utf-8")), "utf-8")
        return copy, copied


def _names(editable: bool) -> tuple[list[str], dict[str, str]]:
    """Packages under their installed names, and the folders of those whose name is another."""
    found = [
        name for top in ("awnet", *BELOW) for name in (top, *(f"{top}.{p}" for p in find_packages(str(ROOT / top))))
    ]
    if editable:
        return found, {}
    below = {name: f"awnet.{name}" for name in found if name.partition(".")[0] in BELOW}
    return [below.get(name, name) for name in found], {new: old.replace(".", "/") for old, new in below.items()}


# PEP 517 builds an editable install by this command.
EDITABLE = "editable_wheel" in sys.argv
PACKAGES, FOLDERS = _names(EDITABLE)

if __name__ == "__main__":
    setup(
        packages=PACKAGES,
        package_dir=FOLDERS,
        package_data={
            name if EDITABLE or name.startswith("awnet.") else f"awnet.{name}": patterns
            for name, patterns in DATA.items()
        },
        include_package_data=False,
        cmdclass={"build_py": Build},
    )

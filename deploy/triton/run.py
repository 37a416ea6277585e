"""Run the real Triton from the `nvidia-pytriton` wheel, without a container.

The wheel carries `tritonserver` with its Python backend only; `python -m export.triton_python` writes a repository for
it. This program lays the backend's parts together, starts the server on the loopback, passes SIGTERM and SIGINT on,
and removes the shared memory that the server leaves behind.

Security: this build predates the fixes for CVE-2025-23319, -23320 and -23334 (Python backend). Keep it on the loopback
or a private network; models are not loaded or unloaded over the network unless `--mode explicit` asks for it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED_MEMORY = Path("/dev/shm")
PREFIX = "awnet_triton_"  # then our process id: a later run knows whose it was, and whether that still lives
KINDS = ("none", "poll", "explicit")

EXAMPLES = """examples:
  make triton                                              all of it: environment, repository, this program
  python deploy/triton/run.py                              build/triton/repository on 127.0.0.1:8100-8102
  python deploy/triton/run.py --mode poll --poll-seconds 2 load versions as they appear in the repository
  python deploy/triton/run.py --http-port 9100 --grpc-port 9101 --metrics-port 9102

then, in another terminal:
  make serve ENGINE=triton
"""


class SetupError(RuntimeError):
    """Triton cannot be started; the message says what is missing."""


def main() -> int:
    options = arguments()
    try:
        site = site_packages(options.venv)
        sweep()
        with tempfile.TemporaryDirectory(prefix="awnet-triton-") as scratch:
            backends = assemble(site, Path(scratch) / "backends")
            return run(command(options, site, backends), environment(options.venv, site))
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python deploy/triton/run.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    venv = Path(os.environ.get("AWNET_TRITON_VENV") or ROOT / ".venv-triton")
    parser.add_argument("--venv", type=Path, default=venv, help="environment made by make triton [.venv-triton]")
    parser.add_argument("--repository", type=Path, default=ROOT / "build/triton/repository", metavar="DIR")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [%(default)s]")
    parser.add_argument("--http-port", type=int, default=8100, metavar="PORT", help="[%(default)s]")
    parser.add_argument("--grpc-port", type=int, default=8101, metavar="PORT", help="[%(default)s]")
    parser.add_argument("--metrics-port", type=int, default=8102, metavar="PORT", help="[%(default)s]")
    parser.add_argument(
        "--mode", choices=KINDS, default="none",
        help="how models come and go: all at the start, by watching the repository, or by calls (private use) [none]",
    )  # fmt: skip
    parser.add_argument("--poll-seconds", type=int, default=5, metavar="N", help="of --mode poll [%(default)s]")
    parser.add_argument("--exit-seconds", type=int, default=20, metavar="N", help="to finish requests [%(default)s]")
    parser.add_argument("--verbose", type=int, default=0, metavar="N", help="Triton's log level [0]")
    return parser.parse_args()


def site_packages(venv: Path) -> Path:
    """Where the wheel lies in `venv`."""
    found = next(venv.glob("lib/python3.*/site-packages/pytriton/tritonserver/bin/tritonserver"), None)
    if found is None:
        raise SetupError(f"no Triton in {venv}: make .venv-triton/.locked, or name its environment with --venv")
    return found.parents[3]


def assemble(site: Path, backends: Path) -> Path:
    """Lay the Python backend together from the wheel's parts, as copies: the stub must lie beside the library."""
    triton, python = site / "pytriton/tritonserver", site.parent.name.removeprefix("python")
    stub = triton / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not stub.is_file():
        have = sorted(p.name for p in stub.parents[1].iterdir())
        raise SetupError(f"the wheel has no stub for Python {python}, only for {', '.join(have)}: make PYTHON3=...")
    libraries = subprocess.run(["ldd", stub], capture_output=True, text=True).stdout
    if missing := re.findall(r"(libpython\S+) => not found", libraries):
        raise SetupError(f"Triton's Python backend needs {missing[0]}: apt-get install libpython{python}")
    folder = backends / "python"
    folder.mkdir(parents=True)
    for part in (*(triton / "backends/python").glob("*.*"), stub):
        shutil.copy(part, folder)
    return backends


def command(options: argparse.Namespace, site: Path, backends: Path) -> list[str]:
    """The server's command line; why each option, in docs/triton.md."""
    if not options.repository.is_dir():
        raise SetupError(f"there is no {options.repository}: python -m export.triton_python --out {options.repository}")
    command = [
        f"--model-repository={options.repository}",
        f"--backend-directory={backends}",
        f"--model-control-mode={options.mode}",
        "--strict-readiness=true",
        # Contract and hashes come from the file; a configuration that Triton makes up itself batches 4.
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={options.exit_seconds}",
        f"--log-verbose={options.verbose}",
        "--allow-gpu-metrics=false",
        f"--backend-config=python,shm-region-prefix-name={PREFIX}{os.getpid()}_",
        # 1 MB is two batches of 64 images and grows; the default asks for 64 MB.
        "--backend-config=python,shm-default-byte-size=1048576",
        "--backend-config=python,shm-growth-byte-size=1048576",
    ]
    for kind in ("http", "grpc", "metrics"):
        command += [f"--{kind}-address={options.host}", f"--{kind}-port={getattr(options, f'{kind}_port')}"]
    if options.mode == "poll":
        command.append(f"--repository-poll-secs={options.poll_seconds}")
    if options.mode == "explicit":
        command.append("--load-model=*")
    return [str(site / "pytriton/tritonserver/bin/tritonserver"), *command]


def environment(venv: Path, site: Path) -> dict[str, str]:
    """The stub embeds Python and takes its packages from the first `python` on PATH."""
    path = f"{(venv / 'bin').absolute()}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": path, "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs")}


def run(command: list[str], variables: dict[str, str]) -> int:
    """Run until it ends; signals go to the server only, which ends its own stubs. Returns its status."""
    server = subprocess.Popen(command, env=variables, start_new_session=True, preexec_fn=_die_with_parent)
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, lambda number, frame: server.send_signal(signal.SIGTERM))
    try:
        status = server.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):  # after a hard exit the stubs are orphans in its group
            os.killpg(server.pid, signal.SIGKILL)
        remove(f"{PREFIX}{os.getpid()}_")
    return status if status >= 0 else 128 - status


def _die_with_parent() -> None:
    """Linux: the server is ended when this program is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def sweep() -> None:
    """Remove shared memory of earlier runs that were killed before they could."""
    for left in SHARED_MEMORY.glob(f"{PREFIX}*"):
        owner = left.name.removeprefix(PREFIX).partition("_")[0]
        if owner.isdecimal() and not Path("/proc", owner).exists():
            left.unlink(missing_ok=True)


def remove(prefix: str) -> None:
    for left in SHARED_MEMORY.glob(f"{prefix}*"):
        left.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())

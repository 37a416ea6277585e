"""The commands of the documents: each is run by a test, or says beside it why not.

In `docs/`, fences marked `bash` and `python` are run here, page by page, in a folder with the examples and a model; a
`text` or `json` fence after one is what it prints, with `...` for what differs from run to run. `awnet serve` is
started, waited for and ended with the page. A fence marked `console` is not run, and the comment before it says why.
The README has its own test, and so has docs/your-own-data.md.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from awnet.__main__ import main as awnet
from awnet.command.completion import options
from tests.repository import ROOT
from tests.test_readme import readme
from tests.waiting import eventually

FENCE = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*) -->\n\n?)?^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
REASON = re.compile(r"not run: \S+ \S+")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
ALIASES = {"server": "serve", "training.train": "train", "export.onnx": "export"}
COMMAND = re.compile(r"(?:\bawnet (?=[a-z])|-m (?=[a-z]))([\w.-]+)((?:\\\n|[^\n|#;&])*)")


@dataclass(frozen=True)
class Fence:
    """A block of a page; `printed` is the block of text or JSON after it."""

    kind: str
    body: str
    note: str
    printed: str | None = None


def fences(text: str) -> list[Fence]:
    found = [Fence(m["kind"], m["body"], m["note"] or "") for m in FENCE.finditer(text)]
    after = [*found, Fence("", "", "")][1:]
    return [
        Fence(f.kind, f.body, f.note, then.body if then.kind in ("text", "json") else None)
        for f, then in zip(found, after, strict=True)
    ]


def unexplained(text: str) -> list[str]:
    """First lines of the blocks that are not run and do not say why."""
    return [
        f.body.partition("\n")[0]
        for f in fences(text)
        if f.kind in ("console", "sh", "shell") and not REASON.match(f.note)
    ]


def run_here(page: Path) -> list[Fence]:
    if page.name == "your-own-data.md":
        return []
    return [f for f in fences(page.read_text("utf-8")) if f.kind in ("bash", "python")] if "docs" in page.parts else []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_command_that_is_not_run_says_why(page: Path) -> None:
    assert unexplained(page.read_text("utf-8")) == []


def test_a_block_without_a_reason_is_found() -> None:
    assert unexplained("```console\nmake tea\n```\n") == ["make tea"]
    assert unexplained("<!-- not run: needs a kettle -->\n```console\nmake tea\n```\n") == []
    assert unexplained("<!-- a note -->\n\n```console\nmake tea\n```\n") == ["make tea"]


@pytest.mark.process  # torch asks ldconfig
@pytest.mark.slow
def test_every_option_that_a_page_names_exists() -> None:
    """Of all commands of `awnet`, also where they are not run."""
    known: dict[str, set[str]] = {}
    wrong = []
    for page in PAGES:
        for fence in fences(page.read_text("utf-8")):
            for name, rest in COMMAND.findall(fence.body) if fence.kind in ("bash", "console") else []:
                command = ALIASES.get(name, name)
                if "." in command or command in ("keys", "findings"):  # their options are those of their own commands
                    continue
                if command not in known:
                    known[command] = set(options(command, awnet))
                wrong += [
                    f"{page.name}: {name} {o}"
                    for o in re.findall(r"(?<!\S)--[\w-]+", rest)
                    if known[command] and o not in known[command]
                ]
    assert {"serve", "predict", "calibrate", "export"} <= known.keys() and known["serve"]
    assert wrong == []


class Folder:
    """A folder as a reader has it: examples, a repository with the default model, `awnet` on the path; own ports."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server: subprocess.Popen[bytes] | None = None
        shutil.copytree(ROOT / "examples", path / "examples", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        latest = max((ROOT / "model_repository/awnet").glob("*/model.onnx"), key=lambda p: int(p.parent.name)).parent
        shutil.copytree(latest, path / "model_repository/awnet" / latest.name)
        shutil.copy(ROOT / "README.md", path)
        (path / "bin").mkdir()
        (path / "bin/awnet").write_text(f'#!/bin/sh\nexec {sys.executable} -m awnet "$@"\n', "utf-8")
        (path / "bin/awnet").chmod(0o755)
        self.ports = {port: free() for port in ("8000", "8001", "8002")}
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("AWNET_", "MAKE"))},
            "PATH": os.pathsep.join((str(path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"])),
            "PYTHONPATH": str(ROOT),
            "AWNET_PORT": self.ports["8000"],
            "AWNET_GRPC_PORT": self.ports["8001"],
            "AWNET_ADMIN_PORT": self.ports["8002"],
        }

    def localized(self, text: str) -> str:
        return re.sub(r"\b(127\.0\.0\.1|localhost):(800[0-2])\b", lambda m: f"{m[1]}:{self.ports[m[2]]}", text)

    def serve(self, line: str) -> None:
        """Start a server by a line of a page, in the place of the one before, and wait until it is ready."""
        self.stop()
        with (self.path / "log").open("wb") as log:
            command = ["bash", "-c", f"exec {self.localized(line)}"]
            self._server = subprocess.Popen(command, cwd=self.path, env=self.environment, stdout=log, stderr=log)
        server = self._server
        scheme, context = ("https", ssl.create_default_context()) if "--tls-" in line else ("http", None)
        if context:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        url = self.localized(f"{scheme}://127.0.0.1:8000/v2/health/ready")

        def ready() -> bool:
            assert server.poll() is None, (self.path / "log").read_text("utf-8", "replace")
            try:
                with urllib.request.urlopen(url, timeout=20, context=context) as r:
                    return bool(r.status == 200)
            except (OSError, urllib.error.URLError):
                return False

        eventually(ready, 120)

    def stop(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait(60)

    def run(self, fence: Fence) -> str:
        """What a block prints; `awnet serve` in it is left running."""
        lines = fence.body.replace("\\\n", " ").splitlines()
        if fence.kind == "bash":
            for line in lines:
                if re.match(r"(?:\w+=\S+ )*awnet serve\b", line):
                    self.serve(line)
            lines = [line for line in lines if not re.match(r"(?:\w+=\S+ )*awnet serve\b", line)]
            command = ["bash", "-euo", "pipefail", "-c", self.localized("\n".join(lines))]
        else:
            command = [sys.executable, "-c", self.localized(fence.body)]
        if self._server is None and "127.0.0.1:800" in fence.body:
            self.serve("awnet serve")
        done = subprocess.run(command, cwd=self.path, env=self.environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{fence.body}\n{done.stdout}{done.stderr}"
        return done.stdout + (done.stderr if not done.stdout else "")


def free() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.fixture
def folder(process: None, tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path)
    yield made
    made.stop()


def same(promised: str, printed: str) -> bool:
    """Whether a page shows what was printed; spaces do not count, and `...` stands for anything."""
    if promised.lstrip().startswith("{"):
        return list(readme.differences(json.loads(promised), json.loads(printed))) == []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(promised.strip(), printed.strip(), flags)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if run_here(p)], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_commands_of_a_page_print_what_stands_below_them(page: Path, folder: Folder) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    for fence in run_here(page):
        printed = folder.run(fence)
        assert fence.printed is None or same(fence.printed, printed), f"{fence.body}\nprinted\n{printed}"


@pytest.mark.parametrize(("promised", "printed", "holds"), [("a ...\nb", "a 1 2\nb\n", True), ("a\n", "b\n", False)])
def test_what_was_printed_is_held_to_the_page(promised: str, printed: str, holds: bool) -> None:
    assert same(promised, printed) is holds

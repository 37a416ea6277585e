"""The first hour with this project as a transcript: each command in a fresh clone, what it said, and how long it took.

Two people follow the documents: an engineer who asks, installs and scores, and a colleague from security who closes
what was open. Programs in Python are those of README.md and docs/client.md. Nothing is judged but the exit status: a
command that ends otherwise than it should is marked and counted. Ports 8000, 8002, 9443 and 9444 have to be free.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..harness.report import ROOT, add_out, loaded_machine, missing, parser, publish
from ..harness.waiting import eventually

EXAMPLES = """examples:
  python -m benchmarks.project.first_hour --data-dir DIR    with cifar-10-batches-py/, for natural images
"""
FIRST, LAST, WIDTH = 3, 2, 150  # lines of the output that are kept, and characters of each
IMAGES = 400  # natural ones to calibrate on
STOPPED = 130  # as a shell tells an end by Ctrl-C
READY = "INFO awnet: ready"
SETTINGS = """\
port = 9443
admin_port = 9444
api_keys = "keys.toml"
tls_certificate = "certificate.pem"
tls_key = "key.pem"
policy = "reject"
query_guard = "flag"
findings_dir = "findings"
findings_window_seconds = 5
"""
SHORT = 'import awnet; print(awnet.Client("127.0.0.1:8000").predict("../awnet/examples/cat.png").label)'
ASK = "curl -sS --cacert certificate.pem"
OF_THIS_MACHINE = re.compile("Looking in |Location |file://|new release of pip|pip install --upgrade pip")
MAKE_CERTIFICATE = (
    "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out certificate.pem -days 90 "
    "-subj /CN=localhost -addext subjectAltName=DNS:localhost 2> openssl.log"
)

Running = dict[str, tuple[subprocess.Popen[bytes], Path]]  # servers by the name of their log


class Step(NamedTuple):
    """A command of a shell, the folder it runs in, and the exit status that it should have.

    `log` is given to a server: it goes on in the background once that file says `READY`, until `Stop`.
    """

    command: str
    folder: str
    status: int = 0
    log: str = ""


class Stop(NamedTuple):
    """Ctrl-C for the server that writes `log`."""

    log: str


@dataclass
class Done:
    """What became of a step."""

    command: str
    seconds: float
    status: int | None  # None: it goes on
    expected: int
    output: list[str] = field(default_factory=list)


def chapters(data: Path | None) -> dict[str, list[Step | Stop]]:
    """The hour, in order; without `data` nothing is calibrated."""
    key = '-H "Authorization: Bearer $(cat shop.key)"'
    calibration: list[Step | Stop] = [
        Step("awnet calibrate photos", "elsewhere"),
        Step("awnet doctor --repository calibrated | grep -E 'repository|model'", "elsewhere"),
        Step("awnet predict photos --repository calibrated --out photos.csv", "elsewhere"),
    ]
    return {
        "Two commands, a question": [
            Step("git clone --quiet REPOSITORY awnet", "."),
            Step("make serve", "awnet", log="serve.log"),
            Step("curl -sS -F image=@examples/ship.png 'http://127.0.0.1:8000/predict?top_k=1'", "awnet"),
            Step("curl -sS -F image=@examples/ship-adversarial.png 'http://127.0.0.1:8000/predict?top_k=1'", "awnet"),
            Step("curl -sS -F image=@README.md http://127.0.0.1:8000/predict", "awnet"),
            Step("curl -sS -F file=@examples/ship.png http://127.0.0.1:8000/predict", "awnet"),
            Step("curl -sS -o ~/docs.html -w '%{http_code} %{content_type}\\n' http://127.0.0.1:8000/docs", "awnet"),
            Step(".venv-server/bin/python - < ~/readme.py", "awnet"),
            Step(".venv-server/bin/python - < ~/client.py", "awnet"),
            Step(".venv-server/bin/python - < ~/local.py", "awnet"),
            Stop("serve.log"),
        ],
        "Installed, in another folder": [
            Step("python3 -m venv ~/venv", "."),
            Step("~/venv/bin/pip install .", "awnet"),
            Step("awnet --version", "elsewhere"),
            Step("awnet --help | head -5", "elsewhere"),
            Step("awnet doctor", "elsewhere"),
            Step("awnet predict ~/awnet/examples --out results.csv", "elsewhere"),
            Step("head -2 results.csv", "elsewhere"),
            Step("awnet serve", "elsewhere", log="installed.log"),
            Step("awnet serve", "elsewhere", 2),
            Step(f"python -c '{SHORT}'", "elsewhere"),
            Step("curl -sS -o /dev/null -w '%{http_code} %{content_type}\\n' http://127.0.0.1:8000/", "elsewhere"),
            Step("curl -sS http://127.0.0.1:8000/page/model.json | head -c 120", "elsewhere"),
            Step("awnet bench --url http://127.0.0.1:8000 --seconds 3", "elsewhere"),
            Step("awnet predict ~/awnet/examples/ship.png --url 127.0.0.1:8000", "elsewhere"),
            Stop("installed.log"),
        ],
        "Images of one's own": calibration if data is not None else [],
        "The colleague from security": [
            Step("awnet keys new shop --scopes predict > shop.key", "elsewhere"),
            Step("awnet keys new ops --scopes predict,metrics,admin > ops.key", "elsewhere"),
            Step("awnet keys list", "elsewhere"),
            Step(MAKE_CERTIFICATE, "elsewhere"),
            Step("cat awnet.toml", "elsewhere"),
            Step("awnet doctor --config awnet.toml", "elsewhere"),
            Step("awnet serve --config awnet.toml", "elsewhere", log="closed.log"),
            Step(f"{ASK} -F image=@$HOME/awnet/examples/ship.png https://localhost:9443/predict", "elsewhere"),
            Step(
                f"{ASK} {key} -F image=@$HOME/awnet/examples/ship.png https://localhost:9443/predict?top_k=1",
                "elsewhere",
            ),
            Step(
                f"{ASK} {key} -F image=@$HOME/awnet/examples/ship-adversarial.png https://localhost:9443/predict",
                "elsewhere",
            ),
            Step(f"{ASK} {key} https://localhost:9443/metrics", "elsewhere"),
            Step(
                f'{ASK} -H "X-API-Key: $(cat ops.key)" https://localhost:9443/metrics'
                " | grep -E '^awnet_(policy_decisions|query_guard_images)_total'",
                "elsewhere",
            ),
            Step(f'{ASK} -H "X-API-Key: $(cat ops.key)" https://localhost:9444/admin/detection | head -4', "elsewhere"),
            Step(
                "awnet predict ~/awnet/examples/ship.png --url https://localhost:9443 --key @shop.key", "elsewhere", 2
            ),
            Step(
                "SSL_CERT_FILE=certificate.pem awnet predict ~/awnet/examples/ship*.png --url https://localhost:9443"
                " --key @shop.key --out seen.jsonl",
                "elsewhere",
                1,
            ),
            Step("tail -n 1 findings/chain-0/*.jsonl", "elsewhere"),
            Step("awnet verify-log findings", "elsewhere"),
            Step("awnet keys revoke shop && sleep 2", "elsewhere"),
            Step(f"{ASK} {key} -F image=@$HOME/awnet/examples/ship.png https://localhost:9443/predict", "elsewhere"),
            Stop("closed.log"),
        ],
        "What went wrong": [
            Step("awnet sevre", "elsewhere", 2),
            Step("awnet serve --prot 9000", "elsewhere", 2),
            Step("awnet serve --policy rejct", "elsewhere", 2),
            Step("echo 'polcy = \"reject\"' > wrong.toml && awnet serve --config wrong.toml", "elsewhere", 2),
            Step("awnet serve --tls-certificate certificate.pem", "elsewhere", 2),
            Step("awnet serve --host 192.0.2.1", "elsewhere", 2),
            Step("awnet predict nowhere.png", "elsewhere", 2),
            Step("mkfifo pipe.png && awnet predict pipe.png", "elsewhere", 2),
            Step("awnet predict ~/awnet/examples/ship.png --url scores.example", "elsewhere", 2),
            Step("awnet verify-log nowhere", "elsewhere", 2),
            Step("awnet calibrate ~/awnet/examples ~/awnet/examples", "elsewhere", 2),
            Step("awnet train --recipe recipe.toml", "elsewhere", 2),
        ],
    }


def main(arguments: list[str] | None = None) -> int:
    """Write the transcript. Returns 1 where a command ended otherwise than it should, 2 where nothing was begun."""
    command_line = parser("project.first_hour", __doc__, EXAMPLES)
    given_data = os.environ.get("AWNET_DATA_DIR")
    command_line.add_argument("--data-dir", type=Path, default=Path(given_data) if given_data else None, metavar="DIR")
    add_out(command_line, "first_hour")
    options = command_line.parse_args(arguments)
    if missing("git", "make", "curl", "openssl"):
        return 2
    if options.data_dir is None:
        print("no --data-dir: nothing is calibrated", file=sys.stderr)
    about = loaded_machine()
    with tempfile.TemporaryDirectory(prefix="first-hour-") as home:
        done = hour(Path(home), options.data_dir)
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip()
    wrong = sum(step.status not in (None, step.expected) for steps in done.values() for step in steps)
    report = {"commit": commit, "machine": about, "chapters": {name: [*map(asdict, s)] for name, s in done.items()}}
    publish(options.out, report, markdown(done, commit, about))
    print(f"{sum(map(len, done.values()))} commands, {wrong} of them ended otherwise than they should")
    return int(wrong > 0)


def hour(home: Path, data: Path | None) -> dict[str, list[Done]]:
    """Follow every chapter below `home`."""
    prepare(home, data)
    found: dict[str, list[Done]] = {}
    with servers() as running:
        for name, steps in chapters(data).items():
            for step in steps:
                done = stopped(step, home, running) if isinstance(step, Stop) else followed(step, home, running)
                print(f"{done.seconds:7.1f} s  {done.command}", flush=True)
                found.setdefault(name, []).append(done)
    return found


def prepare(home: Path, data: Path | None) -> None:
    """The files that somebody would have at hand: settings, the documents' programs, natural images."""
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "awnet.toml").write_text(SETTINGS, "utf-8")
    programs = [*python_of("README.md")[:1], *python_of("docs/client.md")[:2]]
    for name, program in zip(("readme", "client", "local"), programs, strict=True):
        (home / f"{name}.py").write_text(program, "utf-8")
    if data is not None:
        from PIL import Image

        from training.data.sets import load_cifar10

        (elsewhere / "photos").mkdir()
        for n, pixels in enumerate(load_cifar10(data, download=False).validation.images[:IMAGES]):
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(elsewhere / f"photos/{n:03}.png")


def python_of(document: str) -> list[str]:
    """The programs in a document."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text("utf-8"), re.DOTALL)


def surroundings(home: Path) -> dict[str, str]:
    """Variables of a new user: none of ours, no environment of Python but the one that is made here."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWNET_", "VIRTUAL_ENV", "PYTHON", "MAKE"))}
    path = kept["PATH"].split(os.pathsep)
    cache = kept.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    pip = Path.home() / ".config/pip/pip.conf"
    if pip.exists():
        kept.setdefault("PIP_CONFIG_FILE", str(pip))
    path = [str(home / "venv/bin"), *(folder for folder in path if not folder.startswith(str(ROOT)))]
    return {**kept, "HOME": str(home), "XDG_CACHE_HOME": cache, "PATH": os.pathsep.join(path)}


@contextmanager
def servers() -> Iterator[Running]:
    """By the name of its log each server that runs; none is left behind."""
    running: Running = {}
    try:
        yield running
    finally:
        for process, _ in running.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def followed(step: Step, home: Path, running: Running) -> Done:
    """Run one command, or begin a server and wait until it is ready."""
    command = step.command.replace("REPOSITORY", str(ROOT))
    log = home / (step.log or "step.log")
    begun = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=home / step.folder,
            env=surroundings(home),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    if step.log:
        running[step.log] = process, log
        eventually(lambda: READY in log.read_text("utf-8") or process.poll() is not None, 600, "the server is ready")
        status = process.poll()
    else:
        status = process.wait()
    seconds = time.monotonic() - begun
    prompt = "" if step.folder == "." else f"~/{step.folder}"
    shown = f"{prompt}$ {step.command}{' &' if step.log else ''}"
    return Done(shown, seconds, status, step.status, cleaned(log.read_text("utf-8", "replace"), home))


def stopped(step: Stop, home: Path, running: Running) -> Done:
    """End a server as Ctrl-C does, all of its processes at once; what it says last."""
    process, log = running.pop(step.log)
    log_size = len(log.read_bytes())
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    status = process.wait()
    status = 128 - status if status < 0 else status
    last = log.read_bytes()[log_size:].decode("utf-8", "replace")
    expected = status if status in (0, 2, STOPPED) else 0  # make's own is 2 or the signal's
    return Done("^C", time.monotonic() - begun, status, expected, cleaned(last, home))


def cleaned(text: str, home: Path) -> list[str]:
    """The first lines, without folders and hosts of this machine, and without keys."""
    hidden: Mapping[str, str] = {
        str(home): "~",
        str(ROOT): "REPOSITORY",
        str(Path.home()): "HOME",
        os.uname().nodename: "HOST",
    }
    for before, after in hidden.items():
        text = text.replace(before, after)
    text = re.sub(r"(https?)://(?!127\.0\.0\.1|localhost|192\.0\.2|scores\.example)[^\s/\"']+", r"\1://HOST", text)
    text = re.sub(r"awnet_[\w-]{43}", "awnet_...", text)
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not OF_THIS_MACHINE.search(line)]
    kept = [line if len(line) <= WIDTH else f"{line[:WIDTH]} ..." for line in lines]
    if len(kept) > FIRST + LAST + 1:
        kept[FIRST:-LAST] = [f"... {len(kept) - FIRST - LAST} lines more ..."]
    return kept


def markdown(done: Mapping[str, list[Done]], commit: str, about: Mapping[str, object]) -> str:
    """The transcript for people."""
    load = json.loads(json.dumps(about["load_before"]))[0]
    parts = [
        "# The first hour",
        f"Each command as it was typed in a fresh clone of commit {commit} and in fresh environments, behind it what\n"
        f"it took, below it what it said: the first {FIRST} and the last {LAST} lines, {WIDTH} characters of each.\n"
        f"Python {about['python']}, {about['cores']} cores of an {about['cpu']}, load average {load:.0f} before the\n"
        "first command; packages come partly from pip's cache. No container: [how the image was measured](image.md).\n"
        "Written by `python -m benchmarks.project.first_hour`.",
    ]
    for name, steps in done.items():
        lines = [f"## {name}", "", "```console"]
        for step in steps:
            lines += [f"{step.command}   {after(step)}", *step.output, ""]
        parts.append("\n".join([*lines[:-1], "```"]))
    total = sum(step.seconds for steps in done.values() for step in steps)
    parts.append(f"Together {total:.0f} seconds of waiting.\n")
    return "\n\n".join(parts)


def after(step: Done) -> str:
    """What a step took, how it ended, and whether that is as it should be."""
    if step.status is None:
        return f"# ready after {step.seconds:.1f} s"
    wrong = "" if step.status == step.expected else f", {step.expected} was expected"
    return f"# {step.seconds:.1f} s" + (f", exit status {step.status}" if step.status or wrong else "") + wrong


if __name__ == "__main__":
    sys.exit(main())

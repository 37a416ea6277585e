"""`awnet COMMAND ...`: what it says, how fast, and whom it hands over to."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from importlib import import_module

import pytest

from awnet.__main__ import COMMANDS, WITH_PACKAGES, install, main
from domain import __version__
from export.audit.__main__ import main as audit_file
from tests.repository import ROOT

HEAVY = {"torch", "onnx", "onnxruntime", "numpy", "PIL", "fastapi", "pydantic"}
MOST_CPU_SECONDS = 0.3
# What each command that needs an extra cannot do without.
NEEDED = {
    "train": ["--recipe", "r.toml", "--data-dir", "data", "--out", "run"],
    "audit": ["--ckpt", "best.pt", "--data-dir", "data", "--out", "audit"],
    "export": ["--ckpt", "best.pt"],
    "plan": ["--rate", "1"],
}
MISSING = ("torch", "onnx", "simpy")


def ask(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """A fresh interpreter's answer, and the CPU time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "awnet", *arguments]
    said = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""}, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return said, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.process
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["sevre"]])
def test_what_awnet_is_for_is_said_at_once(arguments: list[str]) -> None:
    """Before anything is imported that takes time: the least of three runs counts, since the machine is shared."""
    assert min(ask(*arguments)[1] for _ in range(3)) < MOST_CPU_SECONDS
    loaded = f"import sys; from awnet.__main__ import main; main({arguments!r}); print(*sys.modules, file=sys.stderr)"
    said = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True)
    assert HEAVY & set(said.stderr.split()) == set()


@pytest.mark.process
@pytest.mark.parametrize(
    ("command", "option"), [("serve", "--max-batch"), ("doctor", "--port"), ("predict", "--resume")]
)
def test_the_options_of_a_command_that_needs_no_torch_are_said_at_once(command: str, option: str) -> None:
    """`awnet serve --help` reads its options off the settings, and loads no model and no front end for it."""
    least = 9.0
    for _ in range(3):
        said, seconds = ask(command, "--help")
        assert said.returncode == 0 and option in said.stdout, said.stderr
        least = min(least, seconds)
    assert least < MOST_CPU_SECONDS


def test_the_help_names_every_command_and_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for name, command in COMMANDS.items():
        (line,) = [line for line in said.splitlines() if line.startswith(f"  {name} ")]
        assert command.about in line and (f"[{command.extra}]" in line) == (command.extra is not None)


def test_the_version_is_the_packages_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"awnet {__version__}\n"


@pytest.mark.parametrize(
    ("given", "meant"), [("sevre", "serve is meant?"), ("doctr", "doctor is meant?"), ("xyz", "there are")]
)
def test_a_command_that_is_none_is_told_the_nearest(given: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"awnet: {given} is no command") and meant in line


@pytest.mark.parametrize(("name", "other"), [("serve", "python -m server"), ("keys", "python -m server.keys")])
def test_a_program_calls_itself_as_it_was_called(name: str, other: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In its usage and in its examples, so that what is copied from there runs."""
    with pytest.raises(SystemExit):
        main([name, "--help"])
    ours = capsys.readouterr().out
    assert ours.startswith(f"usage: awnet {name} ") and f"  awnet {name} " in ours.partition("examples:")[2]
    assert other not in ours
    module = import_module("server.__main__" if name == "serve" else "server.keys")
    with pytest.raises(SystemExit):
        module.main(["--help"])
    assert capsys.readouterr().out.replace(other, f"awnet {name}") == ours


def test_without_a_command_the_usage_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("usage: awnet COMMAND")


@pytest.mark.parametrize(("name", "extra"), [(name, c.extra) for name, c in COMMANDS.items() if c.extra])
def test_a_command_whose_extra_is_missing_says_which_to_install(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line instead of a traceback."""
    loaded = ("torch", "training", "export", "onnx")
    for module in [m for m in sys.modules if m.partition(".")[0] in loaded or m.startswith("awnet.planning.")]:
        monkeypatch.delitem(sys.modules, module)
    for module in MISSING:
        monkeypatch.setitem(sys.modules, module, None)
    assert main([name, *NEEDED[name]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line in {f"awnet {name} needs {module}: {install(extra)}" for module in MISSING}


def test_an_installation_without_its_packages_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`pip install --no-deps .` alone is half of it; one line instead of a traceback."""
    for module in ("awnet.command.doctor", "server.settings.options"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    assert main(["doctor"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"awnet doctor needs pydantic, which was not installed beside it: {WITH_PACKAGES}"


@pytest.mark.process
@pytest.mark.parametrize(
    ("command", "program"), [("train", "training.train"), ("audit", "training.audit"), ("export", "export.onnx")]
)
def test_help_and_mistakes_wait_for_no_torch(command: str, program: str) -> None:
    """And name the program as it was started."""
    without = "import sys; sys.modules |= dict.fromkeys(('torch', 'torchvision', 'onnx', 'numpy')); "
    run = f"{without}from awnet.__main__ import main; main(sys.argv[1:])"
    for option, status in (("--help", 0), ("--no-such-option", 2)):
        done = subprocess.run([sys.executable, "-c", run, command, option], capture_output=True, text=True, cwd=ROOT)
        said = done.stdout + done.stderr
        assert done.returncode == status and f"usage: awnet {command} [-h]" in said
        assert f"python -m {program}" not in said.replace("-m training.train --recipe ... --device cuda", "")


@pytest.mark.process
@pytest.mark.parametrize("module", ["training.train", "training.audit.__main__", "export.onnx"])
def test_the_programs_themselves_go_by_their_own_names(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        import_module(module).main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m {module.removesuffix('.__main__')} [-h]")


def test_an_audit_of_a_file_alone_asks_for_its_own_small_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not for torch, which it does without."""
    for module in [m for m in sys.modules if m.partition(".")[0] == "export"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main(["audit", "--model=model.onnx"]) == 2
    assert capsys.readouterr().err == f"awnet audit needs tqdm: {install('audit')}\n"


def test_a_module_of_ours_that_is_missing_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken package must not read as one that lacks an extra."""
    monkeypatch.setitem(sys.modules, "training.train", None)
    with pytest.raises(ModuleNotFoundError):
        main(["train", *NEEDED["train"]])


@pytest.mark.process  # libraries of the programs ask ldconfig as they are imported
@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("serve", "server.__main__"),
        ("keys", "server.keys"),
        ("train", "training.train"),
        ("export", "export.onnx"),
        ("audit", "training.audit.__main__"),
    ],
)
def test_a_command_hands_its_options_over(command: str, program: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It refuses what the program refuses, in the same words."""
    said = []
    for run in (lambda: main([command, "--no-such-option"]), lambda: import_module(program).main(["--no-such-option"])):
        try:
            status = run()
        except SystemExit as refused:
            status = refused.code
        assert status == 2
        said.append(" ".join(re.sub(r"python -m [\w.]+", f"awnet {command}", capsys.readouterr().err).split()))
    assert said[0] == said[1] != ""


def test_the_audit_of_a_file_goes_by_the_name_it_was_started_by(capsys: pytest.CaptureFixture[str]) -> None:
    for run, name in ((main, "awnet audit"), (lambda given: audit_file(given[1:]), "python -m export.audit")):
        with pytest.raises(SystemExit):
            run(["audit", "--model", "m.onnx", "--help"])
        said = capsys.readouterr().out
        assert said.startswith(f"usage: {name} [-h]") and f"\n  {name} --model" in said


def test_an_audit_is_of_a_checkpoint_or_of_a_file_by_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--model", "nothing.onnx", "--out", "audit.json"]) == 2
    assert capsys.readouterr().err.startswith("not audited: ")

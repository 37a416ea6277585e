"""Every measurement says how it is called, and `python -m benchmarks` lists them all."""

from __future__ import annotations

import importlib
import re

import pytest

from benchmarks.__main__ import main, programs
from tests.repository import ROOT, tracked

PROGRAMS = dict(programs())


def test_every_program_is_listed_with_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing else: what can be run, but for what measurations run themselves."""
    called = re.compile(r'^if __name__ == "__main__"', re.MULTILINE)
    files = [path.relative_to(ROOT) for path in tracked("benchmarks/*/*.py") if called.search(path.read_text("utf-8"))]
    rooms = [path for path in files if path.parent.name not in ("harness", "apps")]
    named = {".".join(path.with_suffix("").parts).removesuffix(".__main__") for path in rooms}
    assert named - {"benchmarks.project.hops"} == PROGRAMS.keys()  # run by `benchmarks.project.structure` in a checkout
    main()
    listed = capsys.readouterr().out
    assert all(f"python -m {name} " in listed and about in listed for name, about in PROGRAMS.items())
    assert [about for about in PROGRAMS.values() if not about.endswith((".", "?"))] == []  # a sentence, whole


@pytest.mark.process  # importing torch starts ldconfig
@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_help_names_the_program_and_gives_an_example(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a reader copies from it is a command that is there; nothing is measured for it."""
    folder = ROOT / name.replace(".", "/")
    module = importlib.import_module(f"{name}.__main__" if folder.is_dir() else name)
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    usage, _, examples = re.sub(r"\s+", " ", capsys.readouterr().out).partition(" example")
    assert usage.startswith(f"usage: python -m {name} ")
    assert f"python -m {name}" in examples

"""Old names of settings and metrics: they work for one release, say what they are now, and stand in docs/renames.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from server.__main__ import main, read_settings
from server.core.contract import parse
from server.core.engine import Model
from server.monitoring.detection import Monitor
from server.monitoring.exposition import counted_by_all, exposition, snapshot
from server.monitoring.metrics import Metrics
from server.settings.renames import METRICS, SETTINGS, option, variable
from server.settings.settings import Settings
from server.workers.metrics_merge import Totals
from tests.server.tiny import contract_of, graph

ROOT = Path(__file__).resolve().parents[3]
VALUES = {"access_log": ("true", True), "golden_canary_seconds": ("2.5", 2.5)}
MODEL = Model("awnet", 1, "f" * 64, parse(json.dumps(contract_of(graph()))))
OPENMETRICS = "application/openmetrics-text"

pytestmark = pytest.mark.usefixtures("no_variables")


@pytest.mark.parametrize("old", SETTINGS)
def test_an_old_variable_sets_the_new_setting_and_says_so_once(
    old: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, value = VALUES[old]
    monkeypatch.setenv(variable(old), text)
    assert getattr(read_settings([]), SETTINGS[old]) == value
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"warning: {variable(old)} goes with the next release: it is {variable(SETTINGS[old])} now"


@pytest.mark.parametrize("old", SETTINGS)
def test_an_old_option_sets_the_new_setting_and_says_so_once(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, value = VALUES[old]
    given = [option(old)] if text == "true" else [option(old), text]
    assert getattr(read_settings(given), SETTINGS[old]) == value
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"warning: {option(old)} goes with the next release: it is {option(SETTINGS[old])} now"


@pytest.mark.parametrize("old", SETTINGS)
def test_both_names_of_one_setting_are_an_error_that_names_both(
    old: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (old, SETTINGS[old]):
        monkeypatch.setenv(variable(name), VALUES[old][0])
    assert main([]) == 2
    assert (
        capsys.readouterr().err == f"{variable(old)} is the old name of {variable(SETTINGS[old])}: give one of them\n"
    )
    with pytest.raises(ValueError, match=f"{option(old)} is the old name of {option(SETTINGS[old])}"):
        Settings(**{old: VALUES[old][1], SETTINGS[old]: VALUES[old][1]})


def test_an_option_wins_over_a_variable_whichever_of_its_names_either_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker is given every setting under its new name, so an old variable that it inherits is not read."""
    monkeypatch.setenv(variable("golden_canary_seconds"), "3")
    assert read_settings(["--golden-probe-seconds", "4"]).golden_probe_seconds == 4
    assert capsys.readouterr().err == ""
    assert Settings(**Settings().model_dump(mode="json") | {"golden_probe_seconds": 5}).golden_probe_seconds == 5
    monkeypatch.delenv(variable("golden_canary_seconds"))
    monkeypatch.setenv(variable("golden_probe_seconds"), "6")
    assert read_settings(["--golden-canary-seconds", "7"]).golden_probe_seconds == 7


def test_help_shows_new_names_only(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reads it learns no name that is about to go."""
    with pytest.raises(SystemExit):
        read_settings(["--help"])
    said = capsys.readouterr().out
    assert all(option(new) in said and option(old) not in said for old, new in SETTINGS.items())


def series(text: str) -> dict[str, str]:
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_metrics_are_exported_under_their_old_names_too_with_the_same_values(accept: str, workers: int) -> None:
    """In both formats, of one process and of several; all else is as without renames."""
    totals = Totals()
    for number in range(workers):
        monitor = Monitor()
        metrics = Metrics(monitor, 1, golden_probe_seconds=7)
        watch = monitor.of(MODEL)
        for expected, _ in list(watch.golden_probes):
            watch.golden_probe(expected, "right")
        totals.update(number, snapshot(metrics.registry, metrics.modes, monitor))
    families = metrics.registry if workers == 1 else counted_by_all(totals.total()).families
    text, _ = exposition(families, accept)
    exported = series(text.decode())
    for old, new in METRICS.items():
        under_old = {name.removeprefix(old): value for name, value in exported.items() if name.startswith(old)}
        assert under_old
        assert under_old == {name.removeprefix(new): value for name, value in exported.items() if name.startswith(new)}
        family = old.removesuffix("_total") if accept else old
        assert f"# HELP {family} Old name of {new}; goes with the next release.\n" in text.decode()
    make = generate_openmetrics if accept else generate_latest
    without = {name: value for name, value in exported.items() if not name.startswith(tuple(METRICS))}
    assert without.keys() == series(make(families).decode()).keys()


def rows(heading: str) -> list[tuple[str, str]]:
    """Of a section of docs/renames.md: old and new."""
    _, _, section = (ROOT / "docs/renames.md").read_text("utf-8").partition(f"\n## {heading}\n")
    return re.findall(r"^\| (`.+`) \| (`.+`) \|$", section.partition("\n## ")[0], re.MULTILINE)


def test_the_document_lists_exactly_the_old_settings_and_metrics() -> None:
    """docs/renames.md: variable and option of each setting, and each metric."""

    def shown(name: str) -> str:
        return f"`{variable(name)}`, `{option(name)}`"

    assert rows("Settings of the server") == [(shown(old), shown(new)) for old, new in SETTINGS.items()]
    assert rows("Metrics") == [(f"`{old}`", f"`{new}`") for old, new in METRICS.items()]

"""What the environment and the command line may hold beside good values."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path

import pytest

from server.__main__ import main, read_settings
from server.settings.options import GROUPS, choices
from server.settings.renames import option, variable
from server.settings.settings import Settings
from server.settings.sources import OTHERS
from tests.repository import tracked

NUMBERS = [name for name, field in Settings.model_fields.items() if field.annotation in (int, float)]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("AWNET_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "-1", "", "1e300", "0x10", "one"])
def test_what_is_no_usable_number_is_refused_in_one_line(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or a server that was told to wait `inf` seconds would end with a traceback; `nan` is no deadline at all."""
    # So that a value that passes is seen at once.
    monkeypatch.setattr("server.process.process.serve", lambda settings: 0)
    monkeypatch.setattr("server.workers.supervisor.supervise", lambda settings, command: 0)
    assert main([f"{option(name)}={value}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"setting {name} ({variable(name)}): ")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("AWNET_MAX_BACH", "warning: AWNET_MAX_BACH is no setting: AWNET_MAX_BATCH is meant?"),
        ("AWNET_WORKER", "warning: AWNET_WORKER is no setting: AWNET_WORKERS is meant?"),
        ("AWNET_SHUTDOWN_SECOND", "warning: AWNET_SHUTDOWN_SECOND is no setting: AWNET_SHUTDOWN_SECONDS is meant?"),
        ("AWNET_COLOUR", "warning: AWNET_COLOUR is no setting"),
    ],
)
def test_an_unknown_variable_is_told_with_the_nearest_name(
    given: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes on: another program of the machine may read that variable."""
    monkeypatch.setenv(given, "3")
    assert read_settings([]) == Settings()
    assert capsys.readouterr().err.splitlines() == [said]


def test_variables_of_our_other_programs_are_passed_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that any file here reads, and no more."""
    read = re.compile(
        r"""environ(?:\.get\(|\[)"(AWNET_\w+)"|\$\{(AWNET_PUBLISH|AWNET_BALANCE)\b|= "(AWNET_TRITON_VENV)\""""
    )
    found = {name for path in tracked() if path.suffix in (".py", ".yaml") for name in read.findall(path.read_text())}
    named = {name for names in found for name in names if name}
    assert named - {variable(name) for name in Settings.model_fields} == OTHERS
    for name in OTHERS:
        monkeypatch.setenv(name, "3")
    read_settings([])
    assert capsys.readouterr().err == ""


def test_the_links_of_kubernetes_services_are_no_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One called awnet sets AWNET_PORT in every pod of its namespace, one called awnet-grpc AWNET_GRPC_PORT."""
    for service, ports in {"AWNET": (8000, 8001), "AWNET_GRPC": (8001,), "AWNET_ADMIN": (8002,)}.items():
        monkeypatch.setenv(f"{service}_SERVICE_HOST", "10.96.0.7")
        monkeypatch.setenv(f"{service}_SERVICE_PORT", str(ports[0]))
        monkeypatch.setenv(f"{service}_SERVICE_PORT_HTTP", str(ports[0]))
        monkeypatch.setenv(f"{service}_PORT", f"tcp://10.96.0.7:{ports[0]}")
        for port in ports:
            monkeypatch.setenv(f"{service}_PORT_{port}_TCP", f"tcp://10.96.0.7:{port}")
            for part, value in {"PROTO": "tcp", "PORT": str(port), "ADDR": "10.96.0.7"}.items():
                monkeypatch.setenv(f"{service}_PORT_{port}_TCP_{part}", value)
    settings = read_settings([])
    assert (settings.port, settings.grpc_port, settings.admin_port) == (8000, None, 8002)
    assert capsys.readouterr().err == ""
    assert read_settings(["--port", "9000"]).port == 9000
    monkeypatch.setenv("AWNET_PORT", "seventy")
    assert main([]) == 2


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text('port = 9001\nmax_batch = 4\nadmin_port = "none"\nrequest_log = true\nversion = 3\nprior = 0.2\n')
    return path


def test_a_file_stands_above_the_defaults_and_below_variables_and_options(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts the server has the last word, then the machine it is started on, then what lies in a file."""
    read = read_settings(["--config", str(file)])
    assert (read.port, read.max_batch, read.admin_port, read.request_log) == (9001, 4, None, True)
    assert (read.version, read.prior, read.host) == ("3", 0.2, "127.0.0.1")
    monkeypatch.setenv("AWNET_CONFIG", str(file))
    monkeypatch.setenv("AWNET_MAX_BATCH", "5")
    assert (read_settings([]).port, read_settings([]).max_batch) == (9001, 5)
    assert (read_settings(["--max-batch", "6"]).max_batch, read_settings(["--config", "none"]).port) == (6, 8000)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", "config {}: prot is no setting: port is meant?"),
        ("colour = 1", "config {}: colour is no setting"),
        ('config = "other.toml"', "config {}: config is no setting"),
        ("[server]\nport = 1", "config {}: server is no setting"),
        ("port = [1]", "config {}: port must be text, a number, true or false"),
        ("port = 70000", "setting port (port in {}): Input should be less than or equal to 65535"),
        ('engine = "tritn"', "setting engine (engine in {}): Input should be 'embedded' or 'triton': triton is meant?"),
        ("port = ", "config {}: Invalid value (at end of document)"),
        ("access_log = true\nrequest_log = true", "access_log in {0} is the old name of request_log in {0}: give one"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unlike a variable, a line of the file is meant for this server alone, so one that it does not know is a slip."""
    path = tmp_path / "server.toml"
    path.write_text(text, "utf-8")
    assert main(["--config", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said.format(path))


def test_a_file_that_is_not_there_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(tmp_path / "none.toml")]) == 2
    assert capsys.readouterr().err == f"config {tmp_path / 'none.toml'}: No such file or directory\n"
    os.mkfifo(tmp_path / "fifo.toml")
    assert main(["--config", str(tmp_path / "fifo.toml")]) == 2
    assert capsys.readouterr().err == f"config {tmp_path / 'fifo.toml'}: it is no regular file\n"


def test_a_worker_has_its_supervisors_settings_whatever_becomes_of_the_file(file: Path) -> None:
    """It is given all of them; the file may have changed or be gone when a worker is replaced."""
    read = read_settings(["--config", str(file)])
    file.write_text("port = 1\nnonsense")
    assert Settings(**read.model_dump(mode="json")) == read


def test_the_help_names_every_choice_and_a_wrong_one_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """`--mode robsut` need not be looked up."""
    with pytest.raises(SystemExit):
        read_settings(["--help"])
    said = capsys.readouterr().out
    for name, given in {"mode": "robsut", "engine": "TRITON", "log_level": "warn"}.items():
        assert f"{option(name)} {{{','.join(choices(name))}}}" in said
        assert main([option(name), given]) == 2
        (near,) = get_close_matches(given.lower(), choices(name), 1)
        assert capsys.readouterr().err.endswith(f": {near} is meant?\n")


def test_the_help_is_in_groups_and_says_what_a_value_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Each setting in one of them; no `None`, no word that names nothing."""
    assert next(iter(Settings.model_fields)) in GROUPS and GROUPS.keys() <= Settings.model_fields.keys()
    with pytest.raises(SystemExit):
        read_settings(["--help"])
    said = capsys.readouterr().out
    assert "None" not in said and "[]" not in said
    assert said.count("  --") >= len(Settings.model_fields)
    options = said.partition("options:")[2].split("\n\n")[0]
    assert options.strip() == "-h, --help            show this help message and exit"
    for line in ("--tls-client-ca FILE", "--max-connections-per-client N", "--body-seconds SECONDS", "--prior SHARE"):
        assert f"  {line}" in said
    assert "(default: 127.0.0.1)" in said and "(default: 0.6)" in said and "(default: off)" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("awnet=deny", "must be MODEL=POLICY, separated by commas, with one of flag, abstain, reject, observe"),
        ("reject", "must be MODEL=POLICY, separated by commas, with one of flag, abstain, reject, observe"),
        ("awnt=reject", "'awnt' is not served"),
        ("awnet=reject,awnet=flag", "names a model twice"),
    ],
)
def test_a_policy_that_no_model_would_follow_is_refused(
    given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slip in a name would leave a model open that was meant to be guarded."""
    assert main(["--policies", given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"setting policies (AWNET_POLICIES): {said}"


def test_an_option_that_is_none_is_told_the_nearest_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Not all the others."""
    for given, meant in ((["--prot", "9"], "--prot is no option: --port is meant?"), (["x"], "x is no option: --help")):
        assert main(given) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(meant)


def test_each_model_has_the_policy_that_the_settings_give_it() -> None:
    settings = read_settings(
        ["--models", "wide, strict", "--policies", "strict=reject, awnet=flag", "--policy", "abstain"]
    )
    assert {name: settings.decides.of(name) for name in ("awnet", "wide", "strict")} == {
        "awnet": "flag",
        "wide": "abstain",
        "strict": "reject",
    }

"""What `awnet doctor` finds of the settings' files."""

from __future__ import annotations

from pathlib import Path

import pytest

from awnet.command.checks import Check, access
from server.settings.settings import Settings
from tests.server.http.one_port import certificate


def found(chain: Path, key: Path) -> Check:
    return next(check for check in access(Settings(tls_certificate=chain, tls_key=key)) if check.about == "certificate")


@pytest.mark.parametrize(("days", "state"), [(90, "ok"), (3, "warn"), (-1, "fail")])
def test_the_doctor_says_how_long_a_certificate_is_valid(tmp_path: Path, days: float, state: str) -> None:
    """Of an expired one that no client trusts it."""
    check = found(*certificate(tmp_path, days=days))
    assert check.state == state and ("expired" in check.found) == (days < 0)


def test_the_doctor_finds_a_certificate_that_keeps_a_server_from_starting(tmp_path: Path) -> None:
    chain, _ = certificate(tmp_path)
    _, key = certificate(tmp_path, "other")
    assert found(chain, key).state == "fail"
    assert found(chain, tmp_path / "none").state == "fail"


def test_the_doctor_says_nothing_of_tls_where_there_is_none() -> None:
    assert list(access(Settings())) == []

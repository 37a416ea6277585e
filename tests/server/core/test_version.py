"""Versions are integers inside: text is read in one way, at the edges."""

from __future__ import annotations

import pytest

from server.core.version import parse_version


@pytest.mark.parametrize("version", [1, 9, 10, 20260101, 10**18 - 1])
def test_a_version_is_read_as_it_is_written(version: int) -> None:
    assert parse_version(str(version)) == version


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "01",
        "+1",
        "-1",
        "1.0",
        "1e3",
        "1_000",
        " 1",
        "1\n",
        "²",
        "\N{FULLWIDTH DIGIT ONE}",
        "x",
        "latest",
        "9" * 19,
        "9" * 30,
    ],
)
def test_no_other_text_is_a_version(text: str) -> None:
    """Whatever `int` makes of it: two texts of one version would be two labels, two paths and two folders."""
    assert parse_version(text) is None

"""Fixtures of the client's tests: a live server with the tiny model."""

from __future__ import annotations

from tests.server.conftest import repository as repository
from tests.server.conftest import served as served

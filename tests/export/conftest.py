"""What every test of export needs."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

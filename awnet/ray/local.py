"""A Ray of this machine that is started for one program."""

from __future__ import annotations

from typing import Any

OBJECT_STORE_BYTES = 200_000_000  # requests, answers and names are small, and no data set is held
LOCAL: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}

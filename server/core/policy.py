"""What is done with the answer on an image that the detector speaks against."""

from __future__ import annotations

from typing import Literal

Policy = Literal["flag", "abstain", "reject", "observe"]

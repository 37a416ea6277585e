"""Operating modes of a model: which of its branches says the class.

The detector runs in every mode, so that score and verdict are the same; only the logits differ.
"""

from __future__ import annotations

from typing import Literal

Mode = Literal["auto", "robust", "natural"]

# The output of the model that holds the logits of each mode. auto: both branches, mixed by P_type, as the paper has it.
# robust: the adversarial branch alone, so that no detector can be fooled into the other one. natural: the other one.
LOGITS: dict[Mode, str] = {"auto": "logits", "robust": "logits_adv", "natural": "logits_nat"}

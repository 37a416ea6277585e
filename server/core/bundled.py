"""What comes with the server: folders that lie beside its package, in a checkout, an image and a wheel alike."""

from __future__ import annotations

from pathlib import Path

BESIDE = Path(__file__).resolve().parents[2]
EXAMPLES = BESIDE / "examples"


def model_repository() -> Path:
    """`model_repository` in the current folder, or where there is none, the bundled one."""
    here, bundled = Path("model_repository"), BESIDE / "model_repository"
    return here if here.is_dir() or not bundled.is_dir() else bundled

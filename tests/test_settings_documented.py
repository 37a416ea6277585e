"""Every setting of the server is documented, with the sentence and the default that the code has."""

from __future__ import annotations

from pathlib import Path

from server.settings.settings import Settings

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/settings.md"


def table() -> list[str]:
    """The rows that docs/settings.md must have, in the order of the code."""
    rows = []
    for name, field in Settings.model_fields.items():
        option = "--" + name.replace("_", "-")
        default = str(field.get_default(call_default_factory=True))
        sentence = (field.description or "").replace("<", "&lt;")
        rows.append(f"| `AWNET_{name.upper()}` | `{option}` | `{default}` | {sentence} |")
    return rows


def test_an_undocumented_or_outdated_setting_fails_the_build():
    """The table in docs/settings.md is the code's own: name, option, default, sentence. Paste what this prints."""
    documented = [line for line in DOCUMENT.read_text("utf-8").splitlines() if line.startswith("| `AWNET_")]
    assert documented == table(), "\n" + "\n".join(table())

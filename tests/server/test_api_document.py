"""docs/api.md says what the code does."""

from __future__ import annotations

import json
import re

from server.errors import AWNetError, StartupError, status_of
from server.http.schemas import Answer, OmegaSignals, Problem
from tests.server.tiny import ROOT

TEXT = (ROOT / "docs/api.md").read_text("utf-8")


def test_the_answers_shown_have_the_shape_of_the_code() -> None:
    """No field more, none less."""
    answer, signals, problem = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL))
    Answer.model_validate(answer)
    OmegaSignals.model_validate(signals["signals"])
    Problem.model_validate(problem)


def test_every_problem_is_listed_with_its_status() -> None:
    """Those of the error tree that a caller can see; 405 comes from the router."""

    def below(kind: type[AWNetError]) -> set[type[AWNetError]]:
        return {kind}.union(*(below(sub) for sub in kind.__subclasses__()))

    seen = {(kind.slug, status_of(kind(""))) for kind in below(AWNetError) - below(StartupError)}
    listed = {(slug, int(status)) for slug, status in re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \|", TEXT, re.MULTILINE)}
    assert listed - {("method-not-allowed", 405)} == seen

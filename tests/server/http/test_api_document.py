"""docs/api.md says what the code does."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from server.errors import AWNetError, StartupError, status_of
from server.http.schemas import Answer, OmegaSignals, Problem, Refused
from tests.server.small import Small
from tests.server.tiny import ROOT, Running, encoded, plain

TEXT = (ROOT / "docs/api.md").read_text("utf-8")


def shown() -> list[Any]:
    """The answers of the page, in their order."""
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)]


def test_the_answers_shown_have_the_shape_of_the_code() -> None:
    """No field more, none less."""
    answer, cut, signals, rejected, problem = shown()
    Answer.model_validate(answer)
    Refused.model_validate(cut)
    OmegaSignals.model_validate(signals["signals"])
    Refused.model_validate(rejected)
    Problem.model_validate(problem)


def test_the_rejection_shown_is_that_of_the_code(tmp_path: Path) -> None:
    """Of the second of two images."""
    small = Small(tmp_path, policy="reject")
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="%b"\r\n\r\n%b\r\n'
        % (name, encoded(plain(red)))
        for name, red in ((b"a.png", 0.2), (b"b.png", 0.9))
    ]
    body = b"".join(parts) + b"--x--\r\n"
    _, _, content = small.http("POST", "/predict", {b"content-type": b"multipart/form-data; boundary=x"}, body)
    small.close()
    example = shown()[3]
    [_, rejected] = json.loads(content)["results"]
    example["problem"]["request_id"] = rejected["problem"]["request_id"]
    assert example == rejected


@pytest.mark.process
def test_the_answers_shown_are_those_of_the_bundled_model() -> None:
    """A reader who sends examples/ship.png gets what the page prints; another processor may round differently."""
    whole, cut, signals, _, refused = shown()
    running = Running(ROOT / "model_repository")
    try:
        running.wait_ready()
        image = (ROOT / "examples/ship.png").read_bytes()
        files = [("image", ("ship.png", image)), ("image", ("cut.png", image[:-20]))]
        reply = running.http.post("/predict?top_k=2&signals=summary", files=files)
        problem = running.http.post("/predict", files={"file": ("ship.png", image)})
    finally:
        running.stop()
    answer = reply.json()
    result, second = answer["results"]
    second["problem"]["request_id"] = cut["problem"]["request_id"]
    assert second == cut
    assert close(signals["signals"], result.pop("signals"))
    assert answer["model"] == whole["model"]
    assert close(whole["results"], [result])
    assert {**refused, "request_id": ""} == {**problem.json(), "request_id": ""}


def close(shown: Any, given: Any) -> bool:
    """Whether two JSON values are the same but for the last digits of numbers."""
    if isinstance(shown, dict) and isinstance(given, dict):
        return shown.keys() == given.keys() and all(close(shown[key], given[key]) for key in shown)
    if isinstance(shown, list) and isinstance(given, list):
        return len(shown) == len(given) and all(map(close, shown, given))
    if isinstance(shown, float) and isinstance(given, float):
        return math.isclose(shown, given, rel_tol=0.05, abs_tol=1e-5)
    return bool(shown == given)


def test_every_problem_is_listed_with_its_status() -> None:
    """Those of the error tree that a client can see."""

    def below(kind: type[AWNetError]) -> set[type[AWNetError]]:
        return {kind}.union(*(below(sub) for sub in kind.__subclasses__()))

    seen = {(kind.slug, status_of(kind(""))) for kind in below(AWNetError) - below(StartupError)}
    listed = {(slug, int(status)) for slug, status in re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \|", TEXT, re.MULTILINE)}
    assert listed == seen

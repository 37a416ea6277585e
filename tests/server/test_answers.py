"""The server answers as it did when `answers.json` was recorded: status, headers, body, metrics and request log."""

from __future__ import annotations

import json
import math
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import pytest

from tests.server.recorded_answers import (
    CHANGED,
    NEAR,
    RECORD,
    RENAMED,
    ROOT,
    Answer,
    differences,
    kept,
    meant,
    played,
    renamed,
    stored_images,
)

DOCUMENT: dict[str, Any] = json.loads(RECORD.read_text("utf-8"))
FIRST: dict[str, Answer] = renamed(DOCUMENT["answers"])
EXPECTED: dict[str, Answer] = FIRST | DOCUMENT["changed"]


@pytest.fixture(scope="module")
def now(process: None) -> dict[str, Answer]:
    return kept(played(ROOT, stored_images()))


def test_every_answer_is_as_recorded(now: dict[str, Answer]) -> None:
    """Whoever changes an answer on purpose names it in `CHANGED` and records it; nobody changes one by accident."""
    unlike = {name: differences(EXPECTED.get(name, {}), answer) for name, answer in now.items()}
    assert {name: found for name, found in unlike.items() if found} == {}
    assert [name for name, answer in EXPECTED.items() if answer and name not in now] == []


def test_the_list_of_changes_holds_what_has_changed_and_nothing_else() -> None:
    """Each new answer is named, each name is used, and a renamed text was there before."""
    assert [name for name in DOCUMENT["changed"] if not meant(name)] == []
    assert [name for name, answer in DOCUMENT["changed"].items() if not differences(FIRST.get(name, {}), answer)] == []
    unused = [pattern for pattern in CHANGED if not any(fnmatchcase(name, pattern) for name in DOCUMENT["changed"])]
    assert unused == []
    before = json.dumps(DOCUMENT["answers"])
    assert [text for text in RENAMED if json.dumps(text)[1:-1] not in before] == []


def test_no_recorded_score_lies_so_near_an_edge_that_rounding_moves_it() -> None:
    """Or a verdict, a bucket's count or the order of two classes would hang on the CPU."""
    edges = {
        float(line.split('le="')[1].split('"')[0])
        for line in FIRST["metrics as text, after all answers"]["body"]
        if line.startswith("awnet_score_bucket")
    }
    judged = 0
    for name, answer in FIRST.items():
        if not name.startswith("predict: ") or answer["status"] != 200:
            continue
        for result in json.loads(answer["body"])["results"]:
            judged += 1
            score = result["adversarial"]["score"]
            for edge in edges | set(result["adversarial"]["thresholds"].values()):
                assert not math.isclose(score, edge, rel_tol=NEAR), (name, score, edge)
            likely = [found["probability"] for found in result["predictions"]]
            for more, less in pairwise(likely):
                assert not math.isclose(more, less, rel_tol=NEAR), (name, more, less)
    assert judged > 50


def test_a_changed_answer_is_noticed() -> None:
    """Rounding passes; another class, another header, another count, another threshold or another type does not."""
    answer = FIRST["predict: ship.png"]
    body: str = answer["body"]
    score = json.loads(body)["results"][0]["adversarial"]["score"]
    near, far = (body.replace(repr(score), f"{score * factor:.6g}") for factor in (1 + NEAR / 2, 1 + 4 * NEAR))
    assert body not in (near, far)
    assert differences(answer, answer | {"body": near}) == []
    spoilt = (
        far,
        body.replace('"ship"', '"cat"', 1),
        body.replace("0.00046847271732985973", "0.00046847271732985"),
        body.replace('"width":32', '"width":32.0'),
        body.replace('"results"', '"result"'),
        body.replace(":", ": ", 1),
    )
    for text in spoilt:
        assert text != body
        assert differences(answer, answer | {"body": text}), text
    assert differences(answer, answer | {"status": 201})
    assert differences(answer, answer | {"headers": answer["headers"][:-1]})
    lines: list[str] = FIRST["metrics as text, after all answers"]["body"]
    for family in ("awnet_verdicts_total", "awnet_score_bucket", "# HELP awnet_score "):
        place = next(index for index, line in enumerate(lines) if line.startswith(family))
        other = [*lines[:place], f"{lines[place]}1", *lines[place + 1 :]]
        assert differences({"body": lines}, {"body": other}), family

"""A client has a field for all that a server answers: what is new there is not forgotten here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import count
from typing import Any

import pytest

from awnet.client.errors import TYPE_PREFIX, ProblemError
from awnet.client.results import parse
from tests.server.tiny import Running


@pytest.fixture(scope="module")
def schemas(served: Running) -> dict[str, Any]:
    """The shapes of the server's OpenAPI document."""
    shapes: dict[str, Any] = served.http.get("/openapi.json").json()["components"]["schemas"]
    return shapes


def filled(schema: dict[str, Any], schemas: dict[str, Any], numbers: Iterator[int]) -> Any:
    """A value of this shape with every field, each with another value than the others."""
    if "$ref" in schema:
        return filled(schemas[schema["$ref"].rpartition("/")[2]], schemas, numbers)
    if "anyOf" in schema:
        return filled(schema["anyOf"][0], schemas, numbers)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    match schema["type"]:
        case "object":
            return {name: filled(one, schemas, numbers) for name, one in schema["properties"].items()}
        case "array":
            return [filled(schema["items"], schemas, numbers)]
        case "boolean":
            return True
        case "integer":
            return next(numbers)
        case "number":
            return next(numbers) + 0.5
    return f"text {next(numbers)}"


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All that is no container, each with what it is called."""
    if isinstance(value, ProblemError):
        value = vars(value)
    if isinstance(value, dict):
        for key, one in value.items():
            yield from leaves(one, key)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from leaves(one, name)
    else:
        yield name, value


@pytest.mark.parametrize("kind", ["Result", "ResultInLevels", "ResultOfVerdict", "Refused"])
def test_whatever_a_server_may_answer_reaches_the_client(kind: str, schemas: dict[str, Any]) -> None:
    """Of an answer with every field, in each form of its results: each value, or its name where it is one of a few."""
    numbers = count(1000)
    document = filled(schemas[kind], schemas, numbers)
    if "problem" in document:
        document["problem"]["type"] = TYPE_PREFIX + document["problem"]["type"]
    answer = {**filled(schemas["Answer"], schemas, numbers), "results": [document]}
    [result] = parse(answer, [None])
    known = list(leaves([asdict(replace(result, error=None, raw={})), result.error]))
    names = {name for name, _ in known}
    values = {str(value) for _, value in known} | names  # convolutions have theirs as keys
    for name, value in leaves(answer):
        text = str(value).removeprefix(TYPE_PREFIX)
        one_of_few = not any(character.isdigit() for character in text)
        assert name.removesuffix("_level") in names if one_of_few else text in values, f"{name} is not in a Result"

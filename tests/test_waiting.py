"""No test waits for a time, or polls on its own."""

from __future__ import annotations

import ast

from tests.repository import ROOT, tracked

ALLOWED = {"tests/reaper.py"}  # a process of its own, which needs nothing of this repository


def polls(source: str) -> list[int]:
    """Lines of the loops that sleep, or end by the clock."""
    found = []
    for loop in ast.walk(ast.parse(source)):
        if isinstance(loop, ast.While):
            ends = [loop.test, *(node for node in ast.walk(loop) if isinstance(node, ast.Assert))]
            if "sleep" in names_in(loop) or {"monotonic", "perf_counter"} & set().union(*map(names_in, ends)):
                found.append(loop.lineno)
    return found


def names_in(tree: ast.AST) -> set[str]:
    """Variables and attributes, but for those where an error is handled: a client of a load may rest after one."""
    if isinstance(tree, ast.ExceptHandler):
        return set()
    own = {tree.attr} if isinstance(tree, ast.Attribute) else {tree.id} if isinstance(tree, ast.Name) else set()
    return own.union(*map(names_in, ast.iter_child_nodes(tree)))


def test_tests_wait_in_one_way() -> None:
    """`eventually` and `until` of tests/waiting.py give a slow machine time, and a state that never comes a line."""
    paths = {path.relative_to(ROOT).as_posix(): path for path in tracked("tests/*.py")}
    found = {name: polls(path.read_text("utf-8")) for name, path in paths.items() if name not in ALLOWED}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_a_loop_that_polls_is_found() -> None:
    """With a sleep, or busily; a loop that works on something is none."""
    assert polls("while not ready():\n    time.sleep(0.1)") == [1]
    assert polls("async def f():\n    while True:\n        await asyncio.sleep(0)") == [2]
    assert polls("while not ready():\n    assert time.monotonic() < deadline") == [1]
    assert polls("while data := read():\n    take(data)") == []
    assert polls("while on:\n    try:\n        ask()\n    except OSError:\n        time.sleep(0.1)") == []

"""The README as a program: its commands, and the answers that it prints below them.

Commands stand in fences marked `bash`; a `json` fence after one is the answer it must give. A `python` fence is a
program, and the `text` fence after it is what it prints. What needs hours or another machine stands in fences marked
`console` and is not run. `tests/test_readme.py` runs them all; `.ci/run`
runs the first curl line and judges its answer:

    python .ci/readme.py command curl            # print the first command that starts with curl
    python .ci/readme.py judge curl answer.json  # exit 1 where the answer is not the one in the README
    python .ci/readme.py refresh                 # after a change of model: ask the running server, print its answers
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parent.parent / "README.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOLERANCE = 0.02  # of numbers between 0 and 1: another processor may round a probability differently


@dataclass(frozen=True)
class Command:
    """One command of the README; `answer` is the JSON printed below it, None where there is none."""

    text: str
    answer: Any = None


def commands(readme: str) -> list[Command]:
    """The commands in order; a line that ends in a backslash goes on in the next."""
    found: list[Command] = []
    for language, body in FENCE.findall(readme):
        if language == "bash":
            lines = body.replace("\\\n", " ").splitlines()
            found += [Command(line.strip()) for line in lines if line.strip() and not line.startswith("#")]
        elif language == "json" and found and found[-1].answer is None:
            found[-1] = Command(found[-1].text, json.loads(body))
    return found


def programs(readme: str) -> list[tuple[str, str]]:
    """The Python programs in order, each with what it prints."""
    fences = FENCE.findall(readme)
    following = [*fences[1:], ("", "")]
    return [
        (body, printed if language == "text" else "")
        for (kind, body), (language, printed) in zip(fences, following, strict=True)
        if kind == "python"
    ]


def differences(expected: Any, actual: Any, path: str = "answer") -> Iterator[str]:
    """Where `actual` is not what the README promises.

    The same keys and lengths; the same strings, where a promised `abc...` promises only its beginning; numbers
    within TOLERANCE, but for times, which are only numbers.
    """
    if isinstance(expected, dict) and isinstance(actual, dict):
        if expected.keys() != actual.keys():
            yield f"{path}: keys {sorted(actual)} instead of {sorted(expected)}"
        for key in expected.keys() & actual.keys():
            yield from differences(expected[key], actual[key], f"{path}.{key}")
    elif isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            yield f"{path}: {len(actual)} entries instead of {len(expected)}"
        for i, (e, a) in enumerate(zip(expected, actual, strict=False)):
            yield from differences(e, a, f"{path}[{i}]")
    elif isinstance(expected, str) and expected.endswith("...") and isinstance(actual, str):
        if not actual.startswith(expected[:-3]):
            yield f"{path}: {actual!r} does not begin with {expected[:-3]!r}"
    elif type(expected) is bool or not isinstance(expected, (int, float)):
        if expected != actual:
            yield f"{path}: {actual!r} instead of {expected!r}"
    elif type(actual) is bool or not isinstance(actual, (int, float)):
        yield f"{path}: {actual!r} instead of the number {expected!r}"
    elif ".timing_ms" not in path and abs(actual - expected) > TOLERANCE:
        yield f"{path}: {actual!r} instead of {expected!r}"


def layout(value: Any, indent: int = 0) -> str:
    """JSON for people: what fits a line stands on one."""
    line = json.dumps(value)
    if len(line) + indent <= 110 or not isinstance(value, (dict, list)):
        return line
    pad = " " * (indent + 1)
    if isinstance(value, list):
        return "[" + f",\n{pad}".join(layout(v, indent + 1) for v in value) + "]"
    return "{" + f",\n{pad}".join(f"{json.dumps(k)}: {layout(v, indent + len(k) + 5)}" for k, v in value.items()) + "}"


def refresh(readme: str) -> str:
    """The README with the answers that its curl lines get now, each in a `json` fence right below its command."""

    def ask(fence: re.Match[str]) -> str:
        answer = json.loads(subprocess.run(["bash", "-c", fence[1]], check=True, capture_output=True).stdout)
        answer["request_id"] = "..."
        answer["model"]["sha256"] = answer["model"]["sha256"][:12] + "..."
        return f"```bash\n{fence[1]}```\n\n```json\n{layout(answer)}\n```\n"

    return re.sub(r"^```bash\n(curl [^`]*)```\n(?:\n```json\n[^`]*```\n)?", ask, readme, flags=re.MULTILINE)


def main(arguments: list[str]) -> int:
    if arguments == ["refresh"]:
        README.write_text(refresh(README.read_text("utf-8")), "utf-8")
        return 0
    action, prefix, *rest = arguments
    command = next(c for c in commands(README.read_text("utf-8")) if c.text.startswith(prefix))
    if action == "command":
        print(command.text)
        return 0
    if command.answer is None:
        print(f"the README prints no answer below `{command.text}`")
        return 1
    wrong = list(differences(command.answer, json.loads(Path(rest[0]).read_bytes())))
    print("\n".join(wrong) or "the answer is the one in the README")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`awnet completion SHELL`: a script that completes commands, options and their choices in bash, zsh or fish.

The words are read from each command's own `--help`, so nothing is listed twice; of a command whose extra is not
installed there are none.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence

from .engines import RAY, engines

SHELLS = ("bash", "zsh", "fish")
USAGE = f"""usage: awnet completion {{{",".join(SHELLS)}}}

Print a script for the shell:
  bash   source <(awnet completion bash)          in ~/.bashrc
  zsh    source <(awnet completion zsh)           in ~/.zshrc, after compinit
  fish   awnet completion fish > ~/.config/fish/completions/awnet.fish
"""
_OPTION = re.compile(
    r"^\s{2,4}(?:-\w(?: [A-Z\[][^,]*)?, )?(--[\w-]+)(?:, (--no-[\w-]+))?(?: \{([^}]+)\})?", re.MULTILINE
)

BASH = """_awnet() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words=""
  COMPREPLY=()
  if [ "$COMP_CWORD" = 1 ]; then words="%s"; else
    case "${COMP_WORDS[1]} $before" in
%s
    esac
    if [ -z "$words" ]; then case "$word" in -*) case "${COMP_WORDS[1]}" in
%s
    esac;; esac; fi
  fi
  if [ -n "$words" ]; then COMPREPLY=($(compgen -W "$words" -- "$word")); else COMPREPLY=($(compgen -f -- "$word")); fi
}
complete -o filenames -F _awnet awnet
"""


def main(arguments: Sequence[str], commands: dict[str, str], run: Callable[[Sequence[str]], int]) -> int:
    """Print the script. Returns the exit status.

    Args:
        commands: name -> what it is for.
        run: `awnet` itself, asked for the help of each.
    """
    if list(arguments) in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        print(USAGE, end="", file=sys.stderr)
        return 2
    words = {name: options(name, run) for name in commands if name != "completion"}
    if arguments[0] == "fish":
        print(fish(commands, words), end="")
    else:
        print(
            ("autoload -U +X bashcompinit && bashcompinit\n" if arguments[0] == "zsh" else "") + bash(commands, words),
            end="",
        )
    return 0


def options(name: str, run: Callable[[Sequence[str]], int]) -> dict[str, list[str]]:
    """option -> its choices, as far as `--help` names them, that of another engine included."""
    held, engine = io.StringIO(), RAY if name == "predict" else None
    with contextlib.redirect_stdout(held), contextlib.redirect_stderr(io.StringIO()):
        for more in [[], ["--engine", engine]] if engine else [[]]:
            with contextlib.suppress(SystemExit):
                run([name, *more, "--help"])
    found: dict[str, list[str]] = {"--engine": list(engines())} if engine else {}
    for option, other, choices in _OPTION.findall(held.getvalue()):
        found[option] = choices.split(",") if choices else []
        if other:
            found[other] = []
    return found


def bash(commands: dict[str, str], words: dict[str, dict[str, list[str]]]) -> str:
    """The script for bash, which zsh reads too."""
    choices = [
        f'      "{name} {option}") words="{" ".join(choice)}";;'
        for name, found in words.items()
        for option, choice in found.items()
        if choice
    ]
    given = [f'      {name}) words="{" ".join(found)}";;' for name, found in words.items() if found]
    named = [f'      "completion completion") words="{" ".join(SHELLS)}";;']
    return BASH % (" ".join(commands), "\n".join(named + choices), "\n".join(given))


def fish(commands: dict[str, str], words: dict[str, dict[str, list[str]]]) -> str:
    """The script for fish."""
    lines = [
        f"complete -c awnet -n __fish_use_subcommand -f -a {name} -d '{about}'" for name, about in commands.items()
    ]
    lines.append(f"complete -c awnet -n '__fish_seen_subcommand_from completion' -f -a '{' '.join(SHELLS)}'")
    for name, found in words.items():
        for option, choice in found.items():
            more = f" -x -a '{' '.join(choice)}'" if choice else ""
            lines.append(
                f"complete -c awnet -n '__fish_seen_subcommand_from {name}' -l {option.removeprefix('--')}{more}"
            )
    return "\n".join(lines) + "\n"

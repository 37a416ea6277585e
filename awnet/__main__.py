"""`awnet COMMAND ...`, or `python -m awnet COMMAND ...`: every program of this project under one name.

A command takes its own options: what follows its name is handed over unchanged, so that `awnet serve --port 9000` is
`python -m server --port 9000`, and no option is defined in two places. Nothing is imported but what a command needs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from . import __version__

OURS = ("", "awnet", "domain", "server", "export", "training")  # none of them is missing for lack of an extra

WITH_PACKAGES = "pip install . without --no-deps, or pip install -r requirements/server.txt in its checkout"

Run = Callable[[Sequence[str]], object]


class Command(NamedTuple):
    """What a command is for, how it runs, and the extra of the package that it needs beside the server's libraries."""

    about: str
    run: Run
    extra: str | None = None


def _serve(arguments: Sequence[str]) -> object:
    from server.__main__ import main

    return main(list(arguments), "awnet serve")


def _keys(arguments: Sequence[str]) -> object:
    from server.keys import main

    return main(arguments, "awnet keys")


def _predict(arguments: Sequence[str]) -> object:
    """In this process or by a server, or on Ray Data: by the engine that is asked for."""
    from .command.engines import on_ray

    if (given := on_ray(arguments)) is not None:
        from .ray.predict import main as predict_on_ray

        return predict_on_ray(given)
    from .command.predict import main

    return main(arguments)


def _bench(arguments: Sequence[str]) -> object:
    from .command.bench import main

    return main(arguments)


def _plan(arguments: Sequence[str]) -> object:
    from .command.plan import main

    return main(arguments)


def _calibrate(arguments: Sequence[str]) -> object:
    from .command.calibrate import main

    return main(arguments)


def _findings(arguments: Sequence[str]) -> object:
    from .command.findings import main

    return main(arguments)


def _verify_log(arguments: Sequence[str]) -> object:
    from .command.verify_log import main

    return main(arguments)


def _pull(arguments: Sequence[str]) -> object:
    from .command.pull import main

    return main(arguments)


def _doctor(arguments: Sequence[str]) -> object:
    from .command.doctor import main

    return main(arguments)


def _export(arguments: Sequence[str]) -> object:
    from export.options import export_parser

    export_parser("awnet export").parse_args(arguments)  # --help and mistakes, without torch's four seconds
    from export.onnx import main

    return main(arguments, "awnet export")


def _train(arguments: Sequence[str]) -> object:
    from training.options import train_parser

    train_parser("awnet train").parse_args(arguments)
    from training.train import main

    return main(arguments, "awnet train")


def _audit(arguments: Sequence[str]) -> object:
    """Of a checkpoint with torch, or of a model file without: by the option that names the one or the other."""
    if _of_a_file(arguments):
        from export.audit.__main__ import main as audit_file

        return audit_file(arguments, "awnet audit")
    from training.audit.options import audit_parser

    audit_parser("awnet audit").parse_args(arguments)
    from training.audit.__main__ import main as audit_checkpoint

    return audit_checkpoint(arguments, "awnet audit")


def _of_a_file(arguments: Sequence[str]) -> bool:
    return any(argument.split("=")[0] == "--model" for argument in arguments)


def _completion(arguments: Sequence[str]) -> object:
    from .command.completion import main as complete

    return complete(arguments, {name: command.about for name, command in COMMANDS.items()}, main)


COMMANDS = {
    "serve": Command("serve models over HTTP, and over gRPC where it is asked for", _serve),
    "keys": Command("make, list, replace and revoke API keys", _keys),
    "predict": Command("score images: files, folders, patterns, ZIP archives, standard input", _predict),
    "bench": Command("measure latency under load, and what the detector flags", _bench),
    "plan": Command("how many servers a load needs, what they cost, which latencies to expect", _plan, "planning"),
    "calibrate": Command("thresholds for natural images of your own, as a new version", _calibrate),
    "pull": Command("fetch a model from a registry, a bucket or a web server", _pull),
    "findings": Command("list findings, mark them, see which threshold the marks propose", _findings),
    "verify-log": Command("check that the journal of findings is as it was written", _verify_log),
    "doctor": Command("check this machine: processor, libraries, model, ports, permissions", _doctor),
    "train": Command("train a network by a recipe", _train, "training"),
    "audit": Command("attack a checkpoint (--ckpt), or a model file alone (--model)", _audit, "training"),
    "export": Command("make one ONNX file of a checkpoint, proven against torch", _export, "export"),
    "completion": Command("a script that completes all this in bash, zsh or fish", _completion),
}


def install(extra: str) -> str:
    """How to get an extra. The package is in no public registry, where somebody else could have its name."""
    return f"install this package with its extra, in its checkout: pip install '.[{extra}]'"


def usage() -> str:
    """The answer to `awnet --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {c.about}" + (f" [{c.extra}]" if c.extra else "") for name, c in COMMANDS.items()]
    return "\n".join(
        [
            "usage: awnet COMMAND ...   (awnet COMMAND --help for its options)",
            "",
            "AW-Net: which class is in an image, and was it tampered with?",
            "",
            *lines,
            "",
            "  --version  say the version of this program",
            "",
            f"[EXTRA]: needs more than the server does: {install('EXTRA')}",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status; 2 where there is no such command, or its extra is not installed."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage(), file=sys.stdout if given else sys.stderr)
        return 0 if given else 2
    name, *rest = given
    if name in ("-V", "--version"):
        print(f"awnet {__version__}")
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1)
        meant = f": {near[0]} is meant?" if near else f"; there are {', '.join(COMMANDS)}"
        print(f"awnet: {name} is no command{meant}", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    try:
        status = command.run(rest)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in OURS:
            raise
        if command.extra is None:
            print(f"awnet {name} needs {missing}, which was not installed beside it: {WITH_PACKAGES}", file=sys.stderr)
            return 2
        extra = "audit" if name == "audit" and _of_a_file(rest) else command.extra
        print(f"awnet {name} needs {missing}: {install(extra)}", file=sys.stderr)
        return 2
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(main())

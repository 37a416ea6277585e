"""`python -m server`: serve models over HTTP, and over gRPC and an admin port where they are asked for."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Any, get_args

from pydantic import ValidationError

from .renames import SETTINGS, option
from .settings import Settings, unknown_variables

EXAMPLES = """examples:
  python -m server                                   serve model_repository/awnet on 127.0.0.1:8000
  python -m server --host 0.0.0.0 --port 9000        listen on all addresses
  python -m server --repository /models --version 3  a given version of another repository
  python -m server --workers 4                       four processes behind one port
  AWNET_MAX_BATCH=8 python -m server                 every option is also a variable

  curl -F image=@image.png http://127.0.0.1:8000/predict
"""


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to stop. Returns the exit status: 0, or 1 if the model cannot be served, 2 for bad settings."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a reload before there is anything to reload must not kill
    try:
        settings = read_settings(arguments)
    except ValidationError as error:
        for line in error.errors():
            name = ".".join(str(part) for part in line["loc"])
            print(f"setting {name} (AWNET_{name.upper()}): {line['msg']}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    # A supervisor that serves nothing itself needs little of what a server needs, and no server needs a supervisor.
    if settings.workers > 1:
        from .workers.supervisor import supervise

        return supervise(settings, [sys.executable, "-m", "server.process"])
    from .process import serve

    return serve(settings)


def read_settings(arguments: list[str] | None = None) -> Settings:
    """The settings of `AWNET_*` variables, overruled by `arguments` (default: the command line)."""
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Serve an AW-Net over HTTP. Every option is also a variable: --max-batch is AWNET_MAX_BATCH.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [(name, name) for name in Settings.model_fields] + list(SETTINGS.items())
    for name, now in names:
        field = Settings.model_fields[now]
        described = f"{field.description} [{field.default}]" if name == now else argparse.SUPPRESS
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": described}
        if field.annotation is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            if type(None) in get_args(field.annotation):
                options["type"] = lambda text: None if text == "none" else text
            options["metavar"] = name.rpartition("_")[2].upper()
        parser.add_argument(option(name), **options)
    given = vars(parser.parse_args(arguments))
    for warning in unknown_variables(os.environ):
        print(warning, file=sys.stderr)
    return Settings(**given)


if __name__ == "__main__":
    sys.exit(main())

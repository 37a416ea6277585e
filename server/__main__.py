"""`python -m server`: serve models over HTTP, and over gRPC and an admin port where they are asked for."""

from __future__ import annotations

import argparse
import signal
import sys

from .core.programs import program
from .options import SettingsError, add_settings, settings_of
from .settings import Settings

EXAMPLES = """examples:
  python -m server                                   serve model_repository/awnet on 127.0.0.1:8000
  python -m server --host 0.0.0.0 --port 9000        listen on all addresses
  python -m server --repository /models --version 3  a given version of another repository
  python -m server --workers 4                       four processes behind one port
  AWNET_MAX_BATCH=8 python -m server                 every option is also a variable
  python -m server --config server.toml              and a line of a file: max_batch = 8

  curl -F image=@image.png http://127.0.0.1:8000/predict
"""


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to stop. Returns the exit status: 0, or 1 if the model cannot be served, 2 for bad settings."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a reload before there is anything to reload must not kill
    try:
        settings = read_settings(arguments)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    # A supervisor that serves nothing itself needs little of what a server needs, and no server needs a supervisor.
    if settings.workers > 1:
        from .workers.supervisor import supervise

        return supervise(settings, program(f"{__package__}.process"))
    from .process import serve

    return serve(settings)


def read_settings(arguments: list[str] | None = None) -> Settings:
    """The settings of `arguments` (default: the command line); see `options.settings_of`. Raises SettingsError."""
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Serve an AW-Net over HTTP. Every option is also a variable: --max-batch is AWNET_MAX_BATCH, and a "
        "line of the file that --config names: max_batch = 8.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(parser)
    return settings_of(vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())

"""`python -m server`: serve models over HTTP, and over gRPC and an admin port where they are asked for."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys

from .core.programs import program
from .errors import AWNetError
from .settings.options import SettingsError, add_settings, only_known, settings_of
from .settings.settings import Settings

CALLED = "python -m server"
EXAMPLES = """examples:
  python -m server                                   serve model_repository/awnet on 127.0.0.1:8000
  python -m server --host 0.0.0.0 --port 9000        listen on all addresses
  python -m server --repository /models --version 3  a given version of another repository
  python -m server --workers 4                       four processes behind one port
  AWNET_MAX_BATCH=8 python -m server                 every option is also a variable
  python -m server --config server.toml              and a line of a file: max_batch = 8

  curl -F image=@image.png http://127.0.0.1:8000/predict

exit status: 0 it was told to stop, 1 the model cannot be served or the server failed,
2 a setting, a port or a file that a setting names cannot be used
"""


def main(arguments: list[str] | None = None, called: str = CALLED) -> int:
    """Serve until told to stop. Returns the exit status, as EXAMPLES says.

    Args:
        called: how whoever asks calls this program.
    """
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a reload before there is anything to reload must not kill
    try:
        settings = read_settings(arguments, called)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    if settings.model_source:
        fetched = _with_model(settings)
        if fetched is None:
            return 1
        settings = fetched
    # A supervisor that serves nothing itself needs little of what a server needs, and no server needs a supervisor.
    if settings.workers > 1:
        from .workers.supervisor import supervise

        return supervise(settings, program(f"{__package__}.process"))
    gc.disable()  # what is imported is no garbage, and to look for some takes an eighth of what the imports take
    from .process.process import serve

    gc.enable()
    return serve(settings)


def _with_model(settings: Settings) -> Settings | None:
    """The settings once their model source was fetched; None where it could not be, and the log says why."""
    # Imported only here: a server that fetches nothing needs no client.
    from .model_sources.startup import fetch, run
    from .monitoring.log_writer import log_to_stderr

    log_to_stderr(settings.log_level, "%(name)s")
    before = {sent: signal.getsignal(sent) for sent in (signal.SIGTERM, signal.SIGINT)}
    try:
        return run(fetch(settings), *before)
    except asyncio.CancelledError:
        sys.exit(0)
    except AWNetError as error:
        logging.getLogger("awnet").critical("%s: %s", error.title, error.detail)
        return None
    finally:
        for sent, handler in before.items():
            signal.signal(sent, handler)
        logging.root.handlers.clear()  # whoever serves sets up a log of its own


def read_settings(arguments: list[str] | None = None, called: str = CALLED) -> Settings:
    """The settings of `arguments` (default: the command line); see `options.settings_of`. Raises SettingsError."""
    parser = argparse.ArgumentParser(
        prog=called,
        usage="%(prog)s [--config FILE] [--port PORT] ...   (--help lists every option)",
        description="Serve an AW-Net over HTTP.\nEvery option is also a variable, --max-batch is AWNET_MAX_BATCH, "
        "and a line of the\nfile that --config names, max_batch = 8. An option without a default is off.",
        epilog=EXAMPLES.replace(CALLED, called),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(parser)
    given, rest = parser.parse_known_args(arguments)
    only_known(rest)
    return settings_of(vars(given))


if __name__ == "__main__":
    sys.exit(main())

"""`python -m awnet.ray`: `awnet.ray:app` on a Ray of this machine, or on a cluster, until told to stop."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Sequence

from server.errors import StartupError
from server.ports.listening import bind
from server.settings.options import SettingsError, add_settings, only_known, settings_of
from server.settings.settings import Settings

from ..local import StartError
from . import INSTALL
from .local import prepare, start
from .settings import given_settings, replica_settings

EXAMPLES = """examples:
  python -m awnet.ray                                        one to four replicas, 127.0.0.1:8000
  python -m awnet.ray --min-replicas 2 --max-replicas 8 --port 9000 --threads 1
  python -m awnet.ray --address auto                         on the cluster that runs on this machine
  serve run awnet.ray:app                                    Ray's own command; settings are AWNET_* variables
  serve deploy deploy/ray/serve.yaml

exit status: 0 it was told to stop, 1 no replica can serve, 2 an option, a setting or a port cannot be used
"""


def parser() -> argparse.ArgumentParser:
    """The options: Ray's, and each setting of the server."""
    made = argparse.ArgumentParser(
        "python -m awnet.ray",
        usage="%(prog)s [--min-replicas N] [--max-replicas N] [--port PORT] ...   (--help lists every option)",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--address", metavar="ADDRESS", help="of a cluster (default: a Ray of this machine)")
    add("--min-replicas", type=int, default=1, metavar="N", help="replicas at least (default: 1)")
    add("--max-replicas", type=int, default=4, metavar="N", help="replicas at most, each on one core (default: 4)")
    add_settings(made)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status, as EXAMPLES says."""
    given, rest = parser().parse_known_args(arguments)
    try:
        only_known(rest)
        if not 1 <= given.min_replicas <= given.max_replicas:
            raise SettingsError("--min-replicas is at least 1, and --max-replicas no less")
        settings = settings_of(vars(given))
        replica_settings(settings, 1)
        prepare()
        import ray  # noqa: F401 # whether it is there, before anything is begun

        for tried in bind(settings.host, settings.port, "--port"):
            tried.close()
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        print(f"python -m awnet.ray needs ray: {INSTALL}", file=sys.stderr)
        return 2
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except StartupError as error:
        print(f"{error.title}: {error.detail}", file=sys.stderr)
        return 2
    try:
        return _serve(settings, given)
    except StartError as error:
        print(error, file=sys.stderr)
        return 1


def _serve(settings: Settings, given: argparse.Namespace) -> int:
    import ray
    from ray import serve

    from .replica import autoscaling, deployment

    # A Ray of its own counts at least as many cores as replicas: they then share those of the machine.
    cores = max(given.max_replicas, os.cpu_count() or 1)
    ended = threading.Event()
    start(given.address, lambda *_: ended.set(), log=True, num_cpus=cores)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": settings.host, "port": settings.port})
        replicas = autoscaling(given.min_replicas, given.max_replicas)
        served = deployment.options(autoscaling_config=replicas).bind(given_settings(settings))
        try:
            serve.run(served, route_prefix="/")
        except RuntimeError as error:  # the replicas' own words are in the log above
            print(f"no replica serves: {error}", file=sys.stderr)
            return 1
        ended.wait()
        return 0
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())

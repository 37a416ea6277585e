"""Options that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_server(parser: argparse.ArgumentParser) -> None:
    """--url and --key; `answerers.answerer` reads them."""
    add = parser.add_argument
    add("--url", help="ask the server there, such as http://127.0.0.1:8000 (default: in this process)")
    add(
        "--key",
        metavar="KEY",
        help="API key for that server; @FILE reads it from a file, so that no process list has it",
    )


def add_repository(parser: argparse.ArgumentParser) -> None:
    """--out and --name: where a new version is published; never where a server looks by default."""
    add = parser.add_argument
    add(
        "--out",
        "--repository",
        dest="repository",
        type=Path,
        default=Path("calibrated"),
        metavar="DIR",
        help="repository that the new version is written to, made where it is missing; its number is above those that "
        "are there and above the model's own; a server of that folder takes it (default: %(default)s)",
    )
    add("--name", default="awnet", help="name of the model there (default: %(default)s)")

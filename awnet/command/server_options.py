"""Options of the commands that ask a model, in this process or behind a URL."""

from __future__ import annotations

import argparse


def add_server(parser: argparse.ArgumentParser) -> None:
    """--url and --key; `answerers.answerer` reads them."""
    add = parser.add_argument
    add("--url", help="ask the server there, such as http://127.0.0.1:8000 (default: in this process)")
    add(
        "--key",
        metavar="KEY",
        help="API key for that server; @FILE reads it from a file, so that no process list has it",
    )

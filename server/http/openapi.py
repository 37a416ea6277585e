"""The page at `/docs`: the OpenAPI document of the server, for people. No script, nothing from another host."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2.5rem 0 .25rem; font-size: 1.1rem; overflow-wrap: anywhere; }
h3 { margin: 1.25rem 0 .25rem; font-size: 1rem; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid #8885; padding: .35rem .75rem .35rem 0; vertical-align: top; }
code { font-size: .95em; }
td:first-child { white-space: nowrap; }
"""
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def html(openapi: Mapping[str, Any]) -> str:
    """The page for an OpenAPI document. Addresses in it are relative, so that a prefix of a proxy does no harm."""
    title = escape(openapi["info"]["title"])
    parts = [
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}: HTTP interface</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n<main>\n<h1>{title}: HTTP interface</h1>\n"
        f"<p>{escape(openapi['info'].get('description', ''))}</p>\n"
        '<p>For programs: <a href="openapi.json">openapi.json</a>.</p>'
    ]
    for path, methods in sorted(openapi["paths"].items(), key=lambda item: item[0] != "/predict"):
        for method, told in methods.items():
            parts += _operation(method.upper(), path, told)
    return "\n".join([*parts, "</main>\n</html>\n"])


def _operation(method: str, path: str, told: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{method} {escape(path)}</code></h2>\n<p>{escape(told.get('summary', ''))}</p>"
    if body := told.get("requestBody"):
        kinds = ", ".join(f"<code>{escape(kind)}</code>" for kind in body["content"])
        yield f"<h3>Body</h3>\n<p>{kinds}</p>"
    if parameters := told.get("parameters"):
        yield "<h3>Parameters</h3>\n<table>"
        for given in parameters:
            cells = f"<td><code>{escape(given['name'])}</code></td><td>{escape(given['in'])}</td>"
            yield f"<tr>{cells}<td>{escape(given.get('description', ''))} {_values(given.get('schema', {}))}</td></tr>"
        yield "</table>"
    yield "<h3>Answers</h3>\n<table>"
    for status, answer in told["responses"].items():
        yield f"<tr><td>{escape(status)}</td><td>{escape(answer['description'])}</td></tr>"
    yield "</table>"


def _values(schema: Mapping[str, Any]) -> str:
    """Which values a parameter takes, as far as its schema says so."""
    told = []
    if "enum" in schema:
        told.append("One of " + ", ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"]) + ".")
    if "minimum" in schema:
        told.append(f"At least {schema['minimum']}.")
    if "default" in schema:
        told.append(f"Left out: <code>{escape(str(schema['default']))}</code>.")
    return " ".join(told)

"""The OpenAPI document of the server, and the page at `/docs` that shows it to people.

The page has no script and nothing from another host; its form is the browser's own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..access.caller import Scope
from ..core.engine import PRIORITIES
from ..core.modes import LOGITS
from . import openapi_paths
from .description import Description
from .openapi_paths import problems, ref, response
from .query import DEFAULT_TOP_K, SignalsLevel
from .schemas import Answer, Base64Images

PREDICT_PROBLEMS = {
    400: "The body is not what its headers say.",
    404: "No such model, or that version of it is not served.",
    405: "Only POST is answered here.",
    406: "The answer is JSON, which the Accept header does not allow.",
    408: "The body came too slowly.",
    413: "The body, an image, or the number of images is too large.",
    415: "Neither PNG, JPEG nor WebP, or an encoded body.",
    422: "No image, none that can be decoded, an unknown query value, a mode that the model lacks, or a policy rejects "
    "every image.",
    429: "This client asks too often, or has too many images in the queue; try again after `Retry-After` seconds.",
    503: "The queue is full or the model is not ready; try again after `Retry-After` seconds.",
    504: "The answer would have come after the deadline.",
}


KEY_PROBLEMS = {401: "No key, or one that is not known.", 403: "The key lacks the scope."}
MODEL_PROBLEMS = {status: PREDICT_PROBLEMS[status] for status in (404, 422, 503)} | {422: "An unknown query value."}
VERSION = {
    "name": "version",
    "in": "query",
    "description": "Which of its versions; left out, the one that serves.",
    "schema": {"type": "string", "default": "latest"},
}


def complete(openapi: dict[str, Any], model: str) -> dict[str, Any]:
    """`openapi` with the routes that are not FastAPI's, and with what its own take and give.

    Args:
        openapi: as FastAPI makes it.
        model: the name of one that is served.
    """
    described: tuple[type[BaseModel], ...] = (Answer, Base64Images, *openapi_paths.SHAPES)
    _, shapes = models_json_schema(
        [(shape, "serialization") for shape in described],
        ref_template="#/components/schemas/{model}",
    )
    openapi.setdefault("components", {}).setdefault("schemas", {}).update(shapes["$defs"])
    paths = openapi.setdefault("paths", {})
    paths["/predict"] = {"post": _predict()}
    paths["/model"]["get"] |= {
        "parameters": [
            {
                "name": "name",
                "in": "query",
                "description": "Which model; left out, the default one.",
                "schema": {"type": "string"},
            },
            VERSION,
        ],
        "responses": {"200": response("The model.", Description), **problems(MODEL_PROBLEMS)},
    }
    for name, not_so in (("live", None), ("ready", "It is not.")):
        flag = {"type": "object", "required": [name], "properties": {name: {"type": "boolean"}}}
        answers = {"200": "It is."} if not_so is None else {"200": "It is.", "503": not_so}
        paths[f"/v2/health/{name}"]["get"]["responses"] = {
            status: {"description": about, "content": {"application/json": {"schema": flag}}}
            for status, about in answers.items()
        }
    if "/metrics" in paths:
        text = {"schema": {"type": "string"}}
        paths["/metrics"]["get"]["responses"] = {
            "200": {"description": "In the text format of Prometheus.", "content": {"text/plain": text}}
        }
    paths |= openapi_paths.protocol(model)
    paths |= openapi_paths.admin(model)
    for methods in paths.values():
        for method in set(methods) - {"servers"}:
            methods[method]["responses"] |= problems({429: PREDICT_PROBLEMS[429]})
    return openapi


def secured(openapi: dict[str, Any], needed: Callable[[str], Scope | None]) -> dict[str, Any]:
    """`openapi` of a server with keys: how one is sent, and the scope that each path needs, None for none."""
    openapi["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, methods in openapi["paths"].items():
        scope: Scope | None = "admin" if path.startswith("/admin/") else needed(path)
        for operation in (methods[method] for method in methods if method != "servers"):
            operation["security"] = [] if scope is None else [{"bearer": [scope]}, {"header": [scope]}]
            if scope is not None:
                operation["responses"] |= problems(KEY_PROBLEMS)
    return openapi


def _predict() -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    files = {"type": "array", "items": binary["schema"], "minItems": 1}
    form = {"type": "object", "required": ["image"], "properties": {"image": files}}
    return {
        "summary": "Which class, and was the image tampered with?",
        "operationId": "predict",
        "parameters": [
            {
                "name": "top_k",
                "in": "query",
                "description": "How many classes to name, most probable first.",
                "schema": {"type": "integer", "minimum": 1, "default": DEFAULT_TOP_K},
            },
            {
                "name": "signals",
                "in": "query",
                "description": "Add omega: mean and std of each block, or all values too.",
                "schema": {"type": "string", "enum": list(get_args(SignalsLevel)), "default": "none"},
            },
            {
                "name": "model",
                "in": "query",
                "description": "Which model is to answer; left out, the default one.",
                "schema": {"type": "string"},
            },
            VERSION,
            {
                "name": "mode",
                "in": "query",
                "description": "Which branch says the class: `auto` weighs both, `robust` is the adversarial one, "
                "`natural` the other. Left out, the server's default; the model has to have it.",
                "schema": {"type": "string", "enum": list(LOGITS)},
            },
            {
                "name": "timeout_ms",
                "in": "query",
                "description": "Give the request up after this long; never longer than the server's own limit.",
                "schema": {"type": "integer", "minimum": 1},
            },
            {
                "name": "priority",
                "in": "query",
                "description": "'low' is answered when nothing of normal priority waits.",
                "schema": {"type": "string", "enum": list(PRIORITIES), "default": "normal"},
            },
            {
                "name": "X-Request-ID",
                "in": "header",
                "description": "Taken over if it has 1 to 64 of the characters A-Z a-z 0-9 . _ -",
                "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form},
                "image/png": binary,
                "image/jpeg": binary,
                "image/webp": binary,
                "application/octet-stream": binary,
                "application/json": {"schema": ref(Base64Images)},
            },
        },
        "responses": {
            "200": response("One result for each image, in their order.", Answer),
            **problems(PREDICT_PROBLEMS),
        },
    }


STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2.5rem 0 .25rem; font-size: 1.1rem; overflow-wrap: anywhere; }
h3 { margin: 1.25rem 0 .25rem; font-size: 1rem; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid #8885; padding: .35rem .75rem .35rem 0; vertical-align: top; }
code { font-size: .95em; }
td:first-child { overflow-wrap: anywhere; min-width: 7rem; }
"""
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


FORM = """<form action="predict" method="post" enctype="multipart/form-data">
<label>Images to try
<input type="file" name="image" accept="image/png,image/jpeg,image/webp" multiple required></label>
<button>Ask</button>
</form>"""
KEYED = """<p>Here a key is needed, which a form cannot send:
<code>curl -H "Authorization: Bearer KEY" -F image=@FILE .../predict</code></p>"""


def html(openapi: Mapping[str, Any]) -> str:
    """The page for an OpenAPI document. Addresses in it are relative, so that a prefix of a proxy does no harm."""
    title = escape(openapi["info"]["title"])
    parts = [
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}: HTTP interface</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n<main>\n<h1>{title}: HTTP interface</h1>\n"
        f"<p>{escape(openapi['info'].get('description', ''))}</p>\n"
        '<p>For programs: <a href="openapi.json">openapi.json</a>.</p>\n'
        + (KEYED if "securitySchemes" in openapi["components"] else FORM)
    ]
    for path, methods in sorted(openapi["paths"].items(), key=lambda item: item[0] != "/predict"):
        for method in (method for method in methods if method != "servers"):
            parts += _operation(method.upper(), path, methods[method])
    return "\n".join([*parts, "</main>\n</html>\n"])


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{method} {escape(path)}</code></h2>\n<p>{escape(operation.get('summary', ''))}</p>"
    for scheme in operation.get("security", ())[:1]:
        [scope] = scheme["bearer"]
        yield f"<p>Needs a key with the scope <code>{escape(scope)}</code>: <code>Authorization: Bearer KEY</code>.</p>"
    if body := operation.get("requestBody"):
        kinds = ", ".join(f"<code>{escape(kind)}</code>" for kind in body["content"])
        yield f"<h3>Body</h3>\n<p>{kinds}</p>"
    if parameters := operation.get("parameters"):
        yield "<h3>Parameters</h3>\n<table>"
        for given in parameters:
            cells = f"<td><code>{escape(given['name'])}</code></td><td>{escape(given['in'])}</td>"
            yield f"<tr>{cells}<td>{escape(given.get('description', ''))} {_values(given.get('schema', {}))}</td></tr>"
        yield "</table>"
    yield "<h3>Answers</h3>\n<table>"
    for status, answer in operation["responses"].items():
        yield f"<tr><td>{escape(status)}</td><td>{escape(answer['description'])}</td></tr>"
    yield "</table>"


def _values(schema: Mapping[str, Any]) -> str:
    """Which values a parameter takes, as far as its schema says so."""
    sentences = []
    if "enum" in schema:
        sentences.append("One of " + ", ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"]) + ".")
    if "minimum" in schema:
        sentences.append(f"At least {schema['minimum']}.")
    if "default" in schema:
        sentences.append(f"Left out: <code>{escape(str(schema['default']))}</code>.")
    return " ".join(sentences)

"""Serves the page at `/`: its files, the two documents that it requests, and its security headers.

Plain Python; `app` translates. The files of `assets/` are read once, at start, and served unchanged: there is no build
step and nothing comes from another host. The page itself uses `/predict` like every other client.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ..access.caller import ANYBODY, Caller
from ..core.bundled import EXAMPLES as EXAMPLES_FOLDER
from ..core.engine import Model
from ..core.modes import Mode
from ..core.verdict import significant
from ..monitoring.verdict_history import VerdictHistory
from ..oip.rest import Reply
from .caching import NO_STORE, REVALIDATE, matches, tag_of

log = logging.getLogger("awnet")

ASSETS = Path(__file__).parent / "assets"
INDEX = "/"
PREFIX = "/page/"
MODELS, RECENT, EXAMPLES = f"{PREFIX}model.json", f"{PREFIX}recent.json", f"{PREFIX}examples.json"

TWIN = "-adversarial"  # examples/ship.png and examples/ship-adversarial.png
RECIPE = "twins.json"  # how the twins were made, as examples/attack.py writes it
MAX_EXAMPLES, EXAMPLE_BYTES = 32, 64 << 10

MEDIA = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".png": b"image/png",
}
JSON = b"application/json"

# Nothing inline, nothing from elsewhere; `blob:` is the preview of the visitor's own image.
POLICY = b"; ".join(
    (
        b"default-src 'none'",
        b"script-src 'self'",
        b"style-src 'self'",
        b"img-src 'self' blob:",
        b"connect-src 'self'",
        b"base-uri 'none'",
        b"form-action 'none'",
        b"frame-ancestors 'none'",
        b"require-trusted-types-for 'script'",
    )
)
HEADERS = [
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]

Loaded = Callable[[], Mapping[str, Mapping[int, Model]]]


@dataclass(frozen=True, slots=True)
class _File:
    """One body that does not change, with its entity tag.

    The names of the files do not change with their content, so a browser asks each time and mostly hears 304.
    """

    media: bytes
    body: bytes
    etag: bytes


class Page:
    """Everything under `/` and `/page/`.

    Args:
        loaded: the models that can answer now, name -> version -> model.
        default: the model that answers where a request names none.
        mode: the operating mode in which it does.
        by_keys: callers have keys.
        verdict_history: the verdicts of the last minutes.
        examples: a folder with images to try, `NAME.png` and `NAME-adversarial.png`, and `twins.json`, which says how
            the latter were made; where there is none, the page offers none.
        max_body_bytes: of a file that is taken; the page sends a smaller copy of a larger one, and says so.
    """

    def __init__(
        self,
        loaded: Loaded,
        default: str,
        verdict_history: VerdictHistory,
        examples: Path = EXAMPLES_FOLDER,
        mode: Mode = "auto",
        by_keys: bool = False,
        max_body_bytes: int = 8 << 20,
    ) -> None:
        self._loaded = loaded
        self._default = default
        self._mode = mode
        self._by_keys = by_keys
        self._max_body_bytes = max_body_bytes
        self._verdict_history = verdict_history
        self._files = {INDEX: _file(ASSETS / "index.html")}
        for path in sorted(ASSETS.iterdir()):
            if path.suffix in MEDIA and path.name != "index.html":
                self._files[PREFIX + path.name] = _file(path)
        pairs = _examples(examples)
        for path in (path for pair in pairs.values() for path in pair):
            self._files[f"{PREFIX}examples/{path.name}"] = _file(path)
        made = _made(examples / RECIPE)
        listed = [
            {
                "name": name,
                "clean": f"examples/{clean.name}",
                "attacked": f"examples/{attacked.name}",
                "made": made.get(hashlib.sha256(attacked.read_bytes()).hexdigest()),
            }
            for name, (clean, attacked) in pairs.items()
        ]
        self._files[EXAMPLES] = _tagged(JSON, orjson.dumps({"examples": listed}))
        self._described: dict[str, dict[str, Any]] = {}  # by sha256 of the model: what never changes about it

    @property
    def files(self) -> Container[str]:
        """Paths of its own files, the same in every server: nothing in them is anybody's."""
        return self._files

    def answer(self, path: str, headers: Mapping[bytes, bytes], caller: Caller = ANYBODY) -> Reply | None:
        """Status, headers and body of what lies at a path of the page; None where there is nothing.

        Args:
            path: as the client sent it, without its query.
            headers: names in lower case.
            caller: who asks, which the page is told.
        """
        if path == RECENT:
            body, cache, etag = orjson.dumps(self._verdict_history.document()), NO_STORE, b""
            media = JSON
        else:
            file = _tagged(JSON, self._models(caller)) if path == MODELS else self._files.get(path)
            if file is None:
                return None
            body, media, cache, etag = file.body, file.media, REVALIDATE, file.etag
        given = [*HEADERS, (b"cache-control", cache)]
        if etag:
            given.append((b"etag", etag))
            if matches(headers.get(b"if-none-match", b""), etag):
                return 304, given, b""
        return 200, [*given, (b"content-type", media)], body

    def _models(self, caller: Caller) -> bytes:
        """What the page shows of each loaded model; the default one first, its newest version first. And to whom."""
        listed = []
        for name, versions in sorted(self._loaded().items(), key=lambda item: (item[0] != self._default, item[0])):
            for model in sorted(versions.values(), key=lambda model: -model.version):
                described = self._described.setdefault(f"{model.sha256} {name} {model.version}", _description(model))
                listed.append({**described, "default": name == self._default})
        alive = {f"{described['sha256']} {described['name']} {described['version']}" for described in listed}
        self._described = {key: described for key, described in self._described.items() if key in alive}
        known = {
            "key": caller.name,
            "keys": self._by_keys,
            "answers": caller.answers,
            "signals": caller.sees_signals,
        }
        return orjson.dumps(
            {
                "models": listed,
                "default_mode": caller.mode or self._mode,
                "caller": known,
                "max_body_bytes": self._max_body_bytes,
            }
        )


def _description(model: Model) -> dict[str, Any]:
    """The part of the contract that the page shows; golden inputs and provenance stay inside."""
    contract = model.contract
    mean, std = contract.reference.omega_mean.tolist(), contract.reference.omega_std.tolist()
    points = {"suspicious": contract.thresholds.suspicious, "adversarial": contract.thresholds.adversarial}
    return {
        "name": model.name,
        "version": str(model.version),
        "sha256": model.sha256,
        "labels": list(contract.labels),
        "size": contract.preprocessing.size,
        "modes": list(contract.modes),
        "thresholds": {name: {"score": point.score, "fpr": point.fpr} for name, point in points.items()},
        "reference": {
            "images": contract.reference.images,
            "convolutions": [
                {
                    "name": part.name,
                    "mean": [significant(value) for value in mean[part.offset : part.offset + part.length]],
                    "std": [significant(value) for value in std[part.offset : part.offset + part.length]],
                }
                for part in contract.omega
            ],
        },
    }


def _examples(folder: Path) -> dict[str, tuple[Path, Path]]:
    """name -> (clean, attacked), pairs only; a folder that is not there holds none."""
    pairs = {}
    for clean in sorted(folder.glob("*.png")):
        attacked = clean.with_name(f"{clean.stem}{TWIN}.png")
        if attacked.is_file() and max(clean.stat().st_size, attacked.stat().st_size) <= EXAMPLE_BYTES:
            pairs[clean.stem] = (clean, attacked)
    if len(pairs) > MAX_EXAMPLES:
        log.warning("%d examples in %s; the page offers the first %d", len(pairs), folder, MAX_EXAMPLES)
    return dict(list(pairs.items())[:MAX_EXAMPLES])


def _made(recipe: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 of a twin -> how it was made; of files that have changed since nothing is said."""
    try:
        document = orjson.loads(recipe.read_bytes())
        how = {name: document[name] for name in ("command", "attack", "eps", "step", "steps", "surrogates")}
        return {
            twin["sha256"]: {**how, "label": twin["label"], "fooled": [list(said) for said in twin["fooled"]]}
            for twin in document["twins"].values()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s does not say how the examples were made: %r", recipe, error)
        return {}


def _file(path: Path) -> _File:
    return _tagged(MEDIA[path.suffix], path.read_bytes())


def _tagged(media: bytes, body: bytes) -> _File:
    return _File(media, body, tag_of(body))

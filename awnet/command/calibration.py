"""Scores natural images by a model in this process, and publishes that with a domain for them; see `calibrate`."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from domain import __version__
from domain.shares import enough_for, wilson
from export.repository.layout import MODEL_FILE, versions
from export.repository.layout import NAME as MODEL_NAME
from server.core.bundled import model_repository
from server.core.domains import RATE_POINTS
from server.core.images import EncodedImage
from server.engines.model_file import VERSION
from server.errors import AWNetError
from server.settings.settings import Settings

from ..client.local import LocalSettings
from ..local import Local
from . import site
from .images import Image, images, shown
from .plot import drawn
from .site import KINDS, Seen
from .versions import VersionError, contract_of, publish, published, with_contract

PROGRESS_EVERY = 25  # images

Variants = Callable[[bytes], Iterator[tuple[str, bytes]]]


@dataclass(frozen=True)
class Task:
    """What is calibrated on what, and where it goes; see the options of `calibrate`."""

    model: Path
    images: Sequence[str]
    adversarial: Sequence[str]
    repository: Path
    name: str
    report: Path | None
    concurrency: int


def which_model(name: str) -> Path:
    """The file of the latest version of `name` where a server looks for models. Raises VersionError."""
    home = model_repository() / name
    there = versions(home) if home.is_dir() else []
    if not there:
        raise VersionError(f"no version of a model {name} in {home.parent}: name its file with --model")
    return home / str(there[-1]) / MODEL_FILE


async def calibrate(task: Task) -> dict[str, Any]:
    """Calibrate, publish and write the report; returns it. Nothing is published where anything is raised.

    Raises:
        ValueError: of the images, the model or the name; AWNetError, StartError: of the model; OSError.
    """
    if not MODEL_NAME.fullmatch(task.name):
        raise VersionError(f"--name {task.name!r} is no model name")
    if task.model.is_dir():
        raise VersionError(f"{task.model} is a folder; --model takes the model.onnx in it")
    if not task.model.is_file():
        what = "no model file" if task.model.exists() else "no such file"
        raise VersionError(f"{task.model}: {what}; `awnet doctor` says where models are")
    data = await asyncio.to_thread(task.model.read_bytes)
    contract = contract_of(data)
    natural, hostile = images(task.images), images(task.adversarial)
    async with Local(_settings(task.model)) as local:
        seen, unread = await observe(local, natural, site.variants, task.concurrency)
        adversarial, unread_too = await observe(local, hostile, site.alone, task.concurrency)
    added = site.domain(seen, contract)
    groups = {kind: site.checked(seen, kind) for kind in KINDS} | ({"adversarial": adversarial} if adversarial else {})
    before, after = (
        {name: site.flagged(group, these) for name, group in groups.items()}
        for these in (contract, site.with_site(contract, added))
    )
    made = site.with_site(contract, {**added, "rates": site.rates(after)})
    sha256 = hashlib.sha256(data).hexdigest()
    about = {"model_sha256": sha256, "images": len({one.digest for one in seen}), "awnet": __version__}
    made["provenance"] = {**contract.get("provenance", {}), "site": about}
    finished = with_contract(data, made)
    await proven(finished)
    folder = publish(finished, task.repository, task.name, task.model)
    document = {
        "from": {"file": str(task.model), "sha256": sha256},
        "published": str(folder),
        "images": about["images"],
        "unread": unread | unread_too,
        "thresholds": {point: _threshold(seen, added["thresholds"][point]) for point in RATE_POINTS},
        "flagged": {name: {"before": before[name], "after": after[name]} for name in groups},
    }
    if task.report is not None:
        task.report.parent.mkdir(parents=True, exist_ok=True)
        task.report.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
        lines = {"before": site.usual_thresholds(seen, contract), "after": added["thresholds"]}
        task.report.with_suffix(".svg").write_text(drawn(site.by_kind(seen), lines), "utf-8")
    return document


async def observe(
    local: Local, given: Sequence[Image], variants: Variants, concurrency: int
) -> tuple[list[Seen], dict[str, str]]:
    """Every different image in each of its variants, in their order; name -> why, of those that cannot be read."""
    room, done = asyncio.Semaphore(concurrency), 0
    known: set[str] = set()
    unread: dict[str, str] = {}

    async def look(image: Image) -> list[Seen]:
        nonlocal done
        async with room:
            try:
                data = await asyncio.to_thread(image.read)
                digest = hashlib.sha256(data).hexdigest()
                if digest in known:
                    return []
                known.add(digest)
                encoded = await asyncio.to_thread(lambda: list(variants(data)))
                found = [await _score(local, kind, one, digest) for kind, one in encoded]
            except (OSError, ValueError, AWNetError) as error:
                unread[image.name] = str(error)
                return []
            finally:
                done += 1
                if sys.stderr.isatty() and (done % PROGRESS_EVERY == 0 or done == len(given)):
                    end = "\n" if done == len(given) else ""
                    print(f"\r{done} of {len(given)}images", end=end, file=sys.stderr, flush=True)
            return found

    parts = await asyncio.gather(*(look(image) for image in given))
    return [one for part in parts for one in part], unread


async def _score(local: Local, kind: str, data: bytes, digest: str) -> Seen:
    """Raises AWNetError."""
    service = local.service
    image = EncodedImage(data, service.limits)
    with service.lease() as lease:
        outcome = await service.run(lease, [image], service.terms())
    assert image.decoded is not None
    corner = await asyncio.to_thread(site.corner, image.decoded.pixels, digest)
    return Seen(digest, kind, float(outcome.signals.p_type[0, 0]), image.traits, corner)


async def proven(model: bytes) -> None:
    """Open the new file as a server would: its contract is read, its golden values hold. Raises StartError."""
    with tempfile.TemporaryDirectory(prefix="awnet-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        async with Local(_settings(path)):
            pass


def _settings(model: Path) -> Settings:
    """Of the file alone: no variable says how it is judged."""
    given: dict[str, Any] = {"repository": model, "version": str(VERSION), "timeout_seconds": 600.0}
    return LocalSettings(**given)


def _threshold(seen: Sequence[Seen], made: dict[str, float]) -> dict[str, Any]:
    """The threshold, between which scores it might as well lie, the same a kind, and how well the rate is known:
    `rate` as [share, low, high] of `images`, of which it takes `enough`, checked ones included, for a factor of two."""
    fitted = site.usable([one for one in seen if not one.checks])
    scores = {kind: np.sort([one.score for one in fitted if one.kind == kind]) for kind in KINDS}
    ends = {kind: site.uncertain(ordered, made["fpr"]) for kind, ordered in scores.items()}
    kinds = {kind: [site.quantile(made["fpr"])(scores[kind]), *ends[kind]] for kind in KINDS}
    n = len(scores[KINDS[0]])
    return {
        **made,
        "low": max(low for low, _ in ends.values()),
        "high": max(high for _, high in ends.values()),
        "kinds": kinds,
        "images": n,
        "rate": wilson(made["fpr"] * n, n),
        "enough": 2 * enough_for(made["fpr"]),
    }


def summary(document: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"{document['images']} different natural images; {len(document['unread'])} could not be read",
        *(shown(f"  {name}: {why}") for name, why in list(document["unread"].items())[:5]),
    ]
    for point, made in document["thresholds"].items():
        share, low, high = (100 * value for value in made["rate"])
        known = f"{share:.0f} % of {made['images']} images, which may be {low:.1f} to {high:.1f} %"
        lines.append(f"{point:<12}score over {made['score']:.6g} ({made['low']:.6g} to {made['high']:.6g}): {known}")
        for kind, (score, least, most) in made["kinds"].items():
            lines.append(f"  {kind:<12}alone {score:.6g} ({least:.6g} to {most:.6g})")
        if 2 * made["images"] < made["enough"]:
            few = f"{document['images']} images are few for a threshold at {share:.0f} %"
            lines.append(f"  {few}: {made['enough']} would know it within a factor of two")
    for kind, rows in document["flagged"].items():
        for when, row in rows.items():
            shares = ", ".join(
                f"{100 * row[point][0]:.1f} % ({100 * row[point][1]:.1f} to {100 * row[point][2]:.1f}) {point}"
                for point in RATE_POINTS
            )
            lines.append(f"{kind:<10} {when:<7} {shares}, {row['calibrated']} of {row['images']} calibrated")
    return "\n".join(lines + published(Path(document["published"])))

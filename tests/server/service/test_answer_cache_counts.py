"""The answer cache is bounded, and whatever it answers counts as any answer does."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from server.core.engine import Signals
from server.core.images import EncodedImage, Limits, PixelArray
from server.guard.fingerprint import Fingerprints
from server.monitoring import request_log
from server.service.answer_cache import ANSWER_BYTES, INLINE_BYTES, AnswerCache
from server.settings.settings import Settings
from tests.server.cached import ADVERSARIAL, CLEAN, OTHER, Cached, file
from tests.server.guard.test_guard import variants
from tests.server.small import Small
from tests.server.tiny import SIZE, encoded, noise
from tests.waiting import until

Serve = Callable[..., Cached]


def test_a_flood_of_images_costs_the_cache_what_it_has_and_no_more(serve_cached: Serve) -> None:
    """What was used longest ago goes first, and what the metrics say is what there is."""
    small = serve_cached(answer_cache=8)
    assert small.series("awnet_answer_cache_answers") == {}
    small.predict(CLEAN)
    size = small.series("awnet_answer_cache_bytes")[""]
    for seed in range(30):
        assert small.predict(encoded(noise(seed=seed)), address=OTHER).status_code == 200
        if seed % 5 == 0:
            assert small.predict(CLEAN).json()["cached"] is True
    for seed in range(30, 38):
        small.predict(encoded(noise(seed=seed)), address=OTHER)
    assert "cached" not in small.predict(CLEAN).json()
    assert small.series("awnet_answer_cache_answers") == {"": 8}
    assert small.series("awnet_answer_cache_bytes") == {"": 8 * size}


# What is counted.


def test_an_attacked_image_sent_again_and_again_is_as_many_detections(serve_cached: Serve, tmp_path: Path) -> None:
    """In verdicts, scores, the CUSUM, decisions, findings and the request log: all series are as without a cache."""
    families = [f"awnet_{name}" for name in ("verdict", "score", "mode", "policy", "cusum", "omega", "findings")]
    lines: dict[str, list[Any]] = {}
    counted: dict[str, dict[str, float]] = {}
    flagged: dict[str, Any] = {}
    for name, answers in (("without", 0), ("with", 100)):
        small = serve_cached(answer_cache=answers, findings_dir=tmp_path / name, request_log=True)
        stream = io.StringIO()
        request_log.configure(True, handler=logging.StreamHandler(stream))
        small.service._reporting.start()  # type: ignore[union-attr]
        for _ in range(25):
            assert small.predict(ADVERSARIAL).status_code == 200
            assert small.predict(CLEAN).status_code == 200
        small.run(small.service._reporting.stop())  # type: ignore[union-attr]
        request_log.configure(False)
        lines[name] = [json.loads(line) for line in stream.getvalue().splitlines()]
        counted[name] = {n: value for family in families for n, value in small.series(family).items()}
        flagged[name] = [client.flagged for client in small.service.monitor.clients.top()]
        assert small.asked == (2 if answers else 50)
    assert counted["with"] == counted["without"]
    assert any("adversarial" in label and value == 25 for label, value in counted["with"].items())
    assert flagged["with"] == flagged["without"] != []
    assert [line["verdicts"] for line in lines["with"]] == [line["verdicts"] for line in lines["without"]]
    assert sum(line.get("cached", False) for line in lines["with"]) == 48
    assert not any("cached" in line for line in lines["without"])


def test_stages_are_those_of_the_engine_alone(serve_cached: Serve) -> None:
    """A thousand answers from the cache would make any engine look fast."""
    small = serve_cached()
    for _ in range(5):
        small.predict(CLEAN)
    assert list(small.series("awnet_stage_seconds_count").values()) == [1, 1, 1]


def test_the_query_guard_sees_what_it_would_see_without(serve_cached: Serve) -> None:
    """Images alike, some of them twice: the numbers told are the same, and repeated queries are held back the same."""
    images = [file(pixels) for pixels in variants(0, 14)]
    asked = [*images[:6], *images[:6], *images[6:], *images[::-1]]
    reports = []
    for answers in (0, 100):
        small = serve_cached(answer_cache=answers, query_guard="flag", query_guard_images=8)
        reports.append([small.predict(image).json()["results"][0]["query_guard"] for image in asked])
        assert small.asked == (len(images) if answers else len(asked))
        assert small.series("awnet_query_guard_images_total") != {}
        reports.append(small.series("awnet_query_guard_images_total"))
    assert reports[:2] == reports[2:]
    assert any(said["repeated"] for said in reports[0])


def test_the_cache_does_not_answer_past_a_rate(serve_cached: Serve) -> None:
    small = serve_cached(requests_per_second=1e-3, request_burst=3)
    assert [small.predict(CLEAN).status_code for _ in range(5)] == [200, 200, 200, 429, 429]


def test_identical_images_at_a_time_are_each_computed_and_kept_once(serve_cached: Serve) -> None:
    """Nobody waits for another's request, or shares its deadline."""
    small = serve_cached()

    async def together() -> list[httpx.Response]:
        small.engine.gate.clear()
        asking = [asyncio.create_task(small.post("/predict", content=CLEAN)) for _ in range(5)]
        await until(lambda: len(small.engine.asked) == 5)
        small.engine.gate.set()
        return await asyncio.gather(*asking)

    answers = small.run(together())
    assert [answer.status_code for answer in answers] == [200] * 5
    assert small.asked == 5
    assert small.series("awnet_answer_cache_answers") == {"": 1}


def test_without_it_nothing_is_kept_and_nothing_is_said(serve_cached: Serve) -> None:
    small = serve_cached(answer_cache=0)
    for _ in range(3):
        assert "cached" not in small.predict(CLEAN).json()
    assert small.asked == 3
    assert small.service._cache is None
    assert small.series("awnet_answer_cache") == {}


def test_shared_answers_need_answers() -> None:
    with pytest.raises(ValidationError, match="answer_cache_shared needs answer_cache"):
        Settings(answer_cache_shared=True)


# Memory.


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("kind", ["file", "tensor"])
def test_memory_is_bounded_as_it_is_told_and_is_nothing_to_the_garbage_collector(kind: str, guarded: bool) -> None:
    """Of a wide model: 10 classes and 2,000 values of omega; images are parts of larger arrays, as they come in."""
    answers, channels = 300, 2000
    cache = AnswerCache(answers, 1 << 30)
    model = Small.__new__(Small)  # anything with a hash
    model.sha256 = "0" * 64  # type: ignore[attr-defined]
    fingerprints = Fingerprints()
    rng = np.random.default_rng(0)

    async def fill(count: int) -> None:
        for _ in range(count // 4):
            pixels = rng.integers(0, 256, (4, 3, SIZE, SIZE), np.uint8)
            images: list[Any] = [PixelArray(one) for one in pixels]
            if kind == "file":
                images = [EncodedImage(file(one), Limits(), n) for n, one in enumerate(pixels)]
            found = await cache.find(model, "auto", "me", images)  # type: ignore[arg-type]
            for image in images:
                image.pixels(SIZE)
            prints = [fingerprints.of(one) for one in pixels] if guarded else []
            values = rng.random((4, 12 + channels), np.float32)
            signals = Signals(values[:, :10], values[:, 10:12], values[:, 12:], 0, 0, 0)
            cache.keep(found.keys, signals, images, prints)

    asyncio.run(fill(8))
    cache.clear()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    asyncio.run(fill(2 * answers))
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(cache) == answers
    assert cache.held_bytes == answers * (ANSWER_BYTES + 4 * (12 + channels) + guarded * 3 * SIZE * SIZE)
    assert 0.7 * cache.held_bytes < held <= cache.held_bytes
    gc.collect()  # the tuple around the tuples that the first one found
    assert not any(gc.is_tracked(answer) for answer in cache._answers.values())


def test_a_large_file_is_not_hashed_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = AnswerCache(8, 1 << 30)
    elsewhere = []
    real = asyncio.to_thread

    async def to_thread(do: Any, *given: Any) -> Any:
        elsewhere.append(do)
        return await real(do, *given)

    monkeypatch.setattr("server.service.answer_cache.asyncio.to_thread", to_thread)
    model = Small.__new__(Small)
    model.sha256 = "0" * 64  # type: ignore[attr-defined]
    for size in (INLINE_BYTES, INLINE_BYTES + 1):
        asyncio.run(cache.find(model, "auto", "me", [EncodedImage(b"x" * size, Limits())]))  # type: ignore[arg-type]
    assert len(elsewhere) == 1

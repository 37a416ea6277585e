"""The metrics of the engine: whether it runs, what waits for it, and the processes that decode before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from ..core.decode_pool import DecodePool, DecoderEnd

CacheResult = Literal["hit", "miss", "bypassed"]


class EngineMetrics:
    """Registered in `registry`; see `metrics.Metrics`.

    Args:
        capacity: most images accepted and unanswered.
    """

    def __init__(self, registry: CollectorRegistry, capacity: int) -> None:
        self._backend_up = Gauge(
            "awnet_triton_up",
            "1 while this Triton is sent requests, 0 while its breaker is open.",
            ["address"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._up = Gauge(
            "awnet_engine_up",
            "1 while the model has passed its golden self-test and the engine can run it, else 0.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._queued = Gauge(
            "awnet_queue_images", "Images accepted and unanswered.", registry=registry, multiprocess_mode="livesum"
        )
        Gauge(
            "awnet_queue_capacity_images",
            "Most images accepted and unanswered.",
            registry=registry,
            multiprocess_mode="livesum",
        ).set(capacity)
        self._decode_held = Gauge(
            "awnet_decode_queue_pixels",
            "Pixels of images that wait to be decoded by processes, or are.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._decode_room = Gauge(
            "awnet_decode_queue_capacity_pixels",
            "Most pixels that may wait to be decoded by processes.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._decode_busy = Gauge(
            "awnet_decode_busy_processes",
            "Processes that decode an image.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._decoders_ended = Counter(
            "awnet_decode_process_ends",
            "Processes that ended while they decoded an image: given up because nobody waited any more, too slow, "
            "crashed in a decoder, killed by something else.",
            ["why"],
            registry=registry,
        )
        for why in get_args(DecoderEnd):
            self._decoders_ended.labels(why)
        cached = Counter(
            "awnet_answer_cache_images",
            "Images, by the answer cache: answered from it (hit), by the engine (miss), or by the engine because a "
            "shadow was to be compared (bypassed).",
            ["result"],
            registry=registry,
        )
        self._cached = {result: cached.labels(result) for result in get_args(CacheResult)}
        self._cached_answers = Gauge(
            "awnet_answer_cache_answers",
            "Answers that the answer cache keeps, one an image.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._cached_bytes = Gauge(
            "awnet_answer_cache_bytes",
            "Memory that these answers take, at most.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def follow(self, up: Callable[[], bool], waiting: Callable[[], int]) -> None:
        """`up` says whether requests can be executed right now, `waiting` how many images are accepted, unanswered."""
        self._up.set_function(lambda: float(up()))
        self._queued.set_function(waiting)

    def follow_decoding(self, pool: DecodePool) -> None:
        """Whose line and processes are told."""
        self._decode_room.set(pool.room)
        self._decode_held.set_function(lambda: pool.held)
        self._decode_busy.set_function(lambda: pool.busy)

    def decoder_ended(self, why: DecoderEnd) -> None:
        """A process of that pool ended while it decoded."""
        self._decoders_ended.labels(why).inc()

    def follow_answers(self, answers: Callable[[], int], held_bytes: Callable[[], int]) -> None:
        """There is an answer cache, which keeps so many in so many bytes."""
        self._cached_answers.set_function(answers)
        self._cached_bytes.set_function(held_bytes)

    def cached(self, result: CacheResult, images: int) -> None:
        """What the answer cache did with the images of a request."""
        self._cached[result].inc(images)

    def backend(self, address: str, up: bool) -> None:
        """Whether one of several Tritons is used."""
        self._backend_up.labels(address).set(up)

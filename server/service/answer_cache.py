"""Keeps answers of the engine, so that the very image that was asked about before need not be decoded and run again.

An answer is found by a keyed hash of who asks (unless callers share answers), the model file's SHA-256, the mode, and
the bytes that came in, a file's or a tensor's. What the model said is kept, and what the image turned out to be;
verdict, policy, query guard, findings and counts are made of it anew each time, as of any answer.

A request is answered from here as a whole or not at all, so that it costs and is refused what it would be without.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from domain.statistics import STATISTICS

from ..core.engine import Model, Signals
from ..core.images import DecodedImage, EncodedImage, ImageInput, PixelArray, Traits
from ..core.modes import Mode
from ..guard.fingerprint import Fingerprint
from ..settings.settings import Settings

ANSWER_BYTES = 1536  # of an answer, at most, beside its arrays: key, place in the order, traits of the image
INLINE_BYTES = 64 << 10  # 50 us; more is hashed on another thread than the event loop's
NO_PIXELS = np.empty((3, 0, 0), np.uint8)

# All outputs in a row, number of classes, what `Traits`, `DecodedImage` and `Fingerprint` are made of. Plain tuples of
# values and arrays, without a dict, are nothing that a garbage collection looks through, however many there are.
_Answer = tuple[NDArray[np.float32], int, tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]


class Found(NamedTuple):
    """What the cache has of one request.

    Attributes:
        keys: of its images, to keep answers by.
        signals: the answer; None where it has to be computed.
        fingerprints: of the images, where there is a query guard.
    """

    keys: Sequence[bytes]
    signals: Signals | None = None
    fingerprints: Sequence[Fingerprint] = ()


class AnswerCache:
    """The answers of one process, the last used of them.

    Args:
        capacity: answers, one an image.
        max_request_pixels: most that the images of one request may decode to; more are left to whoever refuses them.
        shared: callers share them; else each has its own.

    Attributes:
        held_bytes: of memory, at most.
    """

    def __init__(self, capacity: int, max_request_pixels: int, shared: bool = False) -> None:
        self._capacity = capacity
        self._max_request_pixels = max_request_pixels
        self._shared = shared
        self._answers: OrderedDict[bytes, _Answer] = OrderedDict()
        self.clear()

    @classmethod
    def of(cls, settings: Settings) -> AnswerCache | None:
        """What the settings ask for; None where that is nothing."""
        how = settings.answer_cache, settings.max_request_pixels, settings.answer_cache_shared
        return cls(*how) if settings.answer_cache else None

    def __len__(self) -> int:
        return len(self._answers)

    async def find(
        self, model: Model, mode: Mode, client: str, images: Sequence[ImageInput], computed: bool = False
    ) -> Found:
        """Look the images of one request up; those that are found are decoded images afterwards, without pixels.

        Args:
            model, mode: that would answer.
            client: who asks.
            images: not decoded yet.
            computed: the answer has to be computed whatever is kept.
        """
        whole = blake2b(key=self._secret, digest_size=32)
        for part in ("" if self._shared else client, model.sha256, mode):
            whole.update(b"%d %b" % (len(part.encode()), part.encode()))
        sent = [_sent(image) for image in images]
        if sum(data.nbytes for _, data in sent) > INLINE_BYTES:
            keys = await asyncio.to_thread(_keys, whole, sent)
        else:
            keys = _keys(whole, sent)
        known = [] if computed else [self._answers[key] for key in keys if key in self._answers]
        if not known or len(known) < len(keys):
            return Found(keys)
        if len(known) > 1 and sum(file[-1] for _, _, _, file, _ in known if file) > self._max_request_pixels:
            return Found(keys)
        for key, image, (_, _, traits, file, _) in zip(keys, images, known, strict=True):
            self._answers.move_to_end(key)
            _recall(image, _traits(*traits), file)
        rows, classes = np.stack([outputs for outputs, *_ in known]), known[0][1]
        logits, p_type, omega = np.split(rows, (classes, classes + 2), axis=1)
        prints = [Fingerprint(*seen) for *_, seen in known if seen]
        return Found(keys, Signals(logits, p_type, omega, 0.0, 0.0, 0.0, cached=True), prints)

    def keep(
        self, keys: Sequence[bytes], signals: Signals, images: Sequence[ImageInput], fingerprints: Sequence[Fingerprint]
    ) -> None:
        """Keep the answers to these images, all of them finite; those that were used longest ago make room.

        Args:
            keys: of the images, from `find`.
            fingerprints: of all of them, or none where there is no query guard.
        """
        rows, classes = np.concatenate([signals.logits, signals.p_type, signals.omega], axis=1), signals.logits.shape[1]
        for place, (key, image) in enumerate(zip(keys, images, strict=True)):
            self._drop(key)
            seen: tuple[Any, ...] = ()
            if fingerprints:
                *hashes, pixels = fingerprints[place]
                seen = (*hashes, pixels.copy())
            # Arrays are copied: a row of a batch would hold the whole of it.
            answer = rows[place].copy(), classes, _of_traits(image.traits), _file(image), seen
            self._answers[key] = answer
            self.held_bytes += _bytes(answer)
            if len(self._answers) > self._capacity:
                self._drop(next(iter(self._answers)))

    def clear(self) -> None:
        """Forget all answers, those that are being computed too: their keys are of another secret."""
        self._secret = secrets.token_bytes(32)
        self._answers.clear()
        self.held_bytes = 0

    def _drop(self, key: bytes) -> None:
        answer = self._answers.pop(key, None)
        if answer is not None:
            self.held_bytes -= _bytes(answer)


def _sent(image: ImageInput) -> tuple[bytes, memoryview]:
    """What kind of bytes came in, and these."""
    if isinstance(image, EncodedImage):
        return b"file", memoryview(image.data)
    assert isinstance(image, PixelArray)
    return b"tensor", np.ascontiguousarray(image.array).data


def _keys(whole: blake2b, sent: Sequence[tuple[bytes, memoryview]]) -> list[bytes]:
    keys = []
    for kind, data in sent:
        one = whole.copy()
        one.update(kind)
        one.update(data)
        keys.append(one.digest())
    return keys


def _of_traits(traits: Traits) -> tuple[Any, ...]:
    statistics, *others = traits
    return (*(statistics[name] for name in STATISTICS), *others)


def _traits(*values: Any) -> Traits:
    many = len(STATISTICS)
    return Traits(dict(zip(STATISTICS, values[:many], strict=True)), *values[many:])


def _file(image: ImageInput) -> tuple[Any, ...]:
    """What is told of the file; the pixels that were decoded stand at the end. Nothing of a tensor."""
    if not isinstance(image, EncodedImage):
        return ()
    assert image.decoded is not None
    _, *facts, _ = image.decoded
    return tuple(facts)


def _recall(image: ImageInput, traits: Traits, file: tuple[Any, ...]) -> None:
    if isinstance(image, EncodedImage):
        image.recall(DecodedImage._make((NO_PIXELS, *file, traits)))
    else:
        assert isinstance(image, PixelArray)
        image.recall(traits)


def _bytes(answer: _Answer) -> int:
    outputs, _, _, _, seen = answer
    return ANSWER_BYTES + int(outputs.nbytes) + (int(seen[-1].nbytes) if seen else 0)

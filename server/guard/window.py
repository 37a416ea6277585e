"""The images that were asked lately, in bounded memory, and how many others each was like."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .fingerprint import RANGES, Fingerprint, Fingerprints

NEAR = 6  # most bits of 64 in which perceptual hashes of like images differ
OVERLAP = 16  # fewest of 32 places at which the sketches of like images are equal
KEPT = 64  # images of an exemplar that are recognised when they come again, of 4 bytes each
SETTLED = 8  # images of an exemplar, from which on others have to differ by more than noise to count
RECENT = 2  # counted images of an exemplar that others have to differ from


class _Different:
    """Different images, the first of them by 32 bits of their pixels, all others by their number."""

    __slots__ = ("kept", "others")

    def __init__(self) -> None:
        self.kept = array("I")
        self.others = 0

    @property
    def count(self) -> int:
        return len(self.kept) + self.others

    def add(self, exact: int) -> None:
        if len(self.kept) < KEPT:
            self.kept.append(exact)
        else:
            self.others += 1


_NONE = _Different()  # to which nothing is ever added


@dataclass(slots=True)
class Exemplar:
    """An image that was unlike all before it, and those that were like it since.

    Counted are different images. The same pixels again are no other image, among the first `KEPT` at least; nor is,
    after the first `SETTLED`, what differs by no more than noise from one of the `RECENT` that were counted last: so a
    camera that does not move sends one image all day. Counts are those of the last `seconds` to twice as long,
    see `Window`.

    Attributes:
        owner: who sent the first.
        met: when it was met last.
        first_id, last_id: of the requests that it came with first, and that something like it came with last.
        shared: others were like it.
        askers: a bit of 64 for each client that asked.
        told: somebody was told of it in these `seconds`.
    """

    owner: int
    began: float
    met: float
    first_id: str
    last_id: str
    now: _Different = field(default_factory=_Different)
    before: _Different = _NONE
    recent: NDArray[np.float32] | None = None  # sums [RECENT,SUMS]
    shared: bool = False
    askers: int = 0
    told: bool = False

    @property
    def count(self) -> int:
        """Different images like it, itself included."""
        return self.now.count + self.before.count

    def meet(self, asker: int, request_id: str, now: float, seconds: float) -> None:
        """Something like it is there at `now`."""
        self.met, self.last_id = now, request_id
        self.askers |= 1 << (asker & 63)
        age = now - self.began
        if age > seconds:
            self.before, self.now = self.now if age <= 2 * seconds else _NONE, _Different()
            self.began, self.told = now, False

    def knows(self, exact: int) -> bool:
        """Whether these very pixels were counted."""
        return exact in self.now.kept or exact in self.before.kept

    def near(self, sums: NDArray[np.float32], noise: float) -> bool:
        """Whether they are within `noise` of what was counted last; if not, they are what was counted last."""
        if self.recent is None:
            self.recent = np.tile(sums, (RECENT, 1))
            return False
        differences = self.recent - sums
        if float((differences * differences).sum(axis=1).min()) <= noise * noise:
            return True
        self.recent[self.now.count % RECENT] = sums
        return False


class Window:
    """The last `capacity` images that were unlike each other.

    An image is like the exemplar that it is nearest to, if it is near enough. Whoever watches something that moves on
    leaves an exemplar behind; whoever attacks stays. When it is full, the exemplar that was not met for the longest
    time goes, one that others were like after all that were alone.

    Args:
        capacity: exemplars.
        seconds: an exemplar that is not met for so long is forgotten.
        noise: levels, root mean square, that two images may be apart and yet be one and the same.
        fingerprints: that made all images.
        share: exemplars of one owner at most; more replace their own.
        sketches: whether sketches are compared, too, which costs time in proportion to the capacity.
    """

    def __init__(
        self,
        capacity: int,
        seconds: float,
        noise: float,
        fingerprints: Fingerprints,
        share: int | None = None,
        sketches: bool = True,
    ) -> None:
        self._fingerprints = fingerprints
        self._seconds = seconds
        self._noise = noise
        self._share = share
        self._sketches = np.zeros((capacity, RANGES), np.uint8) if sketches else None
        self._perceptual = np.zeros(capacity, np.uint64)
        self._worth = np.zeros(capacity)  # when it was met; `seconds` later where others were like it
        self._owners = np.zeros(capacity, np.uint64)
        self._owned: Counter[int] = Counter()  # exemplars by owner
        self._exemplars: list[Exemplar] = []

    def __len__(self) -> int:
        return len(self._exemplars)

    def add(self, image: Fingerprint, asker: int, request_id: str, now: float) -> Exemplar:
        """Count one image, and return the exemplar that it is like; a new one where it is like none."""
        place = self._like(image)
        if place is None:
            place = self._place(asker)
            self._put(place, image, asker, request_id, now)
        elif now - self._exemplars[place].met > self._seconds:
            self._put(place, image, asker, request_id, now)
        exemplar = self._exemplars[place]
        exemplar.meet(asker, request_id, now, self._seconds)
        exact, count = image.exact & 0xFFFFFFFF, exemplar.count
        if not exemplar.knows(exact) and not (
            count >= SETTLED and exemplar.near(self._fingerprints.sums(image.pixels), self._noise)
        ):
            exemplar.now.add(exact)
            exemplar.shared = exemplar.shared or count > 0
        self._worth[place] = now + self._seconds if exemplar.shared else now
        return exemplar

    def _like(self, image: Fingerprint) -> int | None:
        many = len(self._exemplars)
        if not many:
            return None
        apart = np.bitwise_count(self._perceptual[:many] ^ np.uint64(image.perceptual))
        nearest = int(apart.argmin())
        if apart[nearest] <= NEAR:
            return nearest
        if self._sketches is None:
            return None
        equal = np.packbits(self._sketches[:many] == image.sketch).view(np.uint32)  # 32 bits an exemplar
        overlap = np.bitwise_count(equal)
        nearest = int(overlap.argmax())
        return nearest if overlap[nearest] >= OVERLAP else None

    def _place(self, owner: int) -> int:
        """Where a new exemplar of `owner` goes."""
        many = len(self._exemplars)
        if self._share is not None and self._owned[owner] >= self._share:
            return int(np.where(self._owners[:many] == np.uint64(owner), self._worth[:many], np.inf).argmin())
        return many if many < len(self._worth) else int(self._worth.argmin())

    def _put(self, place: int, image: Fingerprint, owner: int, request_id: str, now: float) -> None:
        exemplar = Exemplar(owner, now, now, request_id, request_id)
        if place == len(self._exemplars):
            self._exemplars.append(exemplar)
        else:
            before = self._exemplars[place].owner
            self._owned[before] -= 1
            if not self._owned[before]:
                del self._owned[before]
            self._exemplars[place] = exemplar
        self._owned[owner] += 1
        self._perceptual[place] = image.perceptual
        if self._sketches is not None:
            self._sketches[place] = image.sketch
        self._owners[place] = owner

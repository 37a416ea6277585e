"""The images that were asked lately, in bounded memory, and how many others each was like."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np

from .fingerprint import RANGES, Fingerprint

NEAR = 6  # most bits of 64 in which perceptual hashes of like images differ
OVERLAP = 16  # fewest of 32 places at which the sketches of like images are equal
KEPT = 64  # images of an exemplar that are recognised when they come again, of 4 bytes each


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

    Counted are different images; the same pixels again are no other image, among the first `KEPT` at least. Counts are
    those of the last `seconds` to twice as long, see `Window`.

    Attributes:
        first_id, last_id: of the requests that it came with first, and that something like it came with last.
        askers: a bit of 64 for each client that asked.
        told: somebody was told of it in these `seconds`.
    """

    owner: int
    began: float
    first_id: str
    last_id: str
    now: _Different = field(default_factory=_Different)
    before: _Different = _NONE
    askers: int = 0
    told: bool = False

    @property
    def count(self) -> int:
        """Different images like it, itself included."""
        return self.now.count + self.before.count

    def add(self, exact: int, now: float, seconds: float) -> None:
        """One image like it, at `now`."""
        age = now - self.began
        if age > seconds:
            self.before, self.now = self.now if age <= 2 * seconds else _NONE, _Different()
            self.began, self.told = now, False
        if exact not in self.before.kept and exact not in self.now.kept:
            self.now.add(exact)


class Window:
    """The last `capacity` images that were unlike each other.

    An image is like the exemplar that it is nearest to, if it is near enough. Whoever watches something that moves on
    leaves an exemplar behind; whoever attacks stays. When it is full, the exemplar that was not met for the longest
    time goes, one that others were like after all that were alone.

    Args:
        capacity: exemplars.
        seconds: an exemplar that is not met for so long is forgotten.
        share: exemplars of one owner at most; more replace their own.
        sketches: whether sketches are compared, too, which costs time in proportion to the capacity.
    """

    def __init__(self, capacity: int, seconds: float, share: int | None = None, sketches: bool = True) -> None:
        self._seconds = seconds
        self._share = share
        self._sketches = np.zeros((capacity, RANGES), np.uint8) if sketches else None
        self._perceptual = np.zeros(capacity, np.uint64)
        self._last = np.zeros(capacity)  # when it was met
        self._owners = np.zeros(capacity, np.uint64)
        self._alone = np.zeros(capacity, bool)
        self._exemplars: list[Exemplar] = []

    def __len__(self) -> int:
        return len(self._exemplars)

    def add(self, image: Fingerprint, asker: int, request_id: str, now: float) -> Exemplar:
        """Count one image, and return the exemplar that it is like; a new one where it is like none."""
        place = self._like(image)
        if place is None or now - self._last[place] > self._seconds:
            place = self._place(asker, now) if place is None else place
            self._put(place, image, asker, request_id, now)
        exemplar = self._exemplars[place]
        exemplar.add(image.exact & 0xFFFFFFFF, now, self._seconds)
        exemplar.askers |= 1 << (asker & 63)
        exemplar.last_id = request_id
        self._last[place] = now
        self._alone[place] = self._alone[place] and exemplar.count == 1
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
        equal = np.packbits(self._sketches[:many] == image.sketch, axis=1).view(np.uint32)
        overlap = np.bitwise_count(equal.ravel())
        nearest = int(overlap.argmax())
        return nearest if overlap[nearest] >= OVERLAP else None

    def _place(self, owner: int, now: float) -> int:
        """Where a new exemplar goes."""
        many = len(self._exemplars)
        # Of two that are met equally late the one that was never met again goes first.
        worth = self._last[:many] + np.where(self._alone[:many], 0.0, self._seconds)
        if self._share is not None and many >= self._share:
            own = self._owners[:many] == np.uint64(owner)
            if np.count_nonzero(own) >= self._share:
                return int(np.where(own, worth, np.inf).argmin())
        if many < len(self._last):
            self._exemplars.append(Exemplar(owner, now, "", ""))
            return many
        return int(worth.argmin())

    def _put(self, place: int, image: Fingerprint, owner: int, request_id: str, now: float) -> None:
        self._perceptual[place] = image.perceptual
        if self._sketches is not None:
            self._sketches[place] = image.sketch
        self._owners[place], self._alone[place] = owner, True
        self._exemplars[place] = Exemplar(owner, now, request_id, request_id)

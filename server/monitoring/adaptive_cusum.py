"""A CUSUM against a share that is learnt: for images of whose false-positive rate no calibration speaks.

Some kinds of image are flagged all the time (palette images by nine of ten) and nobody attacks, so there is no target
to hold them to but what was usual here. `AdaptiveCusum` learns one share, `Uncalibrated` holds the three that matter.

How the target is learnt, and what that costs:

- Nothing is said before `MIN_IMAGES` images and `LEARN_SECONDS`. Who attacks from the first image on is what is usual.
- Images count in the history only once the statistic has come back to 0, so an attack does not excuse itself, and not
  at all where it was raised in between: the target is frozen while it is raised.
- The history is at least `HISTORY_SECONDS` and at least `HISTORY_IMAGES` long, whichever is slower, so that neither a
  flood of images nor a quiet night moves it quickly. Who raises the share slowly enough is learnt: below about 1.7
  times the usual odds nothing is seen, and the target follows at the pace of a day, whatever the number of images.
- What has been raised for `HOLD_SECONDS` is usual from then on, because nobody but people can tell a site that has
  changed its images from an attack that goes on. They have been told by then.
- Images come in albums: one user sends ten palette images one after the other. An image counts as a part of an
  `ALBUM`, so a few of them in a row are no alarm, and an attack needs so many times more images to be seen.
- Where more than `MAX_TARGET` are flagged, more cannot be told from as many: nothing is raised there. Such images are
  answered as flagged in any case, and more of them raise the share of uncalibrated images.

Plain Python without numpy, which the supervisor of several workers does not load.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

from .cusum import Cusum

Of = Literal["uncalibrated", "suspicious", "adversarial"]
OF: tuple[Of, ...] = ("uncalibrated", "suspicious", "adversarial")

DESIGN_ODDS = 3.0  # the CUSUM is the quickest test there is for odds this many times the target's
MIN_IMAGES = 500
LEARN_SECONDS = 3_600.0
HISTORY_IMAGES = 10_000
HISTORY_SECONDS = 86_400.0
HOLD_SECONDS = 3_600.0
LEARN_EVERY = 100  # images; a new target costs two logarithms
ALBUM = 5  # images that are alike because one user sends them
MAX_TARGET = 0.95
DEVIATIONS = 2.0  # the target lies this many standard errors over the learnt share
# Less than this is not worth an alarm. Flagged: no uncalibrated image is flagged more rarely than a calibrated one.
FLOORS: dict[Of, float] = {"uncalibrated": 0.02, "suspicious": 0.05, "adversarial": 0.05}

# From this part of its limit on, the share of uncalibrated images is in question; an alarm ends there, too.
SHARE_IN_QUESTION = 0.5

Clock = Callable[[], float]


class State(NamedTuple):
    """One CUSUM as it is told: see `AdaptiveCusum`."""

    value: float
    raised: bool
    alarms: int
    usual: float | None


class AdaptiveCusum:
    """Bernoulli CUSUM of one share against what was usual.

    Args:
        limit: the alarm is raised where the statistic is at least this, and ended below half of it or after
            `HOLD_SECONDS`.
        floor: the target is never less.
        clock: seconds that never go back.

    Attributes:
        usual: the learnt share; None while there is too little to learn from.
        alarms: times that the statistic reached its limit.
    """

    def __init__(self, limit: float, floor: float, clock: Clock = time.monotonic) -> None:
        self._limit, self._floor, self._clock = limit, floor, clock
        self.alarms = 0
        self.usual: float | None = None
        self._images = self._hits = 0  # since the statistic was 0 or has been raised: not in the history yet
        self._raised_at = 0.0
        self.learn_anew()

    @property
    def value(self) -> float:
        """The statistic as a part of its limit; 0 while there is no target."""
        return self._cusum.value / self._limit if self._cusum is not None else 0.0

    @property
    def raised(self) -> bool:
        # Not by the next image alone: where an attack was the last that came, none may come for days.
        held = self._clock() - self._raised_at < HOLD_SECONDS
        return self._cusum is not None and self._cusum.raised and held

    def learn_anew(self) -> None:
        """Forget what was usual."""
        self._images = self._hits = 0
        self._learn_from(self._clock())

    def add(self, images: int, hits: int) -> bool:
        """A block of images, of which `hits` count.

        Returns:
            Whether what raised the alarm has just become usual.
        """
        self._images += images
        self._hits += hits
        cusum = self._cusum
        if cusum is not None:
            raised = cusum.raised
            cusum.add(images, hits)
            if cusum.raised:
                if not raised:
                    self.alarms += 1
                    self._raised_at = self._clock()
                    self._images = self._hits = 0
                elif self._clock() - self._raised_at >= HOLD_SECONDS:
                    self._learn_from(self._raised_at)
                    return True
                return False
            if cusum.value:
                return False
            if cusum.alarms:  # what raised it is over, and never was usual
                self._images = self._hits = 0
                self._learnt_at = self._clock()
                self._retarget()
        if self._images >= LEARN_EVERY:
            self._learn()
        return False

    def _learn_from(self, since: float) -> None:
        """Begin a new history with what is not in the old one."""
        self._cusum: Cusum | None = None
        self._seen, self._share, self.usual = 0, 0.0, None
        self._began = self._learnt_at = since
        self._learn()

    def _learn(self) -> None:
        """Take what is not in the history yet into it."""
        if not self._images:
            return
        now = self._clock()
        self._seen += self._images
        weight = self._images / self._seen
        if self.usual is not None:
            time_weight = (now - self._learnt_at) / min(now - self._began, HISTORY_SECONDS)
            weight = min(self._images / min(self._seen, HISTORY_IMAGES), time_weight, 1.0)
        self._share += weight * (self._hits / self._images - self._share)
        self._images = self._hits = 0
        self._learnt_at = now
        if self.usual is not None or (self._seen >= MIN_IMAGES and now - self._began >= LEARN_SECONDS):
            self.usual = self._share
            self._retarget()

    def _retarget(self) -> None:
        error = math.sqrt(self._share * (1 - self._share) / min(self._seen, HISTORY_IMAGES))
        target = max(self._floor, self._share + DEVIATIONS * error)
        rate = DESIGN_ODDS * target / (1 + (DESIGN_ODDS - 1) * target)
        self._cusum = Cusum(target, self._limit, rate) if target <= MAX_TARGET else None


class Uncalibrated:
    """Three shares against their own past: of uncalibrated images among all, of flagged ones among them.

    Flagged ones are those over each threshold. Where the share of uncalibrated images changes they are others than
    before, and what was flagged of the former says nothing of them: as long as that is in question no alarm is told
    of what is flagged, and when the new share has become usual, what is flagged is learnt anew.

    Args:
        limit: of the three statistics where images are independent, see `cusum.limit_for`; albums have `ALBUM` times
            as much.
    """

    def __init__(self, limit: float, clock: Clock = time.monotonic) -> None:
        self._share, *_ = cusums = [AdaptiveCusum(ALBUM * limit, FLOORS[of], clock) for of in OF]
        self._cusums = dict(zip(OF, cusums, strict=True))

    def add(self, images: int, *counts: int) -> None:
        """A block of images.

        Args:
            counts: uncalibrated images, and those of them that are over each threshold, as in `OF`.
        """
        uncalibrated, *flagged = counts
        changed = self._share.add(images, uncalibrated)
        for of, hits in zip(OF[1:], flagged, strict=True):
            self._cusums[of].add(uncalibrated, hits)
            if changed:
                self._cusums[of].learn_anew()

    def state(self, of: Of) -> State:
        """What is told of one share."""
        cusum = self._cusums[of]
        told = cusum is self._share or self._share.value < SHARE_IN_QUESTION
        return State(cusum.value, cusum.raised and told, cusum.alarms, cusum.usual)

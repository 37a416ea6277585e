"""Who repeats themselves is found, nobody else is, and what is remembered is bounded; in virtual time."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from server.errors import RepeatedQueries
from server.guard import guard as rules
from server.guard import window
from server.guard.fingerprint import Fingerprint
from server.guard.guard import Event, QueryGuard, Repeats
from tests.server.guard.test_fingerprint import picture

LIMIT, SECONDS, NOISE = 16, 1000.0, 1.3
Pixels = NDArray[np.uint8]


def variants(seed: int, count: int, first: int = 0) -> list[Pixels]:
    """So many images that are nearly `picture(seed)`, all different."""
    image = picture(seed).astype(np.int64)
    changes = (np.random.default_rng((seed, n)).choice([-8, 8], image.shape) for n in range(first, first + count))
    return [np.clip(image + change, 0, 255).astype(np.uint8) for change in changes]


def guarded() -> tuple[QueryGuard, list[Event]]:
    events: list[Event] = []
    return QueryGuard(LIMIT, SECONDS, NOISE, events.append), events


def sent(guard: QueryGuard, client: str, images: list[Pixels], now: float = 0.0, step: float = 1.0) -> list[Repeats]:
    """One image a request, the n-th at `now + n * step` under the id `client-n`."""
    prints = [guard.fingerprints.of(image) for image in images]
    return [guard.look(client, [one], f"{client}-{n}", now + n * step)[0] for n, one in enumerate(prints)]


def test_a_client_that_asks_about_variants_of_one_image_is_found_after_the_limit() -> None:
    """Counts are of different images alike, the first included."""
    guard, events = guarded()
    found = sent(guard, "a", variants(0, LIMIT + 5))
    assert [repeats.similar for repeats in found] == list(range(1, LIMIT + 6))
    assert [repeats.repeated for repeats in found] == [False] * LIMIT + [True] * 5
    assert events == [Event("a", LIMIT + 1, 1, SECONDS, "a-0", f"a-{LIMIT}")]


def test_the_same_pixels_again_are_no_evidence() -> None:
    """A retry tells nobody anything new; nor does a health check that sends one image for ever."""
    guard, events = guarded()
    assert {repeats.similar for repeats in sent(guard, "a", [picture(0)] * 500)} == {1}
    assert not events


def frames(seed: int, count: int, noise: float, blink: int = 0) -> list[Pixels]:
    """Of a camera that does not move, with so much noise in levels; every other second is brighter by `blink`."""
    image, rng = picture(seed).astype(np.float64), np.random.default_rng(seed)
    lit = [image + blink * (n // 25 % 2) + rng.normal(0, noise, image.shape) for n in range(count)]
    return [np.clip(np.rint(one), 0, 255).astype(np.uint8) for one in lit]


@pytest.mark.parametrize(("noise", "blink"), [(0.3, 0), (0.6, 0), (0.6, 6)])
def test_a_camera_that_does_not_move_is_left_alone(noise: float, blink: int) -> None:
    """Every frame is another image, by its sensor's noise, and says nothing new; nor does a lamp that blinks."""
    guard, events = guarded()
    found = sent(guard, "camera", frames(0, 400, noise, blink), 0.0, 0.04)
    assert max(repeats.similar for repeats in found) <= window.SETTLED + 4
    assert not events


def test_a_camera_is_left_alone_all_day() -> None:
    guard, events = guarded()
    sent(guard, "camera", frames(0, 400, 0.6), 0.0, SECONDS / 40)
    assert not events


@pytest.mark.parametrize("levels", [1, 2, 8])
def test_an_attack_that_changes_every_value_is_no_noise(levels: int) -> None:
    """Not even by one level, the least that there is."""
    guard, _ = guarded()
    image, rng = picture(0).clip(8, 247).astype(np.int64), np.random.default_rng(0)
    probes = [(image + levels * rng.choice([-1, 1], image.shape)).astype(np.uint8) for _ in range(3 * LIMIT)]
    found = sent(guard, "a", probes)
    assert found[-1].repeated
    assert [repeats.repeated for repeats in found].index(True) <= 2 * LIMIT


def test_a_change_of_one_value_is_no_noise_wherever_it_is() -> None:
    """As attacks by few pixels make it; a mean over all values would hardly see it, and a sample of them mostly not."""
    guard, _ = guarded()
    probes = []
    for n in range(4 * LIMIT):
        image = picture(0).copy()
        image.ravel()[np.random.default_rng(n).integers(image.size)] ^= 0x80
        probes.append(image)
    assert sent(guard, "a", probes)[-1].repeated


def test_without_noise_every_image_counts() -> None:
    """The setting at 0."""
    guard = QueryGuard(LIMIT, SECONDS, 0.0)
    assert sent(guard, "a", frames(0, LIMIT + 1, 0.3))[-1].repeated


def test_different_images_are_no_evidence() -> None:
    guard, events = guarded()
    assert max(repeats.similar for repeats in sent(guard, "a", [picture(n) for n in range(400)])) < LIMIT / 2
    assert not events


def test_images_between_hide_nothing() -> None:
    """More of them than are remembered, between any two queries of an attack."""
    guard, _ = guarded()
    others = iter(range(1, 100_000))
    for n, image in enumerate(variants(0, LIMIT + 1)):
        [found] = sent(guard, "a", [image], float(n))
        if n:  # from the second on others were like it, and those that were alone go first
            sent(guard, "a", [picture(next(others)) for _ in range(rules.CLIENT_EXEMPLARS + 10)], float(n), 0.0)
    assert found.repeated


def test_evidence_is_of_one_client_and_nobody_hears_of_anothers() -> None:
    """Sending a victim's image many times does not make the victim a suspect; the operator hears of all together."""
    guard, events = guarded()
    many = 4 * LIMIT + 2
    for n, image in enumerate(variants(0, many)):
        sent(guard, f"client-{n % 8}", [image], float(n))
    [found] = sent(guard, "victim", [picture(0)], float(many))
    assert found == Repeats(1, False)
    [event] = events
    assert event.client is None
    assert event.clients >= 6


def test_one_client_is_not_told_of_twice() -> None:
    """Once as a client, and not as all together."""
    guard, events = guarded()
    sent(guard, "a", variants(0, 6 * LIMIT))
    assert [event.client for event in events] == ["a"]


def test_what_was_long_ago_is_forgotten() -> None:
    """After a pause of `seconds` at once, without a pause within twice as long."""
    guard, _ = guarded()
    sent(guard, "a", variants(0, LIMIT))
    assert sent(guard, "a", variants(0, 1, LIMIT), LIMIT + SECONDS + 1)[0] == Repeats(1, False)
    slowly = sent(guard, "b", variants(1, 4 * LIMIT), 0.0, 2.1 * SECONDS / LIMIT)
    assert not any(repeats.repeated for repeats in slowly)


def test_who_goes_on_is_told_of_again() -> None:
    """Once in `seconds`, or an attack of a day would be one line of the log."""
    guard, events = guarded()
    sent(guard, "a", variants(0, 200), 0.0, SECONDS / 50)
    assert 3 <= len(events) <= 5


def test_memory_is_bounded_and_many_strangers_drive_no_evidence_out() -> None:
    """Clients without evidence go first, whatever their number."""
    guard, _ = guarded()
    sent(guard, "attacker", variants(0, LIMIT))
    for n in range(3 * rules.MAX_CLIENTS):
        sent(guard, f"stranger-{n}", [picture(1 + n % 50)], 100.0)
    assert len(guard) <= rules.MAX_CLIENTS
    assert sent(guard, "attacker", variants(0, 1, LIMIT), 101.0)[0].repeated


def test_what_an_exemplar_takes_is_bounded() -> None:
    """Full, with 512 clients of 128 exemplars and 1,024 of all, the guard has at most 150 MB, as security.md says."""
    guard, images = guarded()[0], iter(range(10**9))

    def fill(exemplars: int, each: int) -> None:
        for n in range(exemplars):
            rng = np.random.default_rng(n)
            perceptual, sketch = int(rng.integers(2**63)), rng.integers(0, 256, 32, np.uint8)
            for _ in range(each):
                pixels = rng.integers(0, 256, (3, 8, 8), np.uint8)
                one = Fingerprint(next(images), perceptual, sketch, pixels)
                guard.look("a", [one], f"{next(images):064d}", 1.0 + n // 64)

    fill(1, 10)
    tracemalloc.start()
    fill(rules.CLIENT_EXEMPLARS, 200)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / (2 * rules.CLIENT_EXEMPLARS) < 150e6 / (
        rules.MAX_CLIENTS * rules.CLIENT_EXEMPLARS + rules.ALL_EXEMPLARS
    )


def test_suspects_are_bounded_too() -> None:
    guard, _ = guarded()
    images = variants(0, rules.EVIDENCE)
    for n in range(rules.SUSPECTS + 30):
        sent(guard, f"suspect-{n}", images, float(n), 0.0)
    assert len(guard) == rules.SUSPECTS


def test_one_client_has_a_share_of_what_is_remembered_of_all() -> None:
    """Whoever floods loses their own images, not the evidence of others."""
    guard, events = guarded()
    attack = variants(0, 4 * LIMIT + 2)
    for n, image in enumerate(attack):
        sent(guard, f"client-{n % 8}", [image], float(n))
        if n < 12:
            sent(guard, "flood", [picture(1 + 150 * n + m) for m in range(150)], float(n), 0.0)
    assert [event.client for event in events] == [None]


def delays(guard: QueryGuard, client: str, found: list[Repeats], now: float = 0.0) -> list[float]:
    """Of requests with one image each, all at once and with 10 s of time."""
    answered = []
    for repeats in found:
        try:
            answered.append(guard.delay(client, [repeats], now, now + 10))
        except RepeatedQueries:
            break
    return answered


def test_repeated_queries_leave_one_after_the_other_at_growing_intervals() -> None:
    """However many come at once; past their deadline they are refused with a time to come back."""
    guard, _ = guarded()
    waits = delays(guard, "a", [Repeats(LIMIT + n, True) for n in range(1, 200)])
    gaps = np.diff(waits)
    assert waits[0] == 0
    assert (gaps > 0.2).all()
    assert (np.diff(gaps) > 0).all()
    assert len(waits) < 35
    with pytest.raises(RepeatedQueries) as refused:
        guard.delay("a", [Repeats(LIMIT + 64, True)], 0.0, 10.0)
    assert 10 <= refused.value.retry_after_seconds <= 30


def test_the_interval_is_bounded() -> None:
    """Who was refused may come back in a minute, whatever was counted."""
    guard, _ = guarded()
    assert guard.delay("a", [Repeats(1000, True)], 0.0, 10.0) == 0
    with pytest.raises(RepeatedQueries) as refused:
        guard.delay("a", [Repeats(1000, True)], 1.0, 11.0)
    assert refused.value.retry_after_seconds == 59
    assert guard.delay("a", [Repeats(1000, True)], 60.0, 70.0) == 0


def test_other_images_and_other_clients_never_wait() -> None:
    guard, _ = guarded()
    delays(guard, "a", [Repeats(1000, True)] * 3)
    assert guard.delay("a", [Repeats(1, False), Repeats(LIMIT, False)], 0.0, 10.0) == 0
    assert guard.delay("b", [Repeats(1000, True)], 0.0, 10.0) == 0


def test_many_repeated_images_in_a_request_wait_for_each() -> None:
    """Or a request of 32 images would be one query."""
    guard, _ = guarded()
    assert guard.delay("a", [Repeats(LIMIT + 1, True)] * 4, 0.0, 10.0) == pytest.approx(3 * 0.25, rel=0.1)
    with pytest.raises(RepeatedQueries):
        guard.delay("b", [Repeats(LIMIT + 100, True)] * 4, 0.0, 10.0)


def test_each_worker_counts_for_itself() -> None:
    """A client whose queries reach two in turn is found with twice as many; keys of hashes are their own."""
    one, other = guarded()[0], guarded()[0]
    found = [sent((one, other)[n % 2], "a", [image])[0].repeated for n, image in enumerate(variants(0, 2 * LIMIT + 2))]
    assert found == [False] * 2 * LIMIT + [True] * 2
    assert one.fingerprints.of(picture(0)).exact != other.fingerprints.of(picture(0)).exact

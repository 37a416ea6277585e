"""Decoding beside the server: what is not cheap runs in processes that can be killed, in a fair and bounded line."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.hardening import slow_inputs
from server.core import clock
from server.core.decode_pool import MAX_SECONDS, DecodePool
from server.core.decoding import CHEAP_COST, Decoding, Prepared
from server.core.engine import Terms
from server.core.images import EncodedImage, Limits, decode
from server.errors import (
    AWNetError,
    DeadlineExceeded,
    ImageError,
    ImageTooLarge,
    MissingImage,
    QueueFull,
    Unavailable,
    UnsupportedMedia,
)
from tests.server.tiny import SIZE, encoded, noise, spoilt_pixels
from tests.waiting import until

SMALL = encoded(noise())
LARGE = encoded(noise(400, 300))
SECONDS = 60.0  # long enough on any machine
MEMORY = 1 << 31

pytestmark = pytest.mark.process


def slow(side: int = 4000) -> bytes:
    """A file of some hundred bytes and seconds."""
    file = io.BytesIO()
    Image.new("RGBA", (side, side)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def unused_groups(groups: int) -> bytes:
    """A lossless WebP of 8 x 8 pixels, all of the last of so many groups of codes."""
    code, value = "1000", "{:08b}"  # one symbol, 0
    low, high = (value.format((groups - 1) >> shift & 255)[::-1] for shift in (0, 8))
    sizes = f"{7:014b}"[::-1] * 2
    bits = value.format(0x2F)[::-1] + sizes + "0000" + "0" + "0" + "1" + "101"  # no transforms, no cache, groups by 2^7
    bits += "0" + "101" + low + "101" + high + 3 * code + groups * 5 * code + 64 * "0"
    data = int(bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little")
    return webp_file(data + bytes(len(data) & 1))


def webp_file(data: bytes) -> bytes:
    chunk = b"VP8L" + len(data).to_bytes(4, "little") + data
    return b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk


def many_scans(scans: int) -> bytes:
    """A progressive JPEG of 8 x 8 pixels."""
    genes = {"width": 8, "height": 8, "components": 1, "across": 1, "down": 1, "progressive": True, "noise": False}
    genes |= {"scans": ["first"] * scans, "restart": 0, "segments": 0, "fill": 0, "exif": False}
    return slow_inputs.make_jpeg(genes)


def images(*files: bytes) -> list[EncodedImage]:
    return [EncodedImage(file, Limits(), index) for index, file in enumerate(files)]


@asynccontextmanager
async def pool(
    workers: int = 1, seconds: float = SECONDS, room: int = 1 << 30, memory: int = MEMORY, **options: Any
) -> AsyncIterator[DecodePool]:
    made = DecodePool(workers=workers, seconds=seconds, room=room, max_bytes=memory, **options)
    try:
        yield made
    finally:
        await made.close()


def soon(seconds: float = SECONDS) -> Terms:
    return Terms(clock.now() + seconds)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(4 * SECONDS):
            await test()

    asyncio.run(bounded())


async def child_of(made: DecodePool) -> int:
    """The process that decodes now."""
    await until(lambda: any(job.child for job in made._running))
    (job,) = made._running
    assert job.child is not None
    return job.child._process.pid


def test_what_is_cheap_starts_no_process_and_anything_else_has_the_same_pixels() -> None:
    """By what the structure says that it costs, all images of a request together."""

    async def test() -> None:
        async with pool() as made:
            decoding = Decoding(made, 1 << 30, lambda: 1)
            cheap = images(SMALL, SMALL)
            assert await decoding.prepare(cheap, SIZE, soon()) == Prepared()
            assert all(image.decoded is None for image in cheap)
            assert not made._idle
            both = images(SMALL, LARGE)
            decoded, waited, admitted = await decoding.prepare(both, SIZE, soon())
            assert admitted
            assert 0 < decoded <= waited
            assert both[0].decoded is None and both[1].decoded is not None
            for image, file in zip(both, (SMALL, LARGE), strict=True):
                np.testing.assert_array_equal(image.pixels(SIZE), decode(file, SIZE, Limits()).pixels)
                assert image.decoded == image.decoded and image.traits == decode(file, SIZE, Limits()).traits
            many = images(*[encoded(noise(100, 100))] * 20)
            cost = many[0].admit(SIZE).cost(SIZE)
            await decoding.prepare(many, SIZE, soon())
            assert sum(image.decoded is None for image in many) == CHEAP_COST // cost < 20

    run(test)


def test_a_small_image_is_decoded_at_once_on_the_thread_that_reads_it(
    begun: Callable[[], set[threading.Thread]],
) -> None:
    """Whether its answer stands alone or not; the engine gets many small images, and one that is alone there."""

    async def test() -> None:
        async with pool() as made:
            decoding = Decoding(made, 1 << 30, lambda: 1)
            for refused in (None, dict[int, AWNetError]()):
                (small,) = images(SMALL)
                threads = begun()
                decoded, waited, admitted = await decoding.prepare([small], SIZE, soon(), None, refused)
                assert small.decoded is not None and begun() <= threads
                np.testing.assert_array_equal(small.decoded.pixels, decode(SMALL, SIZE, Limits()).pixels)
                assert 0 < decoded <= waited and not admitted
            assert await Decoding(made, 1 << 30, lambda: 0).prepare(images(SMALL), SIZE, soon()) == Prepared()
            many = images(*[SMALL] * 8)
            assert await decoding.prepare(many, SIZE, soon()) == Prepared()
            with pytest.raises(ImageError) as corrupt:
                await decoding.prepare(images(spoilt_pixels(SMALL)), SIZE, soon())
            assert corrupt.value.image == 0

    run(test)


def tiny(kind: str, **options: object) -> bytes:
    """The smallest image that is taken."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "files",
    [
        pytest.param([tiny("PNG")] * 32, id="many"),
        pytest.param([tiny("JPEG")] * 4, id="few"),
        pytest.param([unused_groups(1000)], id="a thousand tables of codes for 64 pixels"),
        pytest.param([many_scans(99)], id="99 scans of 64 pixels"),
    ],
)
def test_nothing_that_takes_half_a_millisecond_is_decoded_on_the_event_loops_thread(files: list[bytes]) -> None:
    """However few pixels and bytes: any image takes a tenth of one, and tables and scans take time without pixels."""

    async def test() -> None:
        async with pool() as made:
            these = images(*files)
            assert await Decoding(made, 1 << 30, lambda: 1).prepare(these, SIZE, soon()) == Prepared()
            assert all(image.decoded is None for image in these)
            assert all(image.pixels(SIZE).shape == (3, SIZE, SIZE) for image in these)  # they are images

    run(test)


def test_the_structure_of_more_than_8_kib_is_read_on_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment of 4 bytes takes longer than a KB of pixels."""
    picture = tiny("JPEG")
    many = picture[:2] + b"\xff\xe5\x00\x02" * 900 + picture[2:]
    read: list[threading.Thread] = []
    admit = EncodedImage.admit
    monkeypatch.setattr(
        EncodedImage, "admit", lambda self, size: (read.append(threading.current_thread()), admit(self, size))[1]
    )

    async def test() -> None:
        async with pool() as made:
            await Decoding(made, 1 << 30, lambda: 1).prepare(images(many), SIZE, soon())
            assert read[0] is threading.main_thread()
            read.clear()
            await Decoding(made, 1 << 30, lambda: 1).prepare(images(*[many] * 3), SIZE, soon())
            assert read[0] is not threading.main_thread()

    run(test)


def test_an_image_that_takes_too_long_ends_its_process_and_no_other() -> None:
    """By CPU time, whatever the machine does beside; the next image has a new process."""

    async def test() -> None:
        async with pool(seconds=0.05) as made:
            with pytest.raises(ImageError, match=r"more than 0\.05 seconds") as refused:
                await Decoding(made, 1 << 30, lambda: 1).prepare(images(SMALL, slow()), SIZE, soon())
            assert refused.value.image == 1
            assert made.waiting == 0
            (good,) = images(LARGE)
            await Decoding(made, 1 << 30, lambda: 1).prepare([good], SIZE, soon())
            assert good.decoded is not None

    run(test)


def test_images_that_are_answered_each_for_itself_are_all_decoded_and_the_bad_ones_named() -> None:
    """Cheap ones and others: what is refused by its structure, by the decoder here, or by one in another process."""

    async def test() -> None:
        async with pool(seconds=0.05) as made:
            late, refused = LARGE[: len(LARGE) // 2], dict[int, AWNetError]()
            given = images(SMALL, b"", b"text", slow(), LARGE, late)
            decoded, waited, admitted = await Decoding(made, 1 << 30, lambda: 1).prepare(
                given, SIZE, soon(), None, refused
            )
            assert admitted
            assert 0 < decoded <= waited
            kinds = {1: MissingImage, 2: UnsupportedMedia, 3: ImageError, 5: ImageError}
            assert {place: type(error) for place, error in refused.items()} == kinds
            assert all(error.image == place for place, error in refused.items())
            assert [place for place, image in enumerate(given) if image.decoded is not None] == [0, 4]

    run(test)


def test_a_process_that_is_stuck_is_killed_after_the_deadline() -> None:
    """It is stopped here, so that it would never answer."""

    async def test() -> None:
        async with pool() as made:
            decoding = Decoding(made, 1 << 30, lambda: 1)
            begun = clock.now()
            stuck = asyncio.create_task(decoding.prepare(images(slow()), SIZE, soon(2.0)))
            os.kill(await child_of(made), signal.SIGSTOP)
            with pytest.raises(DeadlineExceeded):
                await stuck
            assert clock.now() - begun < MAX_SECONDS / 2, "which is for requests that have no deadline"
            (good,) = images(LARGE)
            await decoding.prepare([good], SIZE, soon())
            assert good.decoded is not None

    run(test)


@pytest.mark.parametrize(
    ("ended", "kind"), [(signal.SIGSEGV, ImageError), (signal.SIGKILL, Unavailable), (signal.SIGABRT, ImageError)]
)
def test_a_decoder_that_crashes_costs_the_image_alone(ended: signal.Signals, kind: type[AWNetError]) -> None:
    """A fault in a library is about the image; a process that somebody else killed is not."""

    async def test() -> None:
        async with pool() as made:
            decoding = Decoding(made, 1 << 30, lambda: 1)
            task = asyncio.create_task(decoding.prepare(images(slow()), SIZE, soon()))
            pid = await child_of(made)
            os.kill(pid, ended)
            with pytest.raises(AWNetError) as refused:
                await task
            assert type(refused.value) is kind
            (good,) = images(LARGE)
            await decoding.prepare([good], SIZE, soon())
            assert good.decoded is not None

    run(test)


def test_a_process_that_ended_while_it_had_nothing_to_do_is_replaced() -> None:
    """The kernel may take it for its memory; no client notices."""

    async def test() -> None:
        async with pool() as made:
            decoding = Decoding(made, 1 << 30, lambda: 1)
            await decoding.prepare(images(LARGE), SIZE, soon())
            (child,) = made._idle
            child.kill()
            child._process.wait()
            (good,) = images(LARGE)
            await decoding.prepare([good], SIZE, soon())
            assert good.decoded is not None

    run(test)


def test_a_request_that_is_given_up_frees_its_process() -> None:
    """Its client has gone: what waits leaves the line, and what runs is killed after a moment."""

    async def test() -> None:
        async with pool() as made:
            decoding = Decoding(made, 1 << 30, lambda: 1)
            gone = asyncio.create_task(decoding.prepare(images(slow(), slow()), SIZE, soon()))
            os.kill(await child_of(made), signal.SIGSTOP)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            assert made.waiting == 1
            (good,) = images(LARGE)
            await decoding.prepare([good], SIZE, soon())
            assert good.decoded is not None
            assert made.waiting == 0 and not made._held

    run(test)


def test_more_pixels_than_a_request_may_have_are_refused_before_any_is_decoded() -> None:
    """One image alone is bounded by its own limit."""

    async def test() -> None:
        async with pool() as made:
            decoding = Decoding(made, 150_000, lambda: 1)
            with pytest.raises(ImageTooLarge, match="240000 pixels together"):
                await decoding.prepare(images(LARGE, LARGE), SIZE, soon())
            await decoding.prepare(images(LARGE), SIZE, soon())
            assert len(made._idle) == 1

    run(test)


def test_a_client_takes_at_most_what_it_leaves_to_the_others() -> None:
    """Alone half of the room; the first request always has a place."""

    async def test() -> None:
        weight = 120_000 + 2 * len(LARGE)
        async with pool(room=4 * weight) as made:
            decoding = Decoding(made, 1 << 30, lambda: 1)
            asked = [made.decode([(LARGE, 120_000, 120_000)], SIZE, soon(), client) for client in "aaab"]
            results = await asyncio.gather(*asked, return_exceptions=True)
            assert [type(result) for result in results] == [list, list, QueueFull, list]
            assert not made._held
            huge = images(*[LARGE] * 9)
            await decoding.prepare(huge, SIZE, soon())
            assert all(image.decoded is not None for image in huge)

    run(test)


def test_images_that_wait_behind_the_pool_take_its_places() -> None:
    """Who finds none is told before anything is decoded, and one whose priority is low has half of them."""

    async def test() -> None:
        behind = [0]
        async with pool(capacity=4, elsewhere=lambda: behind[0]) as made:

            def ask(client: str, terms: Terms | None = None) -> Any:
                return made.decode([(LARGE, 120_000, 120_000)], SIZE, terms or soon(), client)

            low = Terms(priority="low")
            asked = [ask("a"), ask("low", low), ask("another", low)]
            *let_in, refused = await asyncio.gather(*asked, return_exceptions=True)
            assert [type(result) for result in let_in] == [list, list]
            assert isinstance(refused, QueueFull)
            assert "2 images are waiting" in str(refused)
            behind[0] = 3
            let_in, refused = await asyncio.gather(ask("a"), ask("b"), return_exceptions=True)
            assert isinstance(let_in, list)
            assert "4 images are waiting" in str(refused)
            behind[0] = 100
            await ask("c")  # nothing is decoded: the engine behind it says what it has room for
            assert made.waiting == made.held == made.busy == 0

    run(test)


def test_the_end_of_a_process_is_told_with_its_reason() -> None:
    """That an image takes too long is another matter than that nobody waits for it any more."""

    async def test() -> None:
        reasons: list[str] = []
        async with pool(seconds=0.05, on_end=reasons.append) as made:
            with pytest.raises(ImageError):
                await Decoding(made, 1 << 30, lambda: 1).prepare(images(slow()), SIZE, soon())
        async with pool(on_end=reasons.append) as made:
            for ended in (signal.SIGSEGV, signal.SIGKILL):
                task = asyncio.create_task(Decoding(made, 1 << 30, lambda: 1).prepare(images(slow()), SIZE, soon()))
                os.kill(await child_of(made), ended)
                with pytest.raises(AWNetError):
                    await task
            late = asyncio.create_task(Decoding(made, 1 << 30, lambda: 1).prepare(images(slow()), SIZE, soon(1.0)))
            os.kill(await child_of(made), signal.SIGSTOP)
            with pytest.raises(DeadlineExceeded):
                await late
            await until(lambda: len(reasons) == 4)
        assert reasons == ["too slow", "crashed", "killed", "given up"]

    run(test)


def test_a_clients_second_image_comes_after_everybody_elses_first() -> None:
    """The line counts pixels, not arrivals."""

    async def test() -> None:
        async with pool() as made:
            decoding, order = Decoding(made, 1 << 30, lambda: 1), []

            async def ask(client: str, count: int) -> None:
                await decoding.prepare(images(*[LARGE] * count), SIZE, soon(), client=client)
                order.append(client)

            await decoding.prepare(images(LARGE), SIZE, soon())  # the process is there
            hog = asyncio.create_task(ask("hog", 12))
            await child_of(made)
            others = [asyncio.create_task(ask(name, 1)) for name in ("b", "c", "d")]
            await asyncio.gather(hog, *others)
            assert order[-1] == "hog"

    run(test)


def test_an_image_that_needs_too_much_memory_is_refused() -> None:
    """Within its process, which goes on."""

    async def test() -> None:
        async with pool(memory=200 << 20) as made:
            with pytest.raises(ImageError):
                await Decoding(made, 1 << 30, lambda: 1).prepare(images(slow()), SIZE, soon())
            assert len(made._idle) == 1

    run(test)


def test_closing_gives_up_what_runs_and_leaves_no_process() -> None:
    """Within moments, whatever a decoder does."""

    async def test() -> None:
        async with pool() as made:
            task = asyncio.create_task(Decoding(made, 1 << 30, lambda: 1).prepare(images(slow()), SIZE, soon()))
            pid = await child_of(made)
            os.kill(pid, signal.SIGSTOP)
            await made.close()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
            with pytest.raises(Unavailable):
                await Decoding(made, 1 << 30, lambda: 1).prepare(images(LARGE), SIZE, soon())

    run(test)

"""What the stages of a request cost alone, in CPU time: `benchmarks.speed.stages` runs it in the measured checkout.

python stage_times.py IMAGE MODEL.onnx, with the checkout as working folder and PYTHONPATH. A stage that a checkout
does not have in this form is left out. The fastest of many runs counts, which other work on the machine moves least.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import timeit
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

BOUNDARY = "awnet-benchmark"
BATCHES = (1, 8)


def fastest(stage: Callable[[], object], number: int = 10, repeat: int = 200) -> float:
    """Microseconds of CPU time of one call."""
    stage()
    return 1e6 * min(timeit.repeat(stage, timer=time.process_time, number=number, repeat=repeat)) / number


def form(image: bytes) -> bytes:
    """The upload as a browser sends it."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image.png"\r\n'
    return f"{head}Content-Type: image/png\r\n\r\n".encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()


class Handler:
    """Takes requests, and does nothing about them."""

    def begin(self, *given: object, **more: object) -> None: ...

    def add(self, data: bytes) -> None: ...

    def finish(self) -> None: ...


def parse(body: bytes) -> float:
    from server.http.reading import RequestReader

    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Length: {len(body)}\r\n"
    data = f"{head}Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n".encode() + body
    reader = RequestReader(Handler(), 32 << 10)
    return fastest(lambda: reader.feed(data, True))


def upload(body: bytes) -> float:
    from server.http.upload import uploads

    def once() -> object:
        found: Any = uploads(f"multipart/form-data; boundary={BOUNDARY}", body, 32)
        if not asyncio.iscoroutine(found):
            return found
        with suppress(StopIteration):  # it waits for nothing where the body is small
            found.send(None)
        return None

    return fastest(once)


def structure(image: bytes) -> float:
    from server.core.codecs.decode import read

    return fastest(lambda: read(image))


def pixels(image: bytes, size: int) -> float:
    from server.core.images import Limits, decode

    return fastest(lambda: decode(image, size, Limits()))


def statistics(size: int) -> float:
    import numpy as np

    from domain.statistics import measure

    noise = np.random.default_rng(0).integers(0, 256, (3, size, size), np.uint8)
    return fastest(lambda: measure(noise))


def session(model: bytes, images: int) -> float:
    """An image's share, on one thread."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = False
    run = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    size = run.get_inputs()[0].shape[2]
    rows = np.random.default_rng(0).integers(0, 256, (images, 3, size, size), np.uint8)
    return fastest(lambda: run.run(["logits", "p_type", "omega"], {"image": rows}), 1, 60) / images


def main() -> None:
    image, model = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]).read_bytes()
    body, size = form(image), 32
    stages: dict[str, Callable[[], float]] = {
        "parse": lambda: parse(body),
        "form": lambda: upload(body),
        "structure": lambda: structure(image),
        "decode, with structure and statistics": lambda: pixels(image, size),
        "statistics": lambda: statistics(size),
        **{f"session, batch of {n}": lambda n=n: session(model, n) for n in BATCHES},  # type: ignore[misc]
    }
    found = {}
    for name, stage in stages.items():
        with suppress(ImportError):
            found[name] = stage()
    print(json.dumps(found))


if __name__ == "__main__":
    main()

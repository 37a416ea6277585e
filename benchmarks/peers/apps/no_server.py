"""No server: decoding and the model in a loop on one core. `python no_server.py IMAGE BATCH SECONDS`

Warms up, prints `warm`, waits for a line, and prints the images a second.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from onnx_model import Model


def main(image: bytes, batch: int, seconds: float) -> None:
    model, images = Model(), [image] * batch
    for _ in range(max(1, 64 // batch)):
        model.answers(images)
    print("warm", flush=True)
    sys.stdin.readline()
    count, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds:
        model.answers(images)
        count += batch
    print(count / spent, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).read_bytes(), int(sys.argv[2]), float(sys.argv[3]))

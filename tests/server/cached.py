"""A service with an answer cache, for its tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from prometheus_client import generate_latest

from tests.server.small import Small
from tests.server.tiny import encoded, plain

ME, OTHER = "192.0.2.1", "192.0.2.2"
CLEAN, ADVERSARIAL = encoded(plain(0.2)), encoded(plain(0.9))


class Cached(Small):
    """A service with an answer cache, asked over HTTP from any address."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder, **{"answer_cache": 100, **settings})

    async def post(self, path: str, address: str = ME, **request: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://awnet") as client:
            return await client.post(path, **request)

    def predict(self, *images: bytes, address: str = ME, query: str = "", key: str = "") -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        files = [("image", ("a", image)) for image in images]
        return self.run(self.post(f"/predict{query}", address, files=files, headers=headers))

    @property
    def asked(self) -> int:
        """Requests that came to the engine, since it was last asked."""
        asked, self.engine.asked = len(self.engine.asked), []
        return asked

    def series(self, family: str) -> dict[str, float]:
        """Labels of a family's series -> value, without those that are 0."""
        rows = (row.rpartition(" ") for row in generate_latest(self.metrics.registry).decode().splitlines())
        return {
            row.removeprefix(family): float(value)
            for row, _, value in rows
            if row.startswith(family) and value != "0.0"
        }

    def results(self) -> dict[str, float]:
        return {label.split('"')[1]: n for label, n in self.series("awnet_answer_cache_images_total").items()}


def file(pixels: np.ndarray[Any, Any]) -> bytes:
    """Pixels [3,S,S] as a PNG file."""
    return encoded(Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1))))


def without_times(answer: httpx.Response) -> Any:
    found = answer.json()
    assert answer.status_code == 200, found
    for name in ("request_id", "timing_ms"):
        del found[name]
    return found

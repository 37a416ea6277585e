"""How much one client may ask, over every front end: refused before the body is read, and told when to come again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from server.oip.grpc_front import GrpcFront
from tests.server.keys import key, table, write
from tests.server.small import Small
from tests.server.tiny import SIZE, encoded, noise
from tests.waiting import settle

PNG = encoded(noise())
PREDICT = ("POST", "/predict")
INFER = ("POST", "/v2/models/awnet/infer")


def tensor(images: int) -> bytes:
    data = np.zeros((images, 3, SIZE, SIZE), np.uint8).ravel().tolist()
    shape = [images, 3, SIZE, SIZE]
    return json.dumps({"inputs": [{"name": "image", "datatype": "UINT8", "shape": shape, "data": data}]}).encode()


class Limited(Small):
    """A small service with a rate, and how it is asked."""

    def ask(
        self, method: str, path: str, body: bytes = b"", client: str = "1.1.1.1", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer to `client`; `read` says whether the body was asked for."""
        given = {
            "host": "localhost",
            "content-type": "image/png",
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }
        scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "query_string": b""}
        scope["headers"] = [(name.encode(), value.encode()) for name, value in given.items()]
        scope["headers"].append((b"content-length", b"%d" % len(body)))
        sent: list[Any] = []
        self.read = False

        async def receive() -> Any:
            self.read = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        self.run(
            (self.admin if path.startswith("/admin/") else self.app)({**scope, "client": (client, 1)}, receive, send)
        )
        reply_headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], reply_headers, sent[1]["body"]

    def status(self, *asked: Any, **headers: str) -> int:
        return self.ask(*asked, **headers)[0]


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Limited]:
    """Two requests at once, then one in a hundred seconds."""
    made = Limited(tmp_path, requests_per_second=0.01, request_burst=2, queue_share=0.5, trusted_proxies="10.0.0.0/8")
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(
    ("method", "path", "body"), [(*PREDICT, PNG), (*INFER, tensor(1)), ("GET", "/model", b""), ("GET", "/nowhere", b"")]
)
def test_a_client_over_its_rate_is_refused_before_its_body_is_read(
    limited: Limited, method: str, path: str, body: bytes
) -> None:
    """429, when it may come again, and that it was for nothing of the service's health."""
    assert 429 not in [limited.status(method, path, body) for _ in range(2)]
    status, headers, document = limited.ask(method, path, body)
    assert (status, limited.read) == (429, False)
    assert 95 <= int(headers["retry-after"]) <= 100
    if not path.startswith("/v2"):
        assert json.loads(document)["type"] == "urn:awnet:problem:rate-limited"
    assert limited.status(method, path, body, "2.2.2.2") != 429


def test_probes_the_page_metrics_and_admin_calls_have_no_rate(limited: Limited) -> None:
    """A balancer that asks every quarter of a second is no attack."""
    for _ in range(5):
        for path in ("/v2/health/live", "/v2/health/ready", "/", "/metrics", "/admin/models"):
            assert limited.status("GET", path) == 200


def test_clients_behind_a_trusted_proxy_have_buckets_of_their_own(limited: Limited) -> None:
    """And a stranger cannot take another's by a header, nor a new one with each request."""
    for client in ("1.1.1.1", "2.2.2.2"):
        asked = [limited.status("GET", "/model", b"", "10.0.0.1", x_forwarded_for=client) for _ in range(3)]
        assert asked == [200, 200, 429]
    spoofed = [limited.status("GET", "/model", b"", "6.6.6.6", x_forwarded_for=f"9.9.9.{n}") for n in range(3)]
    assert spoofed == [200, 200, 429]
    one = [limited.status("GET", "/model", b"", f"2001:db8::{n}") for n in range(3)]
    assert one == [200, 200, 429]


def test_further_images_of_a_request_are_charged_once_they_are_counted(tmp_path: Path) -> None:
    """Over /v2 as over /predict, where images are files."""
    made = Limited(tmp_path, requests_per_second=0.01, request_burst=4)
    try:
        assert made.status(*INFER, tensor(3)) == 200
        status, headers, _ = made.ask(*INFER, tensor(3))
        assert status == 429 and 195 <= int(headers["retry-after"]) <= 300
        assert made.status(*PREDICT, PNG) == 429
    finally:
        made.close()


def test_keys_have_rates_and_shares_of_their_own_and_unknown_ones_cost_their_address(tmp_path: Path) -> None:
    """A key is one client wherever it comes from; guessing keys is asking, too."""
    shop = table("shop", ["predict"], requests_per_second=0.01, burst=3)
    keys = write(tmp_path / "keys.toml", shop, table("other", ["predict"]))
    made = Limited(tmp_path / "models", api_keys=keys, requests_per_second=0.01, request_burst=1)
    try:
        for name, burst in (("shop", 3), ("other", 1)):
            bearer = f"Bearer {key(name)}"
            asked = [made.status("GET", "/model", b"", f"1.1.1.{n}", authorization=bearer) for n in range(burst + 1)]
            assert asked == [200] * burst + [429]
        assert [made.status("GET", "/model", b"", "6.6.6.6", authorization="Bearer wrong") for _ in range(2)] == [
            401,
            429,
        ]
        assert made.status("GET", "/model", b"", "6.6.6.6") == 429
    finally:
        made.close()


@pytest.mark.parametrize("path", ["/predict", "/model", "/metrics", "/nothing", "/admin/models"])
def test_a_key_that_may_not_ask_is_charged_for_asking(tmp_path: Path, path: str) -> None:
    """Whichever scope is lacking, or it would ask as often as it likes; other keys of that address are not charged."""
    keys = write(tmp_path / "keys.toml", table("nothing", []), table("other", ["predict"]))
    made = Limited(tmp_path / "models", api_keys=keys, requests_per_second=0.01, request_burst=2)
    try:
        bearer = f"Bearer {key('nothing')}"
        assert [made.status("POST", path, b"", authorization=bearer) for _ in range(4)] == [403, 403, 429, 429]
        assert made.status("GET", "/model", b"", authorization=f"Bearer {key('other')}") == 200
    finally:
        made.close()


def test_a_client_with_its_share_of_the_queue_is_refused_and_others_are_not(tmp_path: Path) -> None:
    """While its images run; afterwards it is answered again. gRPC and HTTP share the count."""
    made = Small(tmp_path, queue_share=0.25)  # two of eight

    async def ask(client: str) -> int:
        sent: list[Any] = []
        headers = [(b"content-type", b"image/png"), (b"content-length", b"%d" % len(PNG))]
        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "client": (client, 1)}

        async def receive() -> Any:
            if sent or not body:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": body.pop(), "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        body = [PNG]
        await made.app({**scope, "headers": headers}, receive, send)
        if sent[0]["status"] == 429:
            assert (b"retry-after", b"1") in sent[0]["headers"]
        return int(sent[0]["status"])

    async def scenario() -> list[int]:
        made.engine.gate.clear()
        first = [asyncio.create_task(ask("1.1.1.1")) for _ in range(2)]
        await settle()
        refused = await ask("1.1.1.1")
        other = asyncio.create_task(ask("2.2.2.2"))
        await settle()
        made.engine.gate.set()
        return [refused, *await asyncio.gather(*first, other), await ask("1.1.1.1")]

    try:
        assert made.run(scenario()) == [429, 200, 200, 200, 200]
    finally:
        made.close()


def test_a_caller_of_grpc_is_told_when_to_come_again(tmp_path: Path) -> None:
    """RESOURCE_EXHAUSTED, and retry-after in the trailing metadata; probes have no rate."""
    made = Small(tmp_path, requests_per_second=0.01, request_burst=2)
    front = GrpcFront(made.service, "127.0.0.1", 0)

    async def scenario(port: int) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for _ in range(2):
                await stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="awnet"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="awnet"))
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            metadata = dict(caught.value.trailing_metadata())
            assert 95 <= int(metadata["retry-after"]) <= 100 and metadata["x-request-id"]
            assert (await stub.ServerLive(service_pb2.ServerLiveRequest())).live

    try:
        made.run(scenario(made.run(front.start())))
    finally:
        made.run(front.stop(0))
        made.close()


def test_refusals_are_counted_from_the_start(limited: Limited) -> None:
    """So that the first of them is an increase."""
    samples = limited.ask("GET", "/metrics")[2].decode()
    for reason in ("rate-limited", "queue-share-taken", "misdirected-request"):
        assert f'awnet_rejections_total{{reason="{reason}"}} 0.0' in samples

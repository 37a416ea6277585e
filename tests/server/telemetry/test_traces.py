"""The spans of live servers, as a collector gets them: over HTTP and gRPC, across queue and batch, on to Triton."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
from opentelemetry.semconv.attributes.http_attributes import HTTP_REQUEST_METHOD, HTTP_RESPONSE_STATUS_CODE, HTTP_ROUTE
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.harness.processes import free_port
from server import __version__
from tests.server.engines.triton.fake_triton import FakeTriton, fakes
from tests.server.telemetry.collector import Collector, Span
from tests.server.tiny import ROOT, Running, encoded, noise, plain, publish
from tests.waiting import eventually, until

pytestmark = pytest.mark.process

PNG = encoded(noise())
IMAGE = {"content-type": "image/png"}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SERVER, CLIENT, INTERNAL = 2, 3, 1  # kinds of spans
ERROR = 2


def traceparent(flags: str = "01") -> str:
    return f"00-{TRACE}-{PARENT}-{flags}"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as listening:
        yield listening


class Traced:
    """A server that traces every request of callers without a trace, and the collector."""

    def __init__(self, collector: Collector, repository: Path) -> None:
        self.collector = collector
        self.grpc_port = free_port()
        self.server = Running(
            repository,
            otlp_endpoint=collector.url,
            grpc_port=self.grpc_port,
            request_log="true",
            policy="reject",
            query_guard="flag",
            query_guard_images=8,
        )

    def trace_of(self, spans: int, **attributes: object) -> dict[str, list[Span]]:
        """The spans of the one trace whose server's span has these attributes, by their names."""

        def found() -> list[Span] | None:
            spans = self.collector.spans()
            for server in spans:
                if server.kind == SERVER and attributes.items() <= server.attributes.items():
                    return [server, *(span for span in spans if span.parent_id == server.span_id)]
            return None

        trace = eventually(found, 30, what=f"{attributes}")
        assert len(trace) == spans, [span.name for span in trace]
        named: dict[str, list[Span]] = {}
        for span in trace:
            named.setdefault(span.name, []).append(span)
        return named


@pytest.fixture(scope="module")
def traced(repository: Path) -> Iterator[Traced]:
    with Collector() as listening:
        running = Traced(listening, repository)
        with running.server:
            running.server.wait_ready()
            yield running


def test_a_request_is_a_tree_of_spans(traced: Traced) -> None:
    """One span of the server, below the caller's; below it where the time went, each within it and in their order."""
    answer = traced.server.http.post(
        "/predict",
        content=PNG,
        headers=IMAGE | {"traceparent": traceparent(), "tracestate": "vendor=1", "x-request-id": "tree"},
    )
    assert answer.status_code == 200
    named = traced.trace_of(4, **{"awnet.request.id": "tree"})
    (server,), (queue,), (decode,), (inference,) = (
        named[name] for name in ("POST /predict", "queue", "decode", "inference")
    )
    assert (server.trace_id, server.parent_id, server.kind, server.state) == (TRACE, PARENT, SERVER, "vendor=1")
    assert server.status == 0
    verdict = answer.json()["results"][0]["adversarial"]["verdict"]
    model = {
        "awnet.model.name": "awnet",
        "awnet.model.version": "1",
        "awnet.mode": "auto",
        f"awnet.verdict.{verdict}": 1,
    }
    for stage in ("decode", "queue", "inference"):
        assert server.attributes.pop(f"awnet.{stage}.seconds") >= 0
    assert server.attributes == {
        HTTP_REQUEST_METHOD: "POST",
        HTTP_ROUTE: "/predict",
        HTTP_RESPONSE_STATUS_CODE: 200,
        "url.scheme": "http",
        "awnet.request.id": "tree",
        "awnet.images": 1,
        **model,
    }
    for child in (queue, decode, inference):
        assert (child.trace_id, child.parent_id, child.kind) == (TRACE, server.span_id, INTERNAL)
        assert server.start <= child.start <= child.end <= server.end
    assert queue.end <= decode.start and decode.end <= inference.start
    assert inference.attributes.pop("awnet.batch.number") >= 1
    assert inference.attributes == {"awnet.batch.images": 1, **model}
    assert server.resource["service.name"] == "awnet" and server.resource["service.version"] == __version__
    assert server.resource["telemetry.sdk.name"] == "opentelemetry" and server.resource["service.instance.id"]


def test_requests_that_share_a_batch_say_so(traced: Traced) -> None:
    """Two that ran together have the same number of a batch, and its size is that of both."""
    with ThreadPoolExecutor(16) as pool:
        for _ in range(20):
            list(
                pool.map(
                    lambda n: traced.server.http.post("/predict", content=encoded(noise(seed=n)), headers=IMAGE),
                    range(16),
                )
            )
            batches: dict[int, list[Span]] = {}
            eventually(lambda: len(traced.collector.traces()) % 16 < 16)
            for span in traced.collector.spans():
                if span.name == "inference":
                    batches.setdefault(span.attributes["awnet.batch.number"], []).append(span)
            shared = [spans for spans in batches.values() if len({span.trace_id for span in spans}) > 1]
            if shared:
                break
    assert shared
    for spans in shared:
        assert {span.attributes["awnet.batch.images"] for span in spans} == {len(spans)}
        assert len({(span.start // 1_000_000, span.end // 1_000_000) for span in spans}) <= 2  # rounded clocks


def test_the_caller_decides_whether_its_request_is_traced(traced: Traced) -> None:
    """Of one that is not, the log line has the ids all the same."""
    traced.server.http.post(
        "/predict", content=PNG, headers=IMAGE | {"traceparent": traceparent("00"), "x-request-id": "unsampled"}
    )
    traced.server.http.post("/predict", content=PNG, headers=IMAGE | {"x-request-id": "after"})
    traced.trace_of(4, **{"awnet.request.id": "after"})
    assert all(span.attributes.get("awnet.request.id") != "unsampled" for span in traced.collector.spans())

    def line() -> dict[str, object] | None:
        lines = [text for text in traced.server.text().splitlines() if '"request_id":"unsampled"' in text]
        return json.loads(lines[0]) if lines else None

    assert eventually(line)["trace_id"] == TRACE


def test_a_traceparent_that_is_none_does_no_harm(traced: Traced) -> None:
    """The request is answered, in a trace of its own."""
    headers = IMAGE | {"traceparent": "00-zz-zz-01", "tracestate": "=", "x-request-id": "bad-parent"}
    assert traced.server.http.post("/predict", content=PNG, headers=headers).status_code == 200
    ((server,),) = [traced.trace_of(4, **{"awnet.request.id": "bad-parent"})["POST /predict"]]
    assert server.trace_id != TRACE and server.parent_id == ""


def test_a_refusal_names_its_reason(traced: Traced) -> None:
    """4xx is no failure of the server's; no part of what was sent is told, not even a path that nobody serves."""
    traced.server.http.post("/predict", content=b"no image", headers=IMAGE | {"x-request-id": "refused"})
    named = traced.trace_of(2, **{"awnet.request.id": "refused"})
    (server,), (decode,) = named["POST /predict"], named["decode"]
    assert (server.attributes["error.type"], server.status) == ("unsupported-media", 0)
    assert (decode.attributes["error.type"], decode.status) == ("unsupported-media", ERROR)
    traced.server.http.request("PROPFIND", "/tell/nobody?key=secret", headers={"x-request-id": "nowhere"})
    (server,) = traced.trace_of(1, **{"awnet.request.id": "nowhere"})["HTTP"]
    assert server.attributes[HTTP_REQUEST_METHOD] == "_OTHER" and HTTP_ROUTE not in server.attributes


def test_what_policy_and_guard_do_are_events(traced: Traced) -> None:
    """In the request's own span, and counted."""
    attack = encoded(plain(0.9))
    traced.server.http.post("/predict", content=attack, headers=IMAGE | {"x-request-id": "attack"})
    (server,) = traced.trace_of(4, **{"awnet.request.id": "attack"})["POST /predict"]
    assert server.events["awnet.policy"] == {"awnet.policy": "reject", "awnet.decision.withheld": 1}
    for n in range(12):
        picture = noise(seed=99)
        picture.putpixel((n, 0), (0, 0, 0))
        traced.server.http.post("/predict", content=encoded(picture), headers=IMAGE | {"x-request-id": f"like-{n}"})
    (server,) = traced.trace_of(4, **{"awnet.request.id": "like-11"})["POST /predict"]
    assert server.events["awnet.query_guard"] == {"awnet.images.similar": 1, "awnet.images.repeated": 1}


def test_calls_of_grpc_are_traced_alike(traced: Traced) -> None:
    """By the conventions for RPC; the caller's trace comes in the metadata."""
    metadata = [("traceparent", traceparent()), ("tracestate", "vendor=1"), ("x-request-id", "over-grpc")]
    with grpc.insecure_channel(f"127.0.0.1:{traced.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="awnet")
        request.inputs.add(name="image", datatype="UINT8", shape=[1, 3, 32, 32])
        request.raw_input_contents.append(bytes(3 * 32 * 32))
        stub.ModelInfer(request, metadata=metadata)
        with pytest.raises(grpc.RpcError):
            request.inputs[0].datatype = "FP64"
            stub.ModelInfer(request, metadata=[("x-request-id", "grpc-refused")])
    (server,) = traced.trace_of(4, **{"awnet.request.id": "over-grpc"})["inference.GRPCInferenceService/ModelInfer"]
    assert (server.trace_id, server.parent_id, server.kind, server.state) == (TRACE, PARENT, SERVER, "vendor=1")
    assert server.attributes["rpc.system.name"] == "grpc"
    assert server.attributes["rpc.response.status_code"] == "OK"
    assert server.attributes["rpc.method"] == "inference.GRPCInferenceService/ModelInfer"
    named = traced.trace_of(1, **{"awnet.request.id": "grpc-refused"})
    ((server,),) = named.values()
    assert server.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT" and server.status == 0


def test_what_programs_ask_all_the_time_is_not_traced(traced: Traced) -> None:
    """Probes and scrapes, as in the request log."""
    for path in ("/v2/health/ready", "/metrics"):
        traced.server.http.get(path)
    traced.server.http.get("/model", headers={"x-request-id": "after-probes"})
    traced.trace_of(1, **{"awnet.request.id": "after-probes"})
    assert not any("health" in span.name or "metrics" in span.name for span in traced.collector.spans())


@pytest.mark.parametrize(("side", "before"), [(32, False), (100, False), (1500, True)])
def test_an_image_has_one_span_of_decoding_wherever_that_was_done(traced: Traced, side: int, before: bool) -> None:
    """By the engine's thread that runs it, or by a process."""
    name = f"side-{side}"
    image = encoded(noise(side, side))
    traced.server.http.post("/predict", content=image, headers=IMAGE | {"x-request-id": name})
    named = traced.trace_of(4, **{"awnet.request.id": name})
    (decode,), (queue,) = named["decode"], named["queue"]
    assert ("awnet.decode.seconds" in decode.attributes) is before
    assert decode.end <= queue.start if before else queue.end <= decode.start


def test_no_span_holds_an_image_a_name_an_address_or_a_query(traced: Traced) -> None:
    """Nothing of what a client sent but its ids, in all that came so far."""
    files = {"image": ("tell-nobody.png", PNG, "image/png")}
    traced.server.http.post("/predict?top_k=3", files=files, headers={"x-request-id": "last", "x-api-key": "tell-key"})
    traced.trace_of(4, **{"awnet.request.id": "last"})
    exported = b"".join(message.SerializeToString() for message in traced.collector.messages("/v1/traces"))
    for secret in (b"tell-nobody", b"tell-key", b"top_k", b"127.0.0.1", b"/tell/", PNG[:24]):
        assert secret not in exported


def test_exemplars_name_the_trace(traced: Traced) -> None:
    """In OpenMetrics, for whoever may see request ids."""
    traced.server.http.post("/predict", content=PNG, headers=IMAGE | {"x-request-id": "exemplary"})
    (server,) = traced.trace_of(4, **{"awnet.request.id": "exemplary"})["POST /predict"]
    text = traced.server.http.get("/metrics", headers={"accept": "application/openmetrics-text"}).text
    ids = f'{{request_id="exemplary",span_id="{server.span_id}",trace_id="{server.trace_id}"}}'
    assert f"# {ids}" in text


def test_the_trace_goes_on_to_triton(collector: Collector, repository: Path) -> None:
    """The call's span is the parent there; a trace that is not sampled says so, and the settings' metadata stays."""

    async def story() -> None:
        triton = FakeTriton(1)
        async with fakes(triton):
            server = Running(
                repository,
                engine="triton",
                triton_urls=triton.url,
                triton_metadata="x-team=vision",
                otlp_endpoint=collector.url,
            )
            with server:
                await server.until_ready()
                async with httpx.AsyncClient(base_url=server.url) as http:
                    for flags in ("01", "00"):
                        headers = IMAGE | {"traceparent": traceparent(flags), "tracestate": "vendor=1"}
                        assert (await http.post("/predict", content=PNG, headers=headers)).status_code == 200
                traceparents = [
                    metadata for name, metadata in triton.seen if name == "ModelInfer" and "traceparent" in metadata
                ]
                sampled, other = traceparents
                await until(lambda: len(collector.spans()) >= 3)
                (call,) = [span for span in collector.spans() if span.name == "inference"]
                assert call.kind == CLIENT
                assert sampled["traceparent"] == f"00-{TRACE}-{call.span_id}-01"
                assert sampled["tracestate"] == other["tracestate"] == "vendor=1"
                assert other["traceparent"].startswith(f"00-{TRACE}-") and other["traceparent"].endswith("-00")
                assert sampled["x-team"] == "vision"

    asyncio.run(story())


def test_a_collector_that_is_killed_delays_nobody_and_gets_the_rest_when_it_is_back(
    collector: Collector, repository: Path
) -> None:
    """What waits in between is sent to the one that comes back; the metric says what became of each trace."""
    with Running(repository, otlp_endpoint=collector.url) as server:
        server.wait_ready()
        server.http.post("/predict", content=PNG, headers=IMAGE)
        eventually(lambda: len(collector.traces()) == 1)
        collector.close()
        for _ in range(20):
            assert server.http.post("/predict", content=PNG, headers=IMAGE).elapsed.total_seconds() < 2
        collector.begin()
        server.http.post("/predict", content=PNG, headers=IMAGE | {"x-request-id": "later"})
        eventually(lambda: any(s.attributes.get("awnet.request.id") == "later" for s in collector.spans()))
        eventually(lambda: sum(sent(server).values()) == 22)
        counted = sent(server)
    assert counted["sent"] == len(collector.traces())
    assert counted["failed"] == 22 - counted["sent"] and counted["dropped"] == 0


def sent(server: Running) -> dict[str, float]:
    """What became of the traces."""
    found = {}
    for line in server.http.get("/metrics").text.splitlines():
        if line.startswith('awnet_telemetry_items_total{result="') or 'signal="traces"' in line:
            name, count = line.rsplit(" ", 1)
            found[name.split('result="')[1].split('"')[0]] = float(count)
    return found


@pytest.mark.slow
def test_a_collector_that_hangs_delays_nobody_and_the_end_comes_in_time(collector: Collector, repository: Path) -> None:
    """Requests are answered as ever, and SIGTERM ends the server within its own limit."""
    with Running(repository, otlp_endpoint=collector.url, shutdown_seconds=2) as server:
        server.wait_ready()
        collector.open.clear()
        for _ in range(50):
            assert server.http.post("/predict", content=PNG, headers=IMAGE).elapsed.total_seconds() < 2
        assert server.stop(signal.SIGTERM, 8) == 0
        assert "were not sent" in server.text()


def test_what_waits_is_sent_at_sigterm(collector: Collector, repository: Path) -> None:
    """The last request's spans arrive though the server ends at once."""
    with Running(repository, otlp_endpoint=collector.url) as server:
        server.wait_ready()
        server.http.post("/predict", content=PNG, headers=IMAGE | {"x-request-id": "last"})
        assert server.stop() == 0
    assert any(span.attributes.get("awnet.request.id") == "last" for span in collector.spans())


def test_without_the_package_the_start_says_what_to_install(repository: Path) -> None:
    """One line, which also says how to do without, since the variable may be another program's idea."""
    code = "import sys; sys.modules['opentelemetry.sdk'] = None; from server.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--repository", str(repository), "--port", "0", "--admin-port", "none"]
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "PATH": ""}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "pip install '.[telemetry]'" in ended.stderr and "Traceback" not in ended.stderr

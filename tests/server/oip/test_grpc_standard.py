"""gRPC's own services, health and reflection, and what clients of KServe can read."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tritonclient.grpc import service_pb2

from server.oip import grpc_front, grpc_standard
from server.oip.grpc_front import HEALTH_CHECK, HEALTH_WATCH, GrpcFront
from server.oip.grpc_messages import DOUBLES
from server.oip.grpc_standard import HEALTH, INFERENCE, REFLECTIONS, HealthCheckRequest, HealthCheckResponse
from tests.server.small import Small
from tests.server.tiny import encoded, plain

Status = grpc.StatusCode


class Served:
    """A small service behind gRPC, and channels to it without any generated stub."""

    def __init__(self, small: Small) -> None:
        self.small = small
        self.front = GrpcFront(small.service, "127.0.0.1", 0)
        self.port = small.run(self.front.start())

    def call(self, use: Callable[[Any], Awaitable[Any]]) -> Any:
        async def go() -> Any:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
                return await use(channel)

        return self.small.run(go())

    def health(self, service: str = "") -> int:
        kinds = {
            "request_serializer": HealthCheckRequest.SerializeToString,
            "response_deserializer": HealthCheckResponse.FromString,
        }
        asked = HealthCheckRequest(service=service)
        status: int = self.call(lambda channel: channel.unary_unary(HEALTH_CHECK, **kinds)(asked, timeout=60)).status
        return status

    def reflect(self, service: str, *questions: dict[str, Any]) -> list[Any]:
        """The answers to some questions on one stream."""
        package = service.rpartition(".")[0]
        request, response = (
            grpc_standard.message_class(f"{package}.ServerReflection{kind}") for kind in ("Request", "Response")
        )

        async def use(channel: Any) -> list[Any]:
            stream = channel.stream_stream(
                f"/{service}/ServerReflectionInfo",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
            call = stream(iter([request(**question) for question in questions]), timeout=60)
            return [answer async for answer in call]

        found: list[Any] = self.call(use)
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    small = Small(tmp_path_factory.mktemp("repository"))
    running = Served(small)
    yield running
    small.run(running.front.stop(0))
    small.close()


@pytest.mark.parametrize("service", ["", INFERENCE])
def test_health_is_readiness(served: Served, service: str) -> None:
    """As Kubernetes' gRPC probe asks, with a service's name or without."""
    assert served.health(service) == grpc_standard.SERVING
    served.small.engine.reachable = False
    try:
        assert served.health(service) == grpc_standard.NOT_SERVING
    finally:
        served.small.engine.reachable = True


def test_the_health_of_a_service_that_is_not_there_is_not_found(served: Served) -> None:
    """As the protocol says."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        served.health("other")
    assert (refused.value.code(), "'other'" in str(refused.value.details())) == (Status.NOT_FOUND, True)


def watching(channel: Any, service: str = "") -> Any:
    kinds = {
        "request_serializer": HealthCheckRequest.SerializeToString,
        "response_deserializer": HealthCheckResponse.FromString,
    }
    return channel.unary_stream(HEALTH_WATCH, **kinds)(HealthCheckRequest(service=service), timeout=60)


def test_who_watches_health_is_told_each_change(served: Served) -> None:
    """What it is now, at once, and then what it becomes; a service that is not there may come, and is no error."""

    async def go(channel: Any) -> list[int]:
        watched, unknown = watching(channel), watching(channel, "other")
        statuses = [(await unknown.read()).status, (await watched.read()).status]
        for reachable in (False, True):
            served.small.engine.reachable = reachable
            statuses.append((await watched.read()).status)
        return statuses

    serving, not_serving = grpc_standard.SERVING, grpc_standard.NOT_SERVING
    assert served.call(go) == [grpc_standard.SERVICE_UNKNOWN, serving, not_serving, serving]


def test_watching_ends_where_the_server_drains(tmp_path: Path) -> None:
    """After it was told: so nobody is held until the end, and balancers send nothing more."""
    draining = Served(Small(tmp_path))

    async def go(channel: Any) -> list[int]:
        watched = watching(channel)
        statuses = [(await watched.read()).status]
        draining.small.service.drain()
        while (answer := await watched.read()) is not grpc.aio.EOF:
            statuses.append(answer.status)
        return statuses

    try:
        assert draining.call(go) == [grpc_standard.SERVING, grpc_standard.NOT_SERVING]
    finally:
        draining.small.run(draining.front.stop(0))
        draining.small.close()


def test_watchers_are_bounded_and_take_no_calls_place(tmp_path: Path) -> None:
    """Three quarters of as many as calls are one client's; whoever goes makes room, and calls are answered beside."""
    few = Served(Small(tmp_path, grpc_max_calls=4))

    async def go(channel: Any) -> tuple[Any, int]:
        held = [watching(channel) for _ in range(3)]
        assert {(await one.read()).status for one in held} == {grpc_standard.SERVING}
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{few.port}", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as another:
            fourth = await watching(another).code()
            check = another.unary_unary(HEALTH_CHECK, response_deserializer=HealthCheckResponse.FromString)
            beside = (await check(b"", timeout=60)).status
            held[0].cancel()
            await until_watched(another)
        return fourth, beside

    async def until_watched(channel: Any) -> None:
        while True:
            try:
                assert (await watching(channel).read()).status == grpc_standard.SERVING
            except grpc.aio.AioRpcError as full:
                assert full.code() == Status.RESOURCE_EXHAUSTED
            else:
                return

    try:
        assert few.call(go) == (Status.RESOURCE_EXHAUSTED, grpc_standard.SERVING)
    finally:
        few.small.run(few.front.stop(0))
        few.small.close()


def test_health_needs_no_key(served: Served) -> None:
    """A probe has none; reflection is for those who may ask."""
    assert {HEALTH_CHECK, HEALTH_WATCH} <= grpc_front.OPEN
    assert not set(grpc_front.REFLECT) & grpc_front.OPEN


@pytest.mark.parametrize("service", REFLECTIONS)
def test_reflection_gives_what_a_client_needs_to_call(served: Served, service: str) -> None:
    """As grpcurl asks: services, then the file of a symbol; from what comes back, a call can be made."""
    listed, symbol, file, method = served.reflect(
        service,
        {"list_services": ""},
        {"file_containing_symbol": INFERENCE},
        {"file_by_filename": "grpc/health/v1/health.proto"},
        {"file_containing_symbol": f"{INFERENCE}.ModelInfer"},
    )
    names = [one.name for one in listed.list_services_response.service]
    assert names == [INFERENCE, HEALTH, *REFLECTIONS]
    pool = descriptor_pool.DescriptorPool()
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in symbol.file_descriptor_response.file_descriptor_proto
    ]
    for described in reversed(files):  # what is imported comes later
        pool.Add(described)
    found = pool.FindServiceByName(INFERENCE).FindMethodByName("ModelInfer").input_type
    request = message_factory.GetMessageClass(found)(model_name="awnet").SerializeToString()
    assert service_pb2.ModelInferRequest.FromString(request).model_name == "awnet"
    assert len(file.file_descriptor_response.file_descriptor_proto) == 1
    assert method.file_descriptor_response == symbol.file_descriptor_response
    assert method.original_request.file_containing_symbol == f"{INFERENCE}.ModelInfer"


@pytest.mark.parametrize(
    ("question", "code"),
    [
        ({"file_containing_symbol": "no.such.Name"}, grpc_standard.NOT_FOUND),
        ({"file_containing_symbol": f"{INFERENCE}.Nothing"}, grpc_standard.NOT_FOUND),
        ({"file_by_filename": "no.proto"}, grpc_standard.NOT_FOUND),
        ({"all_extension_numbers_of_type": "x"}, grpc_standard.UNIMPLEMENTED),
        ({}, grpc_standard.UNIMPLEMENTED),
    ],
)
def test_what_reflection_does_not_know_is_an_answer(served: Served, question: dict[str, Any], code: int) -> None:
    """The stream goes on; a name that is nowhere is told as such."""
    first, second = served.reflect(REFLECTIONS[0], question, {"list_services": ""})
    assert first.error_response.error_code == code
    assert second.WhichOneof("message_response") == "list_services_response"


def test_a_stream_of_questions_has_an_end(served: Served) -> None:
    """And a message that is none ends it with a status, not with a fault."""
    many = [{"list_services": ""}] * (grpc_front.MAX_REFLECTED + 10)
    assert len(served.reflect(REFLECTIONS[0], *many)) == grpc_front.MAX_REFLECTED

    async def broken(channel: Any) -> None:
        async for _ in channel.stream_stream(f"/{REFLECTIONS[0]}/ServerReflectionInfo")(iter([b"\xff"]), timeout=60):
            pass

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        served.call(broken)
    assert refused.value.code() == Status.INVALID_ARGUMENT


def kserve_parameter() -> Any:
    """KServe's InferParameter, which has no double."""
    file = descriptor_pb2.FileDescriptorProto(name="kserve.proto", package="kserve", syntax="proto3")
    message, field = file.message_type.add(name="InferParameter"), descriptor_pb2.FieldDescriptorProto
    message.oneof_decl.add(name="parameter_choice")
    kinds = {"bool_param": field.TYPE_BOOL, "int64_param": field.TYPE_INT64, "string_param": field.TYPE_STRING}
    for number, (name, kind) in enumerate(kinds.items(), 1):
        message.field.add(name=name, number=number, type=kind, label=field.LABEL_OPTIONAL, oneof_index=0)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("kserve.InferParameter"))


def test_thresholds_can_be_read_without_doubles(served: Served) -> None:
    """KServe's clients find no value in a parameter that is a double; its text has them all."""
    image = {"name": "image_bytes", "datatype": "BYTES", "shape": [1]}
    data = encoded(plain(0.2))
    message = service_pb2.ModelInferRequest(
        model_name="awnet", inputs=[image], raw_input_contents=[len(data).to_bytes(4, "little") + data]
    )
    answer = served.call(
        lambda channel: channel.unary_unary(
            f"/{INFERENCE}/ModelInfer",
            request_serializer=message.__class__.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )(message, timeout=60)
    )
    kserve = kserve_parameter()
    read = {name: kserve.FromString(given.SerializeToString()) for name, given in answer.parameters.items()}
    assert read["threshold_suspicious"].WhichOneof("parameter_choice") is None
    texts = json.loads(read[DOUBLES].string_param)
    doubles = {name: given.double_param for name, given in answer.parameters.items() if name in texts}
    assert texts == doubles
    assert {"threshold_suspicious", "threshold_adversarial", "target_fpr_suspicious"} <= texts.keys()

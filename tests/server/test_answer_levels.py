"""How much of the scores each caller is told: exact, in five levels, or the verdict alone; over HTTP and gRPC alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from server.core.answers import LEVELS, level
from server.http.schemas import Answer
from server.oip.grpc_front import GrpcFront
from server.oip.outputs import ON_REQUEST, SIGNALS
from tests.server.keys import key, table, write
from tests.server.schema_2 import schema_2
from tests.server.small import Small
from tests.server.tiny import encoded, plain, publish

PNG = encoded(plain(0.9))
CALLERS = {
    "exact": table("exact"),
    "plain": table("plain", ["predict"]),
    "bands": table("bands", answers='"bands"'),
    "verdict": table("verdict", answers='"verdict"'),
}
OF_LEVELS = {
    "verdict",
    "label",
    "calibrated",
    "why",
    "score_level",
    "probability_level",
    "domain",
    "thresholds",
    "decision",
}
OF_VERDICT = {"verdict", "label", "calibrated", "why", "decision"}
# Caller -> the outputs that it may have, and those that it gets where it names none.
OUTPUTS = {
    "exact": ({*SIGNALS, *ON_REQUEST}, list(SIGNALS)),
    "plain": (set(ON_REQUEST), ["score", "verdict", "label"]),
    "bands": (OF_LEVELS, ["score_level", "verdict", "label"]),
    "verdict": (OF_VERDICT, ["verdict", "label"]),
}


class Service:
    """A service whose model maps scores, over HTTP and gRPC."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.small = Small(folder, versions_kept=3, **settings)
        publish(folder, "3", schema_2())
        self.small.run(self.small.service.models.reload())
        self.front = GrpcFront(self.small.service, "127.0.0.1", 0)
        self.port = self.small.run(self.front.start())

    def close(self) -> None:
        self.small.run(self.front.stop(0))
        self.small.close()

    def predict(self, name: str | None, query: str = "") -> tuple[int, dict[str, Any]]:
        status, _, body = self.small.http("POST", f"/predict{query}", headers(name), PNG)
        return status, json.loads(body)

    def infer(self, name: str | None, *outputs: str) -> tuple[int, dict[str, Any]]:
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 3, 32, 32], "data": [200] * 3072}
        document = {"inputs": [tensor], "outputs": [{"name": output} for output in outputs]}
        body = json.dumps(document).encode()
        status, _, answer = self.small.http("POST", "/v2/models/awnet/infer", headers(name), body)
        return status, json.loads(answer)

    def call(self, name: str, *outputs: str) -> Any:
        """The same over gRPC: the response, or the status that refuses it."""
        tensor = {"name": "image", "datatype": "UINT8", "shape": (1, 3, 32, 32)}
        message = service_pb2.ModelInferRequest(
            model_name="awnet",
            inputs=[tensor],
            raw_input_contents=[b"\xc8" * 3072],
            outputs=[{"name": n} for n in outputs],
        )

        async def go() -> Any:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                try:
                    return await stub.ModelInfer(message, metadata=(("x-api-key", key(name)),), timeout=60)
                except grpc.aio.AioRpcError as error:
                    return error.code()

        return self.small.run(go())


def headers(name: str | None) -> dict[bytes, bytes]:
    content_type = {b"content-type": b"image/png"}
    return content_type if name is None else {**content_type, b"authorization": f"Bearer {key(name)}".encode()}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    keys = write(tmp_path_factory.mktemp("keys") / "keys.toml", *CALLERS.values())
    running = Service(tmp_path_factory.mktemp("repository"), api_keys=keys)
    yield running
    running.close()


def test_a_level_is_a_fifth() -> None:
    """From 0 to 1, both included; an edge belongs to the level above."""
    assert [level(p) for p in (0.0, 0.199999, 0.2, 0.5, 0.6, 0.8, 1.0)] == [
        "very-low",
        "very-low",
        "low",
        "medium",
        "high",
        "very-high",
        "very-high",
    ]
    assert len(LEVELS) == 5


def numbers(document: Any) -> set[float]:
    """Every number in it that is no whole one."""
    if isinstance(document, dict):
        return set().union(*map(numbers, document.values())) if document else set()
    if isinstance(document, list):
        return set().union(*map(numbers, document)) if document else set()
    return {document} if isinstance(document, float) and document != int(document) else set()


def test_predict_tells_levels(service: Service) -> None:
    """In the place of scores and probabilities, of as many classes; what does not depend on the score is as it was."""
    _, exact = service.predict("exact")
    status, answer = service.predict("bands")
    Answer.model_validate(answer)
    (whole,), (left,) = exact["results"], answer["results"]
    assert status == 200
    assert left["predictions"] == [
        {"class_id": p["class_id"], "label": p["label"], "probability_level": level(p["probability"])}
        for p in whole["predictions"]
    ]
    judged, levels = whole["adversarial"], left["adversarial"]
    assert levels["score_level"] == level(judged["score"])
    assert levels["probability_level"] == level(judged["probability"])
    assert {name: value for name, value in judged.items() if name not in ("score", "probability")} == {
        name: value for name, value in levels.items() if not name.endswith("_level")
    }
    secret = numbers(whole["predictions"]) | {judged["score"], judged["probability"]}
    assert secret and not secret & numbers(left)


def test_predict_tells_class_and_verdict(service: Service) -> None:
    """And whether the verdict can be relied on; nothing else of the scores."""
    _, exact = service.predict("exact")
    status, answer = service.predict("verdict")
    Answer.model_validate(answer)
    (whole,), (left,) = exact["results"], answer["results"]
    best = whole["predictions"][0]
    assert status == 200
    assert left["predictions"] == [{"class_id": best["class_id"], "label": best["label"]}]
    judged = whole["adversarial"]
    assert left["adversarial"] == {name: judged[name] for name in ("verdict", "calibrated", "why")}
    assert left["image"] == whole["image"]
    assert not numbers(left)


@pytest.mark.parametrize(
    ("name", "query", "status"),
    [
        ("exact", "?signals=all", 200),
        ("plain", "?signals=none", 200),
        ("plain", "?signals=summary", 403),
        ("bands", "?signals=all", 403),
        ("bands", "?top_k=10", 200),
        ("verdict", "?signals=summary", 403),
        ("verdict", "?top_k=1", 200),
        ("verdict", "?top_k=2", 403),
    ],
)
def test_predict_refuses_what_is_not_told(service: Service, name: str, query: str, status: int) -> None:
    """By name, before anything is decoded: to leave it out would be another answer than was asked for."""
    before = service.small.metrics.registry.get_sample_value("awnet_stage_seconds_count", {"stage": "decode"})
    found, answer = service.predict(name, query)
    assert found == status, answer
    if status == 403:
        after = service.small.metrics.registry.get_sample_value("awnet_stage_seconds_count", {"stage": "decode"})
        assert after == before
        assert answer["type"] == "urn:awnet:problem:forbidden"


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_protocol_tells_the_same(service: Service, name: str) -> None:
    """Outputs that are not told are refused by name, and left out where none are named; metadata lists the others."""
    may, unnamed = OUTPUTS[name]
    for output in (*SIGNALS, *ON_REQUEST):
        status, answer = service.infer(name, "verdict", output) if output != "verdict" else service.infer(name, output)
        assert status == (200 if output in may else 403), answer
        response = service.call(name, output)
        assert (response == grpc.StatusCode.PERMISSION_DENIED) == (output not in may)
    status, answer = service.infer(name)
    assert [output["name"] for output in answer["outputs"]] == unnamed
    assert [output.name for output in service.call(name).outputs] == unnamed
    metadata = json.loads(service.small.http("GET", "/v2/models/awnet", headers(name))[2])
    assert {output["name"] for output in metadata["outputs"]} == may
    config = json.loads(service.small.http("GET", "/v2/models/awnet/config", headers(name))[2])
    assert {output["name"] for output in config["output"]} == may


def test_the_protocol_tells_no_number_of_the_scores(service: Service) -> None:
    """Neither in outputs nor in parameters."""
    _, exact = service.infer("exact", "score", "probability", "logits", "omega", "p_type")
    secret = numbers(exact["outputs"])
    for name in ("bands", "verdict"):
        for outputs in ([], sorted(OUTPUTS[name][0])):
            answer = service.infer(name, *outputs)[1]
            assert not secret & numbers(answer)
    assert set(service.infer("verdict")[1]["parameters"]) == {"calibrated", "mode", "sha256"}
    (levels,) = [o["data"] for o in service.infer("bands", "score_level")[1]["outputs"]]
    (score,) = [o["data"] for o in exact["outputs"] if o["name"] == "score"]
    assert levels == [level(value) for value in score]


def test_without_keys_the_setting_decides(tmp_path: Path) -> None:
    """For everybody; a key's own goes first, callers without one included."""
    keys = write(tmp_path / "keys.toml", table("exact", answers='"exact"'), '[anonymous]\nscopes = ["predict"]\n')
    for settings, name, expected in (
        ({"answers": "verdict"}, None, {"verdict", "calibrated", "why"}),
        ({"answers": "verdict", "api_keys": keys}, None, {"verdict", "calibrated", "why"}),
        ({"answers": "verdict", "api_keys": keys}, "exact", None),
    ):
        running = Small(tmp_path / "models", **settings)
        try:
            answer = json.loads(running.http("POST", "/predict", headers(name), PNG)[2])
            found = set(answer["results"][0]["adversarial"])
            assert found == expected if expected else "score" in found
        finally:
            running.close()

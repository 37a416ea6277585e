"""A policy is carried out alike by /predict and the Open Inference Protocol, over HTTP and gRPC, and is counted."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as tritongrpc
import tritonclient.http as tritonhttp
from prometheus_client import generate_latest
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from benchmarks.harness.processes import free_port
from server.core.policy import DECISIONS, Policy
from server.http.schemas import Answer, Problem
from server.monitoring import request_log
from tests.server.keys import key, table, write
from tests.server.schema_3 import publish_modes
from tests.server.small import Small
from tests.server.tiny import CALL, LABELS, ROOT, SIZE, Running, encoded, noise, plain, publish
from tests.waiting import until

CLEAN, SUSPICIOUS, ADVERSARIAL = (encoded(plain(red)) for red in (0.2, 0.6, 0.9))
RESIZED = encoded(plain(0.2, (64, 64)))  # the tiny model's thresholds do not speak for it
INFER = "/v2/models/awnet/infer"
BOUNDARY = b"a-boundary"
OUTPUTS = ("logits", "label", "verdict", "decision", "p_type")

Serve = Callable[..., Small]


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A service with these settings."""
    running: list[Small] = []

    def start(**settings: Any) -> Small:
        running.append(Small(tmp_path_factory.mktemp("repository"), **settings))
        return running[-1]

    yield start
    for small in running:
        small.close()


def predict(small: Small, *images: bytes, query: str = "", **headers: str) -> tuple[int, Any]:
    parts = [
        b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + image + b"\r\n"
        for image in images
    ]
    given = {name.encode(): value.encode() for name, value in headers.items()}
    given[b"content-type"] = b"multipart/form-data; boundary=" + BOUNDARY
    body = b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"
    status, _, content = small.http("POST", f"/predict{query}", given, body)
    return status, json.loads(content)


def pixels(*reds: float) -> np.ndarray[Any, Any]:
    """Flat images of the model's size whose scores are `reds`."""
    return np.stack([np.asarray(plain(red)).transpose(2, 0, 1) for red in reds])


def infer(small: Small, *reds: float, binary: bool = False) -> tuple[int, Any]:
    """Over HTTP; outputs by name, as they stand in JSON, or as arrays of raw bytes."""
    images = pixels(*reds)
    wanted = [{"name": name, "parameters": {"binary_data": binary}} for name in OUTPUTS]
    given = {"name": "image", "datatype": "UINT8", "shape": images.shape, "data": images.ravel().tolist()}
    status, headers, content = small.http(
        "POST", INFER, body=json.dumps({"inputs": [given], "outputs": wanted}).encode()
    )
    if status != 200:
        return status, json.loads(content)["error"]
    end = int(headers.get("inference-header-content-length", len(content)))
    raw, found = content[end:], {}
    for output in json.loads(content[:end])["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        found[output["name"]] = output.get("data", raw[:size])
        raw = raw[size:]
    return status, found


def call(small: Small, *reds: float) -> Any:
    """The answer over gRPC."""
    images = pixels(*reds)
    message = service_pb2.ModelInferRequest(
        model_name="awnet",
        inputs=[{"name": "image", "datatype": "UINT8", "shape": images.shape}],
        outputs=[{"name": name} for name in OUTPUTS],
        raw_input_contents=[images.tobytes()],
    )
    return small.infer(message)


def series(small: Small, family: str) -> dict[str, float]:
    """Labels of a family's series -> value, without those that are 0."""
    rows = (row.rpartition(" ") for row in generate_latest(small.metrics.registry).decode().splitlines())
    return {
        name.removeprefix(family): float(value) for name, _, value in rows if name.startswith(family) and float(value)
    }


def decisions(small: Small) -> dict[str, float]:
    found = series(small, "awnet_policy_decisions_total")
    return {",".join(part.split('"')[1] for part in labels.split(",")): value for labels, value in found.items()}


# What is answered.


@pytest.mark.parametrize("policy", ["flag", "observe"])
def test_flag_and_observe_answer_as_without_a_policy(serve: Serve, policy: str) -> None:
    """Field by field: nobody can tell from an answer that they are observed."""
    status, answer = predict(serve(policy=policy), CLEAN, ADVERSARIAL, RESIZED)
    assert status == 200
    Answer.model_validate(answer, strict=True)
    assert "policy" not in answer
    assert [len(result["predictions"]) for result in answer["results"]] == [5, 5, 5]
    assert all(set(result) == {"file", "predictions", "adversarial", "image"} for result in answer["results"])
    status, found = infer(serve(policy=policy), 0.2, 0.9)
    assert (status, found["verdict"], found["decision"]) == (200, ["clean", "adversarial"], ["answered"] * 2)
    assert all(label in LABELS for label in found["label"])
    assert np.isfinite(np.array(found["logits"], np.float64)).all()


def test_abstain_gives_no_class_and_says_everything_else(serve: Serve) -> None:
    """Of that image alone. `top_k` and `signals` bring no class back."""
    small = serve(policy="abstain")
    status, answer = predict(small, CLEAN, ADVERSARIAL, SUSPICIOUS, query="?top_k=10&signals=all")
    assert status == 200
    Answer.model_validate(answer, strict=True)
    assert answer["policy"] == "abstain"
    clean, adversarial, suspicious = answer["results"]
    assert (len(clean["predictions"]), adversarial["predictions"], len(suspicious["predictions"])) == (10, [], 10)
    assert [result["decision"] for result in answer["results"]] == ["answered", "withheld", "answered"]
    assert (adversarial["adversarial"]["verdict"], "signals" in adversarial) == ("adversarial", True)
    assert predict(small, ADVERSARIAL)[0] == 200


def test_reject_leaves_a_problem_in_the_place_of_the_image(serve: Serve) -> None:
    """The others are answered, in their places; of the rejected one nothing is told but why."""
    status, answer = predict(serve(policy="reject"), CLEAN, ADVERSARIAL, RESIZED, SUSPICIOUS, query="?signals=all")
    assert status == 200
    Answer.model_validate(answer, strict=True)
    first, rejected, unsure, last = answer["results"]
    assert [result["adversarial"]["verdict"] for result in (first, last)] == ["clean", "suspicious"]
    assert set(rejected) == set(unsure) == {"file", "problem", "decision"}
    assert rejected == {
        "file": "a",
        "problem": {
            "type": "urn:awnet:problem:image-rejected",
            "title": "Image rejected",
            "status": 422,
            "detail": "the image is rejected: its verdict is adversarial",
            "request_id": answer["request_id"],
            "image": 1,
        },
        "decision": "withheld",
    }
    assert (unsure["problem"]["image"], unsure["decision"]) == (2, "withheld-unsure")
    assert unsure["problem"]["detail"] == "the image is rejected: no threshold speaks for it (resized)"


def test_a_request_of_which_no_image_is_left_is_422(serve: Serve) -> None:
    small = serve(policy="reject")
    status, problem = predict(small, ADVERSARIAL)
    assert (status, problem["type"]) == (422, "urn:awnet:problem:image-rejected")
    Problem.model_validate(problem, strict=True)
    assert (problem["detail"], problem["image"]) == ("the image is rejected: its verdict is adversarial", 0)
    status, problem = predict(small, ADVERSARIAL, RESIZED, ADVERSARIAL)
    assert (status, problem.get("image")) == (422, None)
    assert problem["detail"] == (
        "all 3 images are rejected: its verdict is adversarial; no threshold speaks for it (resized)"
    )
    assert series(small, "awnet_rejections_total") == {'{reason="image-rejected"}': 2}


def test_one_of_as_many_images_as_a_request_may_hold_is_rejected_alone(serve: Serve) -> None:
    small = serve(policy="reject", max_images=32, queue_capacity=64)
    status, answer = predict(small, *[CLEAN] * 20, ADVERSARIAL, *[CLEAN] * 11)
    assert (status, len(answer["results"])) == (200, 32)
    assert [n for n, result in enumerate(answer["results"]) if "problem" in result] == [20]


@pytest.mark.parametrize("binary", [False, True])
def test_an_abstained_row_of_a_tensor_has_no_class(serve: Serve, binary: bool) -> None:
    """Its logits are NaN, which JSON writes as null, its label is empty, and the detector's own outputs are there."""
    small = serve(policy="abstain")
    status, found = infer(small, 0.2, 0.9, 0.3, binary=binary)
    assert status == 200
    if binary:
        logits = np.frombuffer(found["logits"], np.float32).reshape(3, len(LABELS))
        p_type = np.frombuffer(found["p_type"], np.float32)
        assert b"\x00\x00\x00\x00" in found["label"]
    else:
        assert found["logits"][len(LABELS) : 2 * len(LABELS)] == [None] * len(LABELS)
        logits = np.array(found["logits"], np.float32).reshape(3, len(LABELS))  # numpy reads null as NaN
        p_type = np.array(found["p_type"])
        assert [bool(label) for label in found["label"]] == [True, False, True]
        assert found["verdict"] == ["clean", "adversarial", "clean"]
        assert found["decision"] == ["answered", "withheld", "answered"]
    assert np.isnan(logits).all(axis=1).tolist() == np.isnan(logits).any(axis=1).tolist() == [False, True, False]
    assert np.isfinite(p_type).all()


def test_an_abstained_row_over_grpc_is_the_same(serve: Serve) -> None:
    response = call(serve(policy="abstain"), 0.2, 0.9)
    names = [output.name for output in response.outputs]
    raw = dict(zip(names, response.raw_output_contents, strict=True))
    assert np.isnan(np.frombuffer(raw["logits"], np.float32).reshape(2, -1)).all(axis=1).tolist() == [False, True]
    assert raw["label"].endswith(b"\x00\x00\x00\x00")
    assert np.isfinite(np.frombuffer(raw["p_type"], np.float32)).all()


def test_a_rejected_row_fails_the_call_and_is_named(serve: Serve) -> None:
    """With a status that no other refusal has: 422 over HTTP, FAILED_PRECONDITION over gRPC."""
    small = serve(policy="reject")
    assert infer(small, 0.2, 0.9) == (422, "input 'image', element 1: rejected, its verdict is adversarial")
    assert infer(small, 0.9, 0.2, 0.9)[1] == "input 'image', elements 0, 2: rejected, its verdict is adversarial"
    assert infer(small, 0.2, 0.3)[0] == 200
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        call(small, 0.2, 0.9)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "input 'image', element 1: rejected, its verdict is adversarial"
    assert [key for key, _ in caught.value.trailing_metadata()] == ["x-request-id"]


def test_files_in_a_tensor_are_decided_like_those_of_a_form(serve: Serve) -> None:
    small = serve(policy="reject", unsure="closed")
    files = [CLEAN, RESIZED]
    raw = b"".join(len(file).to_bytes(4, "little") + file for file in files)
    given = {"name": "image_bytes", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(raw)}}
    text = json.dumps({"inputs": [given]}).encode()
    headers = {b"inference-header-content-length": b"%d" % len(text)}
    status, _, content = small.http("POST", INFER, headers, text + raw)
    assert (status, json.loads(content)["error"]) == (
        422,
        "input 'image_bytes', element 1: rejected, no threshold speaks for it (resized)",
    )


# Where the detector is unsure, and which verdicts are withheld.


def test_what_no_threshold_speaks_for_is_closed_or_open_and_said_either_way(serve: Serve) -> None:
    _, answer = predict(serve(policy="abstain"), CLEAN, RESIZED)
    assert [(len(r["predictions"]), r["decision"]) for r in answer["results"]] == [
        (5, "answered"),
        (0, "withheld-unsure"),
    ]
    _, answer = predict(serve(policy="abstain", unsure="open"), CLEAN, RESIZED)
    unsure = answer["results"][1]
    assert (len(unsure["predictions"]), unsure["decision"]) == (5, "answered-unsure")
    assert unsure["adversarial"]["calibrated"] is False


@pytest.mark.parametrize("unsure", ["open", "closed"])
@pytest.mark.parametrize("policy", ["flag", "observe", "abstain", "reject"])
def test_a_detector_that_gives_no_number_fails_the_request_whatever_the_policy(
    serve: Serve, policy: str, unsure: str
) -> None:
    """That is a fault of the model and no doubt about an image: it fails closed."""
    small = serve(policy=policy, unsure=unsure)

    def spoil(signals: Any) -> None:
        signals.p_type[0] = np.nan

    small.engine.spoil = spoil
    status, problem = predict(small, CLEAN)
    assert (status, problem["type"]) == (503, "urn:awnet:problem:engine-fault")
    assert decisions(small) == {}


def test_a_version_whose_threshold_no_score_exceeds_never_passes_as_a_detector(tmp_path: Path) -> None:
    """Its contract is a valid one, and each of its verdicts would be at most suspicious."""

    def blind(contract: dict[str, Any]) -> None:
        contract["thresholds"]["adversarial"]["score"] = 1.0

    small = Small(tmp_path, start=False, policy="reject")
    publish(tmp_path, "3", blind)
    small.run(small.service.models.start())
    try:
        status, problem = predict(small, encoded(plain(1.0)))
        assert (status, problem["detail"]) == (
            422,
            "the image is rejected: no threshold speaks for it (none can be exceeded)",
        )
        assert predict(small, CLEAN)[0] == 422
    finally:
        small.close()


def test_suspicious_images_are_withheld_where_the_setting_says_so(serve: Serve) -> None:
    small = serve(policy="reject", policy_at="suspicious")
    status, answer = predict(small, CLEAN, SUSPICIOUS, ADVERSARIAL)
    assert status == 200
    assert [result.get("decision") for result in answer["results"]] == ["answered", "withheld", "withheld"]
    assert answer["results"][1]["problem"]["detail"].endswith("its verdict is suspicious")


# What is counted.


def test_decisions_are_counted_and_verdicts_as_ever(serve: Serve) -> None:
    """An image is withheld from its client, not from those who watch: verdicts, CUSUM, clients count it."""
    counted = {}
    for policy in DECISIONS:
        small = serve(policy=policy)
        predict(small, CLEAN, ADVERSARIAL, RESIZED)
        counted[policy] = decisions(small)
        assert series(small, "awnet_verdicts_total") == {
            '{model="awnet",verdict="clean",version="2"}': 2,
            '{model="awnet",verdict="adversarial",version="2"}': 1,
        }
        assert small.service.monitor.of(small.service.models.latest()).count(calibrated=True) == 2
    each = {"answered": 1, "withheld": 1, "withheld-unsure": 1}
    assert counted == {
        "flag": {"answered,awnet,flag": 3},
        **{
            policy: {f"{decision},awnet,{policy}": count for decision, count in each.items()}
            for policy in ("abstain", "reject", "observe")
        },
    }


def test_a_rejected_call_counts_its_verdicts_and_decisions_once(serve: Serve) -> None:
    small = serve(policy="reject")
    infer(small, 0.2, 0.9)
    assert decisions(small) == {"answered,awnet,reject": 1, "withheld,awnet,reject": 1}
    assert sum(series(small, "awnet_verdicts_total").values()) == 2
    assert series(small, "awnet_rejections_total") == {'{reason="image-rejected"}': 1}


@pytest.mark.parametrize("policy", DECISIONS)
def test_every_decision_is_counted_from_0_on(serve: Serve, policy: Policy) -> None:
    """Of the policies that a request may have; those of all others would be series that say nothing."""
    text = generate_latest(serve(policy=policy).metrics.registry).decode()
    rows = [row for row in text.splitlines() if row.startswith("awnet_policy_decisions_total")]
    assert rows == [
        f'awnet_policy_decisions_total{{decision="{decision}",model="awnet",policy="{policy}"}} 0.0'
        for decision in DECISIONS[policy]
    ]
    assert ('awnet_rejections_total{reason="image-rejected"} 0.0' in text) == (policy == "reject")


def test_a_line_of_the_request_log_has_policy_and_decisions(serve: Serve) -> None:
    """A refused request, too; without a policy the line is what it was."""
    stream = io.StringIO()
    request_log.configure(True, handler=logging.StreamHandler(stream))
    try:
        predict(serve(policy="reject"), CLEAN, ADVERSARIAL)
        predict(serve(policy="reject"), ADVERSARIAL)
        predict(serve(policy="observe"), ADVERSARIAL)
        predict(serve(), ADVERSARIAL)
    finally:
        request_log.configure(False)
    some, none, observed, flagged = map(json.loads, stream.getvalue().splitlines())
    assert (some["status"], some["policy"], some["decisions"]) == (200, "reject", {"answered": 1, "withheld": 1})
    assert (none["status"], none["reason"], none["decisions"]) == (422, "image-rejected", {"withheld": 1})
    assert (observed["status"], observed["policy"], observed["decisions"]) == (200, "observe", {"withheld": 1})
    assert "policy" not in flagged
    assert "decisions" not in flagged


# Whose policy it is.


def test_a_model_may_have_a_policy_of_its_own(serve: Serve) -> None:
    small = serve(policy="observe", policies="awnet=abstain")
    assert predict(small, ADVERSARIAL)[1]["results"][0]["predictions"] == []


def test_a_key_has_a_policy_that_goes_before_the_models(serve: Serve, tmp_path: Path) -> None:
    """Each request has that of its own key, or of callers without one; of a key that says nothing, the model's."""
    tables = [table("strict", policy='"reject"'), table("trusted", policy='"flag"'), table("other")]
    keys = write(tmp_path / "keys.toml", *tables, "[anonymous]\nscopes = ['predict']\npolicy = 'observe'\n")
    small = serve(policies="awnet=abstain", api_keys=keys)
    text = generate_latest(small.metrics.registry).decode()
    for policy in ("abstain", "reject", "observe"):
        assert f'awnet_policy_decisions_total{{decision="withheld",model="awnet",policy="{policy}"}} 0.0' in text
    assert predict(small, ADVERSARIAL, authorization=f"Bearer {key('strict')}")[0] == 422
    status, answer = predict(small, ADVERSARIAL, authorization=f"Bearer {key('trusted')}")
    assert (status, len(answer["results"][0]["predictions"])) == (200, 5)
    assert predict(small, ADVERSARIAL, authorization=f"Bearer {key('other')}")[1]["policy"] == "abstain"
    assert "policy" not in predict(small, ADVERSARIAL)[1]
    assert decisions(small) == {
        "withheld,awnet,reject": 1,
        "answered,awnet,flag": 1,
        "withheld,awnet,abstain": 1,
        "withheld,awnet,observe": 1,
    }


# Beside canary, shadow and modes, and over a network.


def test_a_policy_holds_for_a_canary_and_hides_nothing_from_the_shadow(serve: Serve) -> None:
    """It is the model's, whichever version answers; what is compared are the versions' answers, not what is left."""
    canary = serve(policy="reject", canary="1:1")
    assert predict(canary, ADVERSARIAL)[0] == 422
    assert decisions(canary) == {"withheld,awnet,reject": 1}
    compared = serve(policy="reject", shadow="1")
    assert predict(compared, ADVERSARIAL)[0] == 422

    def asked() -> bool:
        return series(compared, "awnet_shadow_images_total") == {'{model="awnet",result="compared",version="1"}': 1}

    compared.run(until(asked))
    assert not any("verdict" in labels for labels in series(compared, "awnet_shadow_disagreements_total"))


@pytest.mark.parametrize("mode", ["auto", "robust", "natural"])
def test_a_policy_holds_in_every_mode(tmp_path: Path, mode: str) -> None:
    """The detector judges in each, so that no mode is a way around it."""
    small = Small(tmp_path, start=False, policy="abstain")
    publish_modes(tmp_path, "3")
    small.run(small.service.models.start())
    try:
        status, answer = predict(small, encoded(noise()), encoded(plain(0.1)), query=f"?mode={mode}")
        assert (status, answer["mode"], answer["model"]["version"]) == (200, mode, "3")
        assert [bool(result["predictions"]) for result in answer["results"]] == [True, False]
        assert answer["results"][1]["decision"] == "withheld-unsure"  # a flat image lies in no domain
    finally:
        small.close()


@pytest.mark.process
def test_two_workers_reject_the_attacked_twin_of_each_example_and_answer_the_others() -> None:
    """The bundled model, through the clients that people have; what is counted are both workers' decisions."""
    port = free_port()
    running = Running(ROOT / "model_repository", workers=2, threads=1, policy="reject", grpc_port=port)
    files = {path.stem: path.read_bytes() for path in sorted((ROOT / "examples").glob("*.png"))}
    attacked = [name.endswith("-adversarial") for name in files]
    try:
        running.wait_ready()
        fields = [("image", (name, file)) for name, file in files.items()]
        answer = running.http.post("/predict?top_k=1", files=fields).json()
        assert ["problem" in result for result in answer["results"]] == attacked
        assert sum(attacked) == 11
        rejected = httpx.post(f"{running.url}/predict", content=files["ship-adversarial"], **CALL)
        assert (rejected.status_code, rejected.headers["content-type"]) == (422, "application/problem+json")

        rows = np.array([files["ship"], files["ship-adversarial"]], np.object_)
        for library, address, status in (
            (tritonhttp, running.address, "422"),
            (tritongrpc, f"127.0.0.1:{port}", "StatusCode.FAILED_PRECONDITION"),
        ):
            image = library.InferInput("image_bytes", [2], "BYTES")
            image.set_data_from_numpy(rows)
            client = library.InferenceServerClient(address)
            with closing(client), pytest.raises(InferenceServerException) as caught:
                client.infer("awnet", [image])
            assert caught.value.status() == status
            assert "element 1: rejected, its verdict is adversarial" in caught.value.message()

        text = httpx.get(f"{running.url}/metrics", **CALL).text
        counted = {"answered": 13.0, "withheld": 14.0}
        for decision, images in counted.items():
            labels = f'{{decision="{decision}",model="awnet",policy="reject"}}'
            assert f"awnet_policy_decisions_total{labels} {images}" in text
    finally:
        running.stop()


@pytest.mark.process
def test_tritonclient_reads_an_abstained_row_as_nan_from_json_and_from_bytes(repository: Path) -> None:
    running = Running(repository, policy="abstain")
    try:
        running.wait_ready()
        image = tritonhttp.InferInput("image", [2, 3, SIZE, SIZE], "UINT8")
        image.set_data_from_numpy(pixels(0.2, 0.9))
        for binary in (False, True):
            wanted = [tritonhttp.InferRequestedOutput(name, binary_data=binary) for name in ("logits", "label")]
            with closing(tritonhttp.InferenceServerClient(running.address)) as client:
                result = client.infer("awnet", [image], outputs=wanted)
            logits, label = result.as_numpy("logits"), result.as_numpy("label")
            assert logits.dtype == np.float32
            assert np.isnan(logits).all(axis=1).tolist() == [False, True]
            assert label[1] in (b"", "")
    finally:
        running.stop()

"""The Open Inference Protocol over HTTP, without a network: what is answered, what is refused, and how fast."""

from __future__ import annotations

import base64
import gzip
import json
import random
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image
from prometheus_client import generate_latest

from server.core import clock
from server.core.engine import Terms
from server.core.images import Limits, decode
from server.core.verdict import judge
from server.errors import BodyTooLarge, DeadlineExceeded, EngineFault, EngineUnavailable, QueueFull
from server.oip import rest
from server.oip.outputs import ON_REQUEST, SIGNALS
from tests.server.schema_2 import schema_2
from tests.server.small import Small
from tests.server.tiny import CHANNELS, LABELS, SIZE, encoded, noise, plain, publish
from tests.waiting import until

IMAGES = np.random.default_rng(5).integers(0, 256, (3, 3, SIZE, SIZE), np.uint8)
INFER = "/v2/models/awnet/infer"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    running = Small(tmp_path_factory.mktemp("repository"))
    yield running
    running.close()


def ask(
    small: Small, path: str, document: Any = None, raw: bytes = b"", *, method: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One exchange; with `raw`, the document's length goes into its header."""
    body = b"" if document is None else document if isinstance(document, bytes) else json.dumps(document).encode()
    given = {key.replace("_", "-").encode(): value.encode() for key, value in headers.items()}
    if raw and rest.HEADER_LENGTH not in given:
        given[rest.HEADER_LENGTH] = str(len(body)).encode()
    verb = method or ("GET" if document is None else "POST")
    return small.http(verb, path, given, body + raw)


def answered(small: Small, document: Any, raw: bytes = b"", path: str = INFER) -> dict[str, Any]:
    """The JSON of an answer that must be a success."""
    status, headers, content = ask(small, path, document, raw)
    assert status == 200, content
    length = headers.get("inference-header-content-length")
    return json.loads(content[: int(length)] if length else content)


def refused(small: Small, document: Any, raw: bytes = b"", *, status: int = 400, **headers: str) -> str:
    """The message of an answer that must be a refusal, told as the protocol tells it."""
    got, reply_headers, content = ask(small, INFER, document, raw, **headers)
    assert got == status, content
    assert reply_headers["content-type"] == "application/json"
    error = json.loads(content)
    assert list(error) == ["error"]
    assert isinstance(error["error"], str)
    return error["error"]


def image(values: Any = None, **changes: Any) -> dict[str, Any]:
    """A request with the tensor `image` as JSON data."""
    array = IMAGES if values is None else values
    given = {"name": "image", "datatype": "UINT8", "shape": list(array.shape), "data": array.ravel().tolist()}
    return {"inputs": [given | changes]}


def files(*contents: bytes, **changes: Any) -> tuple[dict[str, Any], bytes]:
    """A request with encoded images, as binary data."""
    raw = b"".join(len(content).to_bytes(4, "little") + content for content in contents)
    parameters = {"binary_data_size": len(raw)}
    given = {"name": "image_bytes", "datatype": "BYTES", "shape": [len(contents)], "parameters": parameters}
    return {"inputs": [given | changes]}, raw


def outputs(answer: dict[str, Any]) -> dict[str, Any]:
    """Outputs by name, as arrays in their shapes."""
    return {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in answer["outputs"]}


def expected(small: Small) -> dict[str, Any]:
    """What onnxruntime says about IMAGES."""
    session = ort.InferenceSession(small.settings.repository / "awnet/2/model.onnx", providers=["CPUExecutionProvider"])
    names = ["logits", "p_type", "omega"]
    return dict(zip(names, session.run(names, {"image": IMAGES}), strict=True))


# What is told about the server and its models.


def test_health_and_metadata(small: Small) -> None:
    """Only what is served is advertised."""
    assert ask(small, "/v2/health/live")[0] == 200
    assert ask(small, "/v2/health/ready")[0] == 200
    status, _, content = ask(small, "/v2")
    metadata = json.loads(content)
    assert status == 200
    assert metadata["name"] == "awnet-server"
    assert set(metadata["extensions"]) == {"binary_tensor_data", "model_configuration", "schedule_policy"}


@pytest.mark.parametrize("path", ["/v2/models/awnet", "/v2/models/awnet/versions/1", "/v2/models/awnet/"])
def test_model_metadata_names_versions_inputs_and_outputs(small: Small, path: str) -> None:
    """Every tensor that can be sent or asked for, with -1 for the number of images."""
    metadata = json.loads(ask(small, path)[2])
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("awnet", ["1", "2"], "onnxruntime_onnx")
    assert metadata["inputs"] == [
        {"name": "image", "datatype": "UINT8", "shape": [-1, 3, SIZE, SIZE]},
        {"name": "image_bytes", "datatype": "BYTES", "shape": [-1]},
    ]
    shapes = {output["name"]: (output["datatype"], output["shape"]) for output in metadata["outputs"]}
    assert shapes == {
        "logits": ("FP32", [-1, len(LABELS)]),
        "p_type": ("FP32", [-1, 2]),
        "omega": ("FP32", [-1, CHANNELS]),
        "score": ("FP32", [-1]),
        "verdict": ("BYTES", [-1]),
        "label": ("BYTES", [-1]),
        "calibrated": ("BOOL", [-1]),
        "domain": ("BYTES", [-1]),
        "why": ("BYTES", [-1]),
        "thresholds": ("FP64", [-1, 2]),
        "decision": ("BYTES", [-1]),
        "score_level": ("BYTES", [-1]),
    }


def test_every_output_comes_as_its_metadata_says(small: Small) -> None:
    """Name by name: datatype, shape and number of values."""
    outputs = json.loads(ask(small, "/v2/models/awnet")[2])["outputs"]
    answer = answered(small, image() | {"outputs": [{"name": output["name"]} for output in outputs]})
    for promised, output in zip(outputs, answer["outputs"], strict=True):
        assert (output["name"], output["datatype"]) == (promised["name"], promised["datatype"])
        assert output["shape"] == [len(IMAGES) if n == -1 else n for n in promised["shape"]]
        assert len(output["data"]) == np.prod(output["shape"])


def test_model_configuration_agrees_with_the_metadata(small: Small) -> None:
    """Triton's form of the same facts."""
    metadata = json.loads(ask(small, "/v2/models/awnet")[2])
    config = json.loads(ask(small, "/v2/models/awnet/versions/2/config")[2])
    assert config["max_batch_size"] == 0
    assert [part["dims"] for part in config["input"]] == [part["shape"] for part in metadata["inputs"]]
    assert [part["dims"] for part in config["output"]] == [part["shape"] for part in metadata["outputs"]]
    assert {part["data_type"] for part in config["output"]} == {"TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BOOL"}


@pytest.mark.parametrize(
    "path",
    ["/v2/models/other", *(f"/v2/models/awnet/versions/{text}" for text in ("9", "x", "01", "+1", "²", "9" * 30))],
)
@pytest.mark.parametrize("call", ["", "/ready", "/config"])
def test_an_unknown_model_or_version_is_404(small: Small, path: str, call: str) -> None:
    """For every question about it."""
    status, _, content = ask(small, path + call)
    assert status == 404
    assert list(json.loads(content)) == ["error"]


def test_a_model_is_ready_until_the_server_leaves(tmp_path: Path) -> None:
    """A probe on the model sees the drain as a probe on the server does."""
    small = Small(tmp_path)
    paths = ["/v2/health/ready", "/v2/models/awnet/ready", "/v2/models/awnet/versions/1/ready"]
    assert [ask(small, path)[0] for path in paths] == [200, 200, 200]
    small.service.drain()
    assert [ask(small, path)[0] for path in paths] == [503, 503, 503]
    assert ask(small, "/v2/health/live")[0] == 200
    answered(small, image())  # and what still comes is answered
    small.close()


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/v2/systemsharedmemory/region/a/register", "systemsharedmemory"),
        ("/v2/repository/index", "repository"),
        ("/v2/models/stats", "stats"),
        ("/v2/models/awnet/versions/1/stats", "stats"),
        ("/v2/models/awnet/generate", "generate"),
        ("/v2/models/awnet/trace/setting", "nothing"),
        ("/v2/nothing", "nothing"),
        ("/v2/models", "nothing"),
        ("/v2/models//infer", "nothing"),
    ],
)
def test_what_is_not_served_is_404_and_says_so(small: Small, path: str, word: str) -> None:
    """A client of another server's extension learns that it is missing, not that the address is wrong."""
    status, _, content = ask(small, path, {})
    assert status == 404
    assert word in json.loads(content)["error"]
    assert rest.route(path) is None


@pytest.mark.parametrize(("path", "method"), [(INFER, "GET"), ("/v2", "POST"), ("/v2/models/awnet/ready", "DELETE")])
def test_another_method_is_405_with_allow(small: Small, path: str, method: str) -> None:
    """As HTTP asks for."""
    status, headers, content = ask(small, path, method=method)
    assert (status, headers["allow"]) == (405, "POST" if path == INFER else "GET, HEAD")
    assert list(json.loads(content)) == ["error"]


def test_routes_are_templates() -> None:
    """Labels of metrics come from a closed set, whatever is asked."""
    assert rest.route("/v2/models/anything/versions/7/infer") == "/v2/models/{model}/versions/{version}/infer"
    assert rest.route("/v2/models/a") == "/v2/models/{model}"
    assert rest.route("/v2/health/live/") == "/v2/health/live"
    assert rest.route("/v2/else") is None


# Inference.


def test_json_gives_the_values_of_the_model(small: Small) -> None:
    """To the last bit: nothing is rounded on its way through JSON."""
    answer = answered(small, image() | {"id": "mine"})
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("mine", "awnet", "2")
    got = outputs(answer)
    assert list(got) == ["logits", "p_type", "omega"]
    for name, want in expected(small).items():
        np.testing.assert_array_equal(got[name].astype(np.float32), want)


def test_nested_and_flat_data_are_the_same(small: Small) -> None:
    """The protocol allows both."""
    assert answered(small, image(data=IMAGES.tolist()))["outputs"] == answered(small, image())["outputs"]


@pytest.mark.parametrize("whole", [True, False], ids=["binary_data_output", "binary_data"])
def test_binary_data_both_ways(small: Small, whole: bool) -> None:
    """Raw bytes in, raw bytes out: for the whole request, or output by output."""
    raw = IMAGES.tobytes()
    document: dict[str, Any] = image(parameters={"binary_data_size": len(raw)})
    del document["inputs"][0]["data"]
    if whole:
        document["parameters"] = {"binary_data_output": True}
        document["outputs"] = [
            {"name": "omega"},
            {"name": "verdict"},
            {"name": "p_type", "parameters": {"binary_data": False}},
        ]
    else:
        named = {"parameters": {"binary_data": True}}
        document["outputs"] = [{"name": "omega"} | named, {"name": "verdict"} | named, {"name": "p_type"}]
    status, headers, content = ask(small, INFER, document, raw)
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    length = int(headers["inference-header-content-length"])
    answer, rest = json.loads(content[:length]), content[length:]
    sizes = [output.get("parameters", {}).get("binary_data_size") for output in answer["outputs"]]
    want = expected(small)
    assert sizes[0] == want["omega"].nbytes
    np.testing.assert_array_equal(
        np.frombuffer(rest[: sizes[0]], "<f4").reshape(answer["outputs"][0]["shape"]), want["omega"]
    )
    thresholds = small.service.models.latest("awnet").contract.thresholds
    verdicts = b"".join(
        len(v).to_bytes(4, "little") + v.encode() for v in (judge(s, thresholds) for s in want["p_type"][:, 0].tolist())
    )
    assert rest[sizes[0] :] == verdicts
    assert (sizes[1], sizes[2]) == (len(verdicts), None)
    np.testing.assert_array_equal(np.float32(answer["outputs"][2]["data"]), want["p_type"].ravel())


def test_requested_outputs_come_in_their_order_and_no_others(small: Small) -> None:
    """A subset, the further ones included."""
    names = ["label", "score", "logits"]
    answer = answered(small, image() | {"outputs": [{"name": name} for name in names]})
    assert [output["name"] for output in answer["outputs"]] == names
    want = expected(small)
    got = outputs(answer)
    np.testing.assert_array_equal(got["score"].astype(np.float32), want["p_type"][:, 0])
    assert got["label"].tolist() == [LABELS[k] for k in want["logits"].argmax(axis=1)]


def test_thresholds_and_the_model_are_response_parameters(small: Small) -> None:
    """Everything that a verdict was measured by, as scalars, because the protocol takes nothing else there."""
    parameters = answered(small, image())["parameters"]
    sha256 = small.service.models.latest("awnet").sha256
    assert parameters == {
        "threshold_suspicious": 0.41,
        "threshold_adversarial": 0.77,
        "target_fpr_suspicious": 0.05,
        "target_fpr_adversarial": 0.01,
        "calibrated": True,
        "mode": "auto",
        "sha256": sha256,
    }


def test_a_version_is_asked_by_its_path(small: Small) -> None:
    """And named in the answer."""
    assert answered(small, image(), path="/v2/models/awnet/versions/1/infer")["model_version"] == "1"
    status, _, content = ask(small, "/v2/models/awnet/versions/3/infer", image())
    assert status == 404
    assert "version" in json.loads(content)["error"]
    assert ask(small, "/v2/models/other/infer", image())[0] == 404


def test_a_canary_gets_its_share_and_is_named(tmp_path: Path) -> None:
    """The split of unversioned requests is the same as for /predict; metadata does not take part in it."""
    running = Small(tmp_path, canary="1:0.25")
    try:
        seen = [answered(running, image())["model_version"] for _ in range(8)]
        assert (seen.count("1"), seen.count("2")) == (2, 6)
        assert answered(running, image(), path="/v2/models/awnet/versions/2/infer")["model_version"] == "2"
    finally:
        running.close()


def test_a_shadow_changes_no_answer(tmp_path: Path) -> None:
    """Files are decoded once, and the answer is the serving version's."""
    running = Small(tmp_path, shadow="1")
    document, raw = files(ENCODED["PNG"], ENCODED["larger"])
    try:
        answer = answered(running, document | {"outputs": [{"name": "calibrated"}]}, raw)
        assert answer["model_version"] == "2"
        assert answer["outputs"][0]["data"] == [True, False]
        counted = 'awnet_shadow_images_total{model="awnet",result="compared",version="1"} 2.0'
        running.run(until(lambda: counted in generate_latest(running.metrics.registry).decode()))
    finally:
        running.close()


def test_before_the_model_is_loaded_it_is_not_ready(tmp_path: Path) -> None:
    """503 with Retry-After, not 404: it is known and on its way."""
    running = Small(tmp_path, start=False)
    try:
        for path, document in (("", None), ("/ready", None), ("/config", None), ("/infer", image())):
            status, headers, _ = ask(running, "/v2/models/awnet" + path, document)
            assert status == 503, path
            assert path == "/ready" or "retry-after" in headers
        assert ask(running, "/v2/models/other")[0] == 404
        assert ask(running, "/v2/health/ready")[0] == 503
        assert ask(running, "/v2/health/live")[0] == 200
    finally:
        running.close()


TURNED = Image.Exif()
TURNED[0x0112] = 6
ENCODED = {
    "PNG": encoded(noise()),
    "JPEG": encoded(noise(), "JPEG"),
    "WebP": encoded(noise(), "WEBP", lossless=True),
    "larger": encoded(noise(90, 60)),
    "turned": encoded(noise(48, 32), "JPEG", exif=TURNED),
    "attacked": encoded(plain(0.9)),
}


def test_files_are_decoded_as_predict_decodes_them(small: Small) -> None:
    """Scaled, turned and laid out alike, so that no verdict depends on the way in; `calibrated` is told for each."""
    wanted = [{"name": name} for name in ("p_type", "verdict", "calibrated")]
    for name, content in ENCODED.items():
        document, raw = files(content)
        answer = answered(small, document | {"outputs": wanted}, raw)
        decoded = decode(content, SIZE, Limits())
        same = answered(small, image(decoded.pixels[None]) | {"outputs": wanted})
        assert answer["outputs"][:2] == same["outputs"][:2], name
        calibrated = name in ("PNG", "WebP", "attacked")
        assert answer["outputs"][2]["data"] == [calibrated], name
        assert answer["parameters"]["calibrated"] == calibrated
    document, raw = files(ENCODED["PNG"], ENCODED["attacked"], ENCODED["larger"])
    answer = answered(small, document | {"outputs": wanted}, raw)
    assert answer["outputs"][1]["data"][1] == "adversarial"
    assert answer["outputs"][2]["data"] == [True, True, False]
    assert answer["parameters"]["calibrated"] is False


@pytest.fixture(scope="module")
def with_domains(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    """A service whose version 3 has contract schema 2."""
    folder = tmp_path_factory.mktemp("repository")
    running = Small(publish(folder, "3", schema_2()))
    yield running
    running.close()


def test_outputs_say_how_each_image_was_judged(with_domains: Small) -> None:
    """Tensors are measured like files. Scalars hold for all images, so that thresholds that do not are left out."""
    names = ["score", "verdict", "probability", "calibrated", "domain", "why", "thresholds"]
    many = np.asarray(noise()).transpose(2, 0, 1)
    few = np.full((3, SIZE, SIZE), 204, np.uint8)
    answer = answered(with_domains, image(np.stack([many, few])) | {"outputs": [{"name": name} for name in names]})
    got = {output["name"]: output["data"] for output in answer["outputs"]}
    assert got["calibrated"] == [True, False]
    assert got["domain"] == ["pristine", ""]
    assert got["why"] == ["", "few colours"]
    assert got["thresholds"] == [0.3, 0.5, 0.6, 0.9]
    assert got["verdict"] == ["suspicious" if 0.3 < got["score"][0] <= 0.5 else "adversarial", "suspicious"]
    odds = [score / (1 - score) / 99 for score in got["score"]]
    np.testing.assert_allclose(got["probability"], [o / (1 + o) for o in odds], rtol=1e-4)
    assert answer["parameters"].keys() == {
        "target_fpr_suspicious",
        "target_fpr_adversarial",
        "prior",
        "calibrated",
        "mode",
        "sha256",
    }
    alone = answered(with_domains, image(many[None]))["parameters"]
    assert (alone["threshold_suspicious"], alone["threshold_adversarial"], alone["prior"]) == (0.3, 0.5, 0.01)


def test_probability_is_an_output_of_models_that_map_scores(small: Small, with_domains: Small) -> None:
    """Others do not list it, and say so where it is asked for."""
    for running, there in ((small, False), (with_domains, True)):
        outputs = [output["name"] for output in json.loads(ask(running, "/v2/models/awnet")[2])["outputs"]]
        assert ("probability" in outputs) == there
    status, _, content = ask(small, "/v2/models/awnet/infer", image() | {"outputs": [{"name": "probability"}]})
    assert (status, "maps no scores" in json.loads(content)["error"]) == (400, True)


def test_files_in_json_need_base64(small: Small) -> None:
    """JSON strings hold no bytes; the input's parameter says that they are encoded."""
    text = base64.b64encode(ENCODED["PNG"]).decode()
    given = {"name": "image_bytes", "datatype": "BYTES", "shape": [1], "data": [text]}
    document, raw = files(ENCODED["PNG"])
    encoded_so = given | {"parameters": {"content_type": "base64"}}
    assert answered(small, {"inputs": [encoded_so]})["outputs"] == answered(small, document, raw)["outputs"]
    assert "content_type='base64'" in refused(small, {"inputs": [given]})
    assert "not base64" in refused(small, {"inputs": [encoded_so | {"data": ["ä" + text]}]})
    assert "not base64" in refused(small, {"inputs": [encoded_so | {"data": [text[:-1]]}]})


def test_timeout_and_priority_reach_the_engine(small: Small) -> None:
    """Microseconds and levels as Triton counts them; no client waits longer than the server's own limit."""

    def terms(**parameters: Any) -> Terms:
        answered(small, image() | {"parameters": parameters})
        return small.engine.asked[-1]

    longest = small.settings.timeout_seconds
    for given, seconds in (
        ({}, longest),
        ({"timeout": 0}, longest),
        ({"timeout": 10**18}, longest),
        ({"timeout": 8_500_000}, 8.5),
    ):
        begun = clock.now()
        assert begun + seconds <= terms(**given).deadline <= clock.now() + seconds
    assert [terms(priority=p).priority for p in (0, 1, 2, 9)] == ["normal", "normal", "low", "low"]
    for wrong in ({"timeout": -1}, {"timeout": 1.5}, {"timeout": "5"}, {"priority": True}, {"priority": -2}):
        assert next(iter(wrong)) in refused(small, image() | {"parameters": wrong})


# Refusals.


WRONG_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "datatype": ({"datatype": "FP32"}, "datatype"),
    "float data": ({"data": [0.5] * IMAGES.size}, "integers"),
    "bool data": ({"data": [True] * IMAGES.size}, "integers"),
    "text data": ({"data": ["1"] * IMAGES.size}, "integers"),
    "null data": ({"data": [None] * IMAGES.size}, "integers"),
    "over 255": ({"data": [256] * IMAGES.size}, "0 to 255"),
    "below 0": ({"data": [-1] * IMAGES.size}, "0 to 255"),
    "beyond 64 bits": ({"data": [10**25] * IMAGES.size}, "integers"),
    "too few": ({"data": [0] * (IMAGES.size - 1)}, "needs"),
    "too many": ({"data": [0] * (IMAGES.size + 1)}, "needs"),
    "no values": ({"data": []}, "needs"),
    "no list": ({"data": 3}, "no list 'data'"),
    "an object": ({"data": {"0": 1}}, "no list 'data'"),
    "ragged": ({"data": [*IMAGES.tolist()[:2], IMAGES.tolist()[0][:2]]}, "not nested"),
    "half nested": ({"data": IMAGES.reshape(3, -1).tolist()}, "not nested"),
    "nested too deep": ({"data": IMAGES[..., None].tolist()}, "integers"),
    "lists of nothing": ({"data": [[]] * IMAGES.size}, "not nested"),
    "negative shape": ({"shape": [-3, 3, SIZE, SIZE]}, "at least 0"),
    "two negatives": ({"shape": [3, 3, -SIZE, -SIZE]}, "at least 0"),
    "overflowing shape": ({"shape": [2**62, 3, SIZE, SIZE]}, "more than 4 images"),
    "product of 2^64": ({"shape": [2**32, 2**32]}, "shape"),
    "beyond 64 bits too": ({"shape": [2**70, 3, SIZE, SIZE]}, "integers"),
    "float shape": ({"shape": [3.0, 3, SIZE, SIZE]}, "integers"),
    "bool shape": ({"shape": [True, 3, SIZE, SIZE]}, "integers"),
    "text shape": ({"shape": "3"}, "shape"),
    "no shape": ({"shape": None}, "shape"),
    "empty shape": ({"shape": []}, "shape"),
    "no image": ({"shape": [0, 3, SIZE, SIZE], "data": []}, "at least 1"),
    "one image without N": ({"shape": [3, SIZE, SIZE], "data": IMAGES[0].ravel().tolist()}, "expected [N, 3"),
    "channels last": ({"shape": [3, SIZE, SIZE, 3]}, "expected [N, 3"),
    "a thousand dimensions": ({"shape": [1] * 1000}, "at most"),
    "another name": ({"name": "photo"}, "there is no input"),
    "no name": ({"name": None}, "name"),
    "shared memory": ({"data": None, "parameters": {"shared_memory_region": "a"}}, "shared memory"),
    "parameters of no kind": ({"parameters": [1]}, "object"),
    "a list as parameter": ({"parameters": {"a": [1]}}, "string, a number or a boolean"),
    "binary beyond the end": ({"data": None, "parameters": {"binary_data_size": IMAGES.size}}, "binary_data_size"),
    "binary below 0": ({"data": None, "parameters": {"binary_data_size": -1}}, "binary_data_size"),
    "both kinds of data": ({"parameters": {"binary_data_size": 0}}, "both"),
}


@pytest.mark.parametrize(("changes", "word"), WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_a_wrong_tensor_is_refused_and_named(small: Small, changes: dict[str, Any], word: str) -> None:
    """Status 400 (413 for too many images) and one sentence that tells what was wrong."""
    status = 413 if "images" in word else 400
    assert word in refused(small, image(**changes), status=status)


WRONG_REQUESTS: dict[str, tuple[Any, str]] = {
    "not JSON": (b"{", "not JSON"),
    "empty": (b"", "not JSON"),
    "not UTF-8": (b'{"id": "\xff"}', "not JSON"),
    "half a surrogate": (b'{"id": "\\ud800"}', "not JSON"),
    "NaN": (b'{"inputs": [{"name": "image", "data": [NaN]}]}', "not JSON"),
    "infinite": (b'{"parameters": {"timeout": Infinity}}', "not JSON"),
    "too deep": (b"[" * 10_000, "not JSON"),
    "more lists than images need": (b"[" * 100_000, "lists, objects"),
    "more texts than images need": (b"[" + b",".join([b'""'] * 20_000) + b"]", "texts"),
    "a list": ([], "JSON object"),
    "no input": ({}, "exactly one"),
    "inputs of no kind": ({"inputs": {"name": "image"}}, "list"),
    "inputs of texts": ({"inputs": ["image"]}, "object"),
    "a thousand inputs": ({"inputs": [{}] * 1000}, "at most 16"),
    "both inputs": ({"inputs": [image()["inputs"][0], files()[0]["inputs"][0]]}, "exactly one"),
    "an input twice": ({"inputs": image()["inputs"] * 2}, "exactly one"),
    "an unknown output": (image() | {"outputs": [{"name": "p_typ"}]}, "there is no output 'p_typ'"),
    "an output twice": (image() | {"outputs": [{"name": "score"}, {"name": "score"}]}, "twice"),
    "an output without name": (image() | {"outputs": [{}]}, "name"),
    "classification": (
        image() | {"outputs": [{"name": "logits", "parameters": {"classification": 2}}]},
        "classification extension is not served",
    ),
    "output to shared memory": (
        image() | {"outputs": [{"name": "logits", "parameters": {"shared_memory_region": "a"}}]},
        "shared memory",
    ),
    "binary_data of no kind": (
        image() | {"outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]},
        "'binary_data' must be true or false",
    ),
    "a sequence": (image() | {"parameters": {"sequence_id": 7}}, "sequence extension"),
    "an id of no kind": (image() | {"id": 5}, "'id'"),
    "parameters of no kind": (image() | {"parameters": 5}, "object"),
}


@pytest.mark.parametrize(("document", "word"), WRONG_REQUESTS.values(), ids=WRONG_REQUESTS)
def test_a_wrong_request_is_refused_and_told(small: Small, document: Any, word: str) -> None:
    """Status 400 and one sentence."""
    assert word in refused(small, document)


def test_a_wrong_header_length_is_refused(small: Small) -> None:
    """Where the JSON part ends must be told, and true."""
    document, raw = files(ENCODED["PNG"])
    for length in ("-1", "x", "", "1e3", "999999", "9" * 5000, "10"):
        assert "Inference-Header-Content-Length" in refused(
            small, document, raw, inference_header_content_length=length
        )
    assert "belong to no input" in refused(small, image(), b"more")
    assert "Inference-Header-Content-Length" in refused(small, json.dumps(document).encode() + raw)


def test_wrong_bytes_tensors_are_refused(small: Small) -> None:
    """Lengths inside the data are checked like those outside."""
    png = ENCODED["PNG"]
    document, raw = files(png)

    def changed(data: bytes, **changes: Any) -> str:
        tensor = document["inputs"][0] | {"parameters": {"binary_data_size": len(data)}} | changes
        return refused(
            small,
            {"inputs": [tensor]},
            data,
            inference_header_content_length=str(len(json.dumps({"inputs": [tensor]}))),
        )

    assert "ends inside element 0" in changed(raw[:-1])
    assert "ends inside element 1" in changed(raw + b"\0")
    assert "ends inside element 0" in changed(b"\xff\xff\xff\xff" + png)
    assert "more than 1 elements" in changed(raw + raw)
    assert "0 elements" in changed(b"")
    assert "1 elements of data, but shape [2]" in changed(raw, shape=[2])
    assert "expected [N]" in changed(raw, shape=[1, 1])
    assert "datatype" in changed(raw, datatype="UINT8")
    assert "at least 1" in changed(b"", shape=[0])
    assert "strings" in refused(
        small, {"inputs": [{"name": "image_bytes", "datatype": "BYTES", "shape": [1], "data": [5]}]}
    )


def test_an_undecodable_file_is_named_by_its_place(small: Small) -> None:
    """400, and 413 where it is too large; the others of the request are not answered either."""
    document, raw = files(ENCODED["PNG"], ENCODED["PNG"][:-20])
    assert "element 1" in refused(small, document, raw)
    document, raw = files(b"")
    assert "none of PNG, JPEG, WebP" in refused(small, document, raw)
    document, raw = files(encoded(Image.new("RGB", (500, 500))))
    assert "element 0" in refused(small, document, raw, status=413)


def test_encoded_bodies_are_unpacked_within_the_limit(small: Small) -> None:
    """gzip and deflate as the clients send them; a bomb costs no more than a body of the largest size."""
    document, raw = files(ENCODED["PNG"])
    head = json.dumps(document).encode()
    length = {"inference_header_content_length": str(len(head))}
    plainly = answered(small, document, raw)
    for encoding, pack in (("gzip", gzip.compress), ("Deflate", zlib.compress)):
        status, _, content = ask(small, INFER, pack(head + raw), content_encoding=encoding, **length)
        assert (status, json.loads(content)) == (200, plainly)
        packed = pack(head + raw)
        assert "cut" in refused(small, packed[:-3], content_encoding=encoding, **length)
        assert "goes on" in refused(small, packed + b"more", content_encoding=encoding, **length)
        assert "not encoded" in refused(small, head + raw, content_encoding=encoding, **length)
        bomb = pack(bytes(64 << 20))
        tracemalloc.start()
        refused(small, bomb, status=413, content_encoding=encoding)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20
    assert "gzip, deflate" in refused(small, image(), status=415, content_encoding="br")
    assert "gzip, deflate" in refused(small, image(), status=415, content_encoding="gzip, gzip")


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (QueueFull("the queue is full"), 503),
        (DeadlineExceeded("too late"), 504),
        (EngineUnavailable("away"), 503),
        (EngineFault("the model failed"), 503),
    ],
)
def test_faults_of_the_engine_have_their_status(small: Small, fault: Exception, status: int) -> None:
    """With Retry-After where trying again may help, and counted by reason."""
    small.engine.fault = fault
    try:
        got, headers, content = ask(small, INFER, image())
    finally:
        small.engine.fault = None
    assert got == status
    assert ("retry-after" in headers) == (status == 503)
    assert json.loads(content) == {"error": str(fault)}
    assert f'awnet_rejections_total{{reason="{fault.slug}"}}'.encode() in generate_latest(small.metrics.registry)  # type: ignore[attr-defined]


def test_an_unforeseen_fault_tells_nothing_of_the_inside(small: Small, caplog: pytest.LogCaptureFixture) -> None:
    """500 in the protocol's own form; the log has the trace."""
    small.engine.fault = RuntimeError("secret")
    try:
        status, _, content = ask(small, INFER, image())
    finally:
        small.engine.fault = None
    assert status == 500
    assert list(json.loads(content)) == ["error"]
    assert b"secret" not in content
    assert "secret" in caplog.text


def test_a_refusal_before_the_body_is_read_looks_alike() -> None:
    """What the HTTP layer refuses itself it tells in the same words."""
    status, headers, content = rest.refusal(BodyTooLarge("the body is larger than 5 bytes"))
    assert (status, headers) == (413, [(b"content-type", b"application/json")])
    assert json.loads(content) == {"error": "the body is larger than 5 bytes"}


def test_messages_are_short_and_hold_nothing_unprintable(small: Small) -> None:
    """A client's own words are cut and escaped: they end in headers and logs."""
    for name in ("x" * 100_000, "\x1b[31m\n\r\0", "\u202e\U0001f600" * 50):
        for document in (image(name=name), image(datatype=name), image() | {"outputs": [{"name": name}]}):
            message = refused(small, document)
            assert len(message) < 300
            assert message.isascii()
            assert message.isprintable()
    status, _, content = ask(small, "/v2/models/" + "\n" * 5000 + "/infer", image())
    assert status == 404
    assert len(content) < 500


def test_unknown_parameters_are_ignored(small: Small) -> None:
    """Gateways add their own; the protocol lets a server ignore what it does not know."""
    assert answered(small, image(parameters={"content_type": "np"}) | {"parameters": {"traceparent": "00-1"}})


def test_the_largest_bodies_are_refused_in_no_time(tmp_path: Path) -> None:
    """Nothing is allocated by a shape or walked without need. Measured in the process's own time: cores are shared."""
    size = 8 << 20
    small = Small(tmp_path, max_body_bytes=2 * size)
    bodies = {
        "lists": b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[4,3,32,32],"data":['
        + b"[]," * (size // 3)
        + b"[]]}]}",
        "numbers": b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[4,3,32,32],"data":['
        + b"1," * (size // 2)
        + b"1]}]}",
        "inputs": b'{"inputs":[' + b"{}," * (size // 3) + b"{}]}",
        "parameters": b'{"parameters":{' + b",".join(b'"%d":1' % n for n in range(size // 12)) + b',"x":[]}}',
    }
    for name, body in bodies.items():
        started = time.process_time()
        refused(small, body)
        assert time.process_time() - started < 2, name
    empty = files()[0]["inputs"][0] | {"shape": [4], "parameters": {"binary_data_size": size}}
    started = time.process_time()
    assert "more than 4 elements" in refused(small, {"inputs": [empty]}, bytes(size))
    assert time.process_time() - started < 2
    small.close()


@pytest.mark.slow
def test_malformed_bodies_never_break_the_server(small: Small) -> None:
    """Thousands of seeded corruptions of good requests: each is answered, refused in form, and soon."""
    rng = random.Random(17)
    seeds: list[tuple[bytes, bytes]] = []
    for document, raw in (files(ENCODED["PNG"]), files(ENCODED["JPEG"], ENCODED["WebP"]), (image(IMAGES[:1]), b"")):
        document = document | {"id": "a", "outputs": [{"name": "score", "parameters": {"binary_data": True}}]}
        seeds.append((json.dumps(document | {"parameters": {"timeout": 10**7, "priority": 1}}).encode(), raw))
    pieces = [
        b"-1",
        b"1e999",
        b"null",
        b"true",
        b"[]",
        b"{}",
        b'""',
        b"18446744073709551616",
        b"\\u0000",
        b"[" * 50,
        b'"',
    ] + [f'"{word}"'.encode() for word in (*SIGNALS, *ON_REQUEST, "BYTES", "UINT8", "shape", "data")]
    statuses: dict[int, int] = {}
    worst = 0.0
    for _ in range(4000):
        head, raw = rng.choice(seeds)
        length = str(len(head)) if raw else None
        for _ in range(rng.randint(1, 4)):
            kind = rng.randrange(6)
            at = rng.randrange(len(head) + 1)
            if kind == 0:
                head = head[:at] + rng.randbytes(rng.randint(1, 3)) + head[at + rng.randint(0, 3) :]
            elif kind == 1:
                head = head[:at] + rng.choice(pieces) + head[at + rng.randint(0, 6) :]
            elif kind == 2:
                numbers = [m for m in range(len(head)) if head[m : m + 1].isdigit()]
                if numbers:
                    spot = rng.choice(numbers)
                    head = head[:spot] + rng.choice([b"0", b"9", b"-", b"99999999999", b".5"]) + head[spot + 1 :]
            elif kind == 3:
                head = head[:at]
            elif kind == 4 and raw:
                spot = rng.randrange(len(raw))
                raw = raw[:spot] + rng.randbytes(4) + raw[spot + 4 :]
            elif raw:
                raw = raw[: rng.randrange(len(raw))]
        if raw or length:
            length = rng.choice([length, str(len(head)), str(rng.randrange(2 * len(head) + 2))]) or str(len(head))
        headers = {rest.HEADER_LENGTH: length.encode()} if length else {}
        started = time.process_time()
        status, _, content = small.http("POST", INFER, headers, head + raw)
        worst = max(worst, time.process_time() - started)
        assert status in (200, 400, 413), content
        if status != 200:
            assert list(json.loads(content)) == ["error"]
        statuses[status] = statuses.get(status, 0) + 1
    assert worst < 2
    assert statuses[400] > 2000
    assert statuses[200] > 50

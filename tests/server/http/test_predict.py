"""What /predict answers to a good request, and everything beside it."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import httpx
import numpy as np
import pytest

from server.http.query import MODEL_PARAMETERS, PARAMETERS
from server.http.schemas import Answer
from server.http.upload import INLINE_BYTES
from tests.server.tiny import LABELS, OMEGA, SIZE, Running, encoded, noise, plain, spoilt_pixels


def ask(served: Running, *files: bytes, query: str = "", **headers: str) -> httpx.Response:
    return served.http.post(f"/predict{query}", files=[("image", ("a.png", file)) for file in files], headers=headers)


@pytest.mark.parametrize(
    ("red", "verdict"), [(0.1, "clean"), (0.4, "clean"), (0.5, "suspicious"), (0.7, "suspicious"), (0.9, "adversarial")]
)
def test_each_verdict_is_reached_by_its_score(served: Running, red: float, verdict: str) -> None:
    """Over the 5 % threshold is suspicious, over the 1 % one adversarial."""
    answer = ask(served, encoded(plain(red))).json()
    judgement = answer["results"][0]["adversarial"]
    assert judgement["verdict"] == verdict
    assert judgement["score"] == pytest.approx(round(255 * red) / 255, abs=1e-5)
    assert judgement["thresholds"] == {"suspicious": 0.41, "adversarial": 0.77}
    assert judgement["target_fpr"] == {"suspicious": 0.05, "adversarial": 0.01}
    assert judgement["calibrated"] is True


def test_the_answer_has_the_documented_shape(served: Running, repository: object) -> None:
    """Strictly: no field more, none less; and the document itself says the same."""
    answer = ask(served, encoded(noise()), query="?signals=all").json()
    Answer.model_validate(answer, strict=True)
    assert answer["results"][0]["image"] == {"format": "PNG", "width": SIZE, "height": SIZE, "resized": False}
    assert set(answer["timing_ms"]) == {"decode", "queue", "inference", "total"}


def test_the_model_is_named_with_its_hash(served: Running) -> None:
    """So that an answer can be traced to a file."""
    model = ask(served, encoded(noise())).json()["model"]
    assert (model["name"], model["version"]) == ("awnet", "1")
    assert re.fullmatch("[0-9a-f]{64}", model["sha256"])


def test_predictions_are_the_softmax_of_the_logits(served: Running, repository: Path) -> None:
    """Most probable first, with the right names."""
    import onnxruntime as ort

    image = noise(seed=5)
    session = ort.InferenceSession(str(repository / "awnet/1/model.onnx"))
    logits = session.run(["logits"], {"image": np.asarray(image).transpose(2, 0, 1)[None]})[0][0]
    likely = np.exp(logits) / np.exp(logits).sum()
    got = ask(served, encoded(image), query="?top_k=10").json()["results"][0]["predictions"]
    assert [p["class_id"] for p in got] == np.argsort(-likely).tolist()
    for prediction in got:
        assert prediction["label"] == LABELS[prediction["class_id"]]
        assert prediction["probability"] == pytest.approx(likely[prediction["class_id"]], rel=1e-4)


@pytest.mark.parametrize(("query", "count"), [("", 5), ("?top_k=1", 1), ("?top_k=10", 10), ("?signals=none", 5)])
def test_as_many_classes_are_named_as_asked_for(served: Running, query: str, count: int) -> None:
    """Five where nothing is asked."""
    assert len(ask(served, encoded(noise()), query=query).json()["results"][0]["predictions"]) == count


def test_a_version_can_be_asked_for_by_name(served: Running) -> None:
    """The default model and the latest version are what is answered where nothing is said."""
    for query in ("", "?model=awnet", "?version=latest", "?version=1", "?model=awnet&version=1"):
        assert ask(served, encoded(noise()), query=query).json()["model"]["version"] == "1"


@pytest.mark.parametrize("text", ["01", "x", "-1", "%2B1", "0", "", "1.0", "%C2%B2", "1%20", "9" * 30])
def test_a_version_that_is_none_is_404_and_told_apart_from_one_that_is_not_served(served: Running, text: str) -> None:
    """Text becomes a number at the edge, in the one way in which versions are written."""
    answer = ask(served, encoded(noise()), query=f"?version={text}")
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:awnet:problem:unknown-model")
    assert "a version is a number from 1 on" in answer.json()["detail"]


@pytest.mark.parametrize("query", ["?model=other", "?model=", "?version=2", f"?version={10**17}"])
def test_what_is_not_served_is_404(served: Running, query: str) -> None:
    """With what there is instead."""
    answer = ask(served, encoded(noise()), query=query)
    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:awnet:problem:unknown-model"
    assert answer.json()["detail"].endswith(("there are awnet", "there are 1"))


def test_signals_are_added_on_request_only(served: Running, repository: Path) -> None:
    """Mean and std of each block, and with 'all' each convolution's values."""
    import onnxruntime as ort

    image = noise(seed=6)
    session = ort.InferenceSession(str(repository / "awnet/1/model.onnx"))
    omega = session.run(["omega"], {"image": np.asarray(image).transpose(2, 0, 1)[None]})[0][0]
    assert "signals" not in ask(served, encoded(image)).json()["results"][0]
    summary = ask(served, encoded(image), query="?signals=summary").json()["results"][0]["signals"]
    assert set(summary) == {"blocks"}
    assert [block["name"] for block in summary["blocks"]] == ["blocks.0", "blocks.1"]
    assert summary["blocks"][0]["mean"] == pytest.approx(float(omega[:8].mean()), rel=1e-4)
    assert summary["blocks"][1]["std"] == pytest.approx(float(omega[8:].std()), rel=1e-3)
    everything = ask(served, encoded(image), query="?signals=all").json()["results"][0]["signals"]
    assert everything["blocks"] == summary["blocks"]
    for (name, offset, length), convolution in zip(OMEGA, everything["convolutions"], strict=True):
        assert convolution["name"] == name
        assert convolution["values"] == pytest.approx(omega[offset : offset + length].tolist(), rel=1e-4)


def test_several_images_are_answered_in_their_order(served: Running) -> None:
    """One result each."""
    files = [encoded(plain(red)) for red in (0.9, 0.1, 0.5)]
    verdicts = [r["adversarial"]["verdict"] for r in ask(served, *files).json()["results"]]
    assert verdicts == ["adversarial", "clean", "suspicious"]


def test_a_raw_body_gives_the_same_answer_as_a_form(served: Running) -> None:
    """Every format, with and without a form around it."""
    for kind, options in [("PNG", {}), ("JPEG", {"quality": 90}), ("WEBP", {"quality": 90})]:
        data = encoded(noise(50, 40), kind, **options)
        form = ask(served, data).json()["results"]
        headers = {"content-type": f"image/{kind.lower()}"}
        raw = served.http.post("/predict", content=data, headers=headers).json()["results"]
        assert [{"file": "a.png", **raw[0]}] == form
        assert raw[0]["image"] == {"format": kind, "width": 50, "height": 40, "resized": True}
        assert raw[0]["adversarial"]["calibrated"] is False


def test_json_gives_the_same_answer_as_a_form(served: Running) -> None:
    """With names and without, one and several; a large one, too."""
    files = {"a.png": encoded(noise()), "b.jpg": encoded(noise(200, 150), "JPEG"), "c.png": encoded(noise(180, 180))}
    assert sum(map(len, files.values())) > INLINE_BYTES
    form = served.http.post("/predict", files=[("image", item) for item in files.items()]).json()["results"]
    texts = {name: base64.b64encode(data).decode() for name, data in files.items()}
    named = served.http.post("/predict", json={"image": [{"name": n, "base64": t} for n, t in texts.items()]}).json()
    assert named["results"] == form
    lone = served.http.post("/predict", json={"image": texts["a.png"]}).json()["results"]
    assert [{"file": "a.png", **lone[0]}] == form[:1]


def test_a_bad_image_costs_its_neighbours_nothing(served: Running) -> None:
    """Whatever is wrong, and wherever it is found: by its first bytes, its structure, here or in another process."""
    good = encoded(noise(seed=3))
    large = encoded(noise(900, 700), "JPEG", quality=30)
    bad = {
        "empty.png": (b"", "missing-image", 422),
        "text.png": (b"text", "unsupported-media", 415),
        "cut.png": (good[:-40], "undecodable-image", 422),
        "spoilt.png": (spoilt_pixels(good), "undecodable-image", 422),
        "small.png": (encoded(noise(4, 4)), "image-too-small", 422),
        "huge.png": (encoded(plain(0.1, (2500, 2500))), "image-too-large", 413),
        "spoilt.jpg": (large[:300] + b"\xff\xd9", "undecodable-image", 422),
    }
    [alone] = ask(served, good).json()["results"]
    for name, (data, slug, status) in bad.items():
        files = [("image", ("a.png", good)), ("image", (name, data)), ("image", ("large.jpg", large))]
        answer = served.http.post("/predict", files=files, headers={"x-request-id": "r"})
        assert answer.status_code == 200, (name, answer.text)
        Answer.model_validate(answer.json(), strict=True)
        first, refused, last = answer.json()["results"]
        assert first == alone
        assert last["file"] == "large.jpg" and last["image"]["width"] == 900
        problem = refused.pop("problem")
        assert refused == {"file": name}
        assert (problem["type"], problem["status"]) == (f"urn:awnet:problem:{slug}", status)
        assert (problem["image"], problem["request_id"]) == (1, "r")


def test_images_that_are_refused_among_others_are_counted(served: Running) -> None:
    """Once a request and reason, where requests that were not answered as asked are counted."""
    before = rejections(served, "undecodable-image")
    cut = encoded(noise())[:-40]
    assert ask(served, encoded(noise()), cut, cut).status_code == 200
    assert rejections(served, "undecodable-image") == before + 1


def rejections(served: Running, reason: str) -> float:
    lines = served.http.get("/metrics").text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith(f'awnet_rejections_total{{reason="{reason}"')
    )


def test_a_wrongly_declared_type_is_sniffed(served: Running) -> None:
    """A PNG sent as JPEG is a PNG."""
    answer = served.http.post("/predict", content=encoded(noise()), headers={"content-type": "image/jpeg"})
    assert answer.json()["results"][0]["image"]["format"] == "PNG"


def test_the_request_id_is_returned_and_taken_over_if_it_is_fit(served: Running) -> None:
    """In body and header, on every route; anything that could break a header or a log line is replaced."""
    given = ask(served, encoded(noise()), **{"X-Request-ID": "trace-1.a_B"})
    assert given.headers["x-request-id"] == given.json()["request_id"] == "trace-1.a_B"
    ids = set()
    for unfit in ("", "a b", "x" * 65, 'a"b', "<script>"):
        answer = ask(served, encoded(noise()), **{"X-Request-ID": unfit})
        assert answer.headers["x-request-id"] == answer.json()["request_id"]
        assert re.fullmatch("[0-9a-f]{32}", answer.json()["request_id"])
        ids.add(answer.json()["request_id"])
    assert len(ids) == 5
    assert served.http.get("/v2/health/live", headers={"X-Request-ID": "me"}).headers["x-request-id"] == "me"
    assert served.http.get("/nowhere").json()["request_id"]


def test_stage_times_go_out_in_body_and_header(served: Running) -> None:
    """The same figures, and the stages of one image fit into the total."""
    answer = ask(served, encoded(noise()))
    timing = answer.json()["timing_ms"]
    header = dict(stage.split(";dur=") for stage in answer.headers["server-timing"].split(", "))
    assert {stage: float(value) for stage, value in header.items()} == timing
    assert 0 < timing["decode"] + timing["queue"] + timing["inference"] <= timing["total"] + 0.002


def test_live_and_ready_answer(served: Running) -> None:
    """After the golden self-test both are 200."""
    assert served.http.get("/v2/health/live").status_code == 200
    ready = served.http.get("/v2/health/ready")
    assert (ready.status_code, ready.json()) == (200, {"ready": True})


def metric(text: str, line: str) -> float:
    return next((float(row.rpartition(" ")[2]) for row in text.splitlines() if row.startswith(line + " ")), 0.0)


def test_metrics_count_what_happened(served: Running) -> None:
    """Requests, stages, verdicts, scores, batches and rejections; scraped, not believed."""
    before = served.http.get("/metrics").text
    ask(served, encoded(plain(0.9)), encoded(plain(0.1)))
    ask(served, b"nothing")
    served.http.get("/made/up/path")
    after = served.http.get("/metrics")
    assert after.headers["content-type"].startswith("text/plain")

    def grew(line: str) -> float:
        return metric(after.text, line) - metric(before, line)

    assert grew('awnet_requests_total{code="200",method="POST",route="/predict"}') == 1
    assert grew('awnet_requests_total{code="415",method="POST",route="/predict"}') == 1
    assert grew('awnet_requests_total{code="404",method="GET",route="other"}') == 1
    assert grew('awnet_request_seconds_count{route="/predict"}') == 2
    assert grew('awnet_verdicts_total{model="awnet",verdict="adversarial",version="1"}') == 1
    assert grew('awnet_verdicts_total{model="awnet",verdict="clean",version="1"}') == 1
    assert grew('awnet_score_count{model="awnet",version="1"}') == 2
    assert grew('awnet_rejections_total{reason="unsupported-media"}') == 1
    assert grew("awnet_batch_images_sum") == 2
    for stage in ("decode", "queue", "inference"):
        assert grew(f'awnet_stage_seconds_count{{stage="{stage}"}}') == 1
    assert metric(after.text, "awnet_engine_up") == 1
    assert metric(after.text, 'awnet_model_info{model="awnet",role="serving",version="1"}') == 1
    threshold = 'awnet_threshold{domain="pristine",model="awnet",verdict="adversarial",version="1"}'
    assert metric(after.text, threshold) == 0.77
    assert metric(after.text, "awnet_queue_images") == 0
    assert metric(after.text, "awnet_queue_capacity_images") == 256


def test_the_number_of_series_is_bounded(served: Running) -> None:
    """Paths, methods and ids that clients invent make no series of their own."""
    for n in range(50):
        served.http.request(f"M{n}", f"/p{n}", headers={"X-Request-ID": f"id-{n}"})
        ask(served, b"nothing", query=f"?q{n}={n}")
    text = served.http.get("/metrics").text
    assert "p17" not in text
    assert "M17" not in text
    assert len([line for line in text.splitlines() if not line.startswith("#")]) < 500


def test_the_api_document_describes_predict(served: Running) -> None:
    """Its route is not FastAPI's, so it is written in by hand, and must not be forgotten; every $ref resolves."""
    document = served.http.get("/openapi.json").json()
    predict = document["paths"]["/predict"]["post"]
    forms = {"multipart/form-data", "application/json", "application/octet-stream"}
    assert set(predict["requestBody"]["content"]) == forms | {"image/png", "image/jpeg", "image/webp"}
    assert {p["name"] for p in predict["parameters"]} == {*PARAMETERS, "X-Request-ID"}
    for reference in re.findall(r'"\$ref": ?"#/components/schemas/([^"]+)"', json.dumps(document)):
        assert reference in document["components"]["schemas"]
    assert {"/v2/health/live", "/v2/health/ready", "/metrics"} <= set(document["paths"])
    model = document["paths"]["/model"]["get"]
    assert [p["name"] for p in model["parameters"]] == [*MODEL_PARAMETERS]
    assert set(model["responses"]) == {"200", "404", "422", "429", "503"}


def test_the_api_document_is_readable_without_another_host(served: Running) -> None:
    """/docs names every path and parameter of openapi.json; it has no script, and its policy would let none in."""
    answer = served.http.get("/docs")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text and "http:" not in answer.text and "https:" not in answer.text
    for path, methods in served.http.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            if method == "servers":  # of the admin port
                continue
            assert f"{method.upper()} {path}</code>" in answer.text
            assert all(f"<code>{given['name']}</code>" in answer.text for given in operation.get("parameters", []))


def test_many_clients_at_once_get_their_own_answers(served: Running) -> None:
    """Rows of shared batches go back to those who asked."""
    from concurrent.futures import ThreadPoolExecutor

    reds = [n / 255 for n in range(0, 256, 4)]
    with ThreadPoolExecutor(16) as pool:

        def one(red: float) -> float:
            answer = served.http.post("/predict", files={"image": ("a.png", encoded(plain(red)))})
            return float(answer.json()["results"][0]["adversarial"]["score"])

        assert list(pool.map(one, reds)) == pytest.approx(reds, abs=1e-5)

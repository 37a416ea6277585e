"""Which images are calibrated, by which thresholds they are judged, and what the answer says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from server.http.schemas import Answer
from tests.server.schema_2 import CARD, republish, schema_2
from tests.server.small import Small
from tests.server.tiny import ROOT, SIZE, Running, encoded, noise, publish
from tests.waiting import eventually

BUNDLED = ROOT / "model_repository/awnet/2/model.onnx"
ODDS = 0.01 / 0.99  # of the default prior


def coloured(red: float, colours: int, size: int = SIZE) -> Image.Image:
    """An image of about this mean red with so many colours of RGB, none beside its like."""
    places = np.random.default_rng(3).permutation(size * size) % colours
    green, blue = places % 256, places // 256 * 50
    rgb = np.stack([np.full_like(places, round(255 * red)), green, blue], 1).reshape(size, size, 3)
    return Image.fromarray(rgb.astype(np.uint8))


@pytest.fixture(scope="module")
def with_domains(process: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Version 1 has schema 1, version 2 the pool alone, version 3 two domains."""
    repository = publish(tmp_path_factory.mktemp("repository"), "1")
    publish(repository, "2", schema_2("pool"))
    publish(repository, "3", schema_2(card=CARD))
    with Running(repository, versions_kept=3, request_log="true") as running:
        running.wait_ready()
        yield running


def judgement(running: Running, image: bytes, query: str = "") -> dict[str, Any]:
    answer: httpx.Response = running.http.post(f"/predict{query}", files={"image": ("a", image)})
    document = answer.json()
    Answer.model_validate(document, strict=True)
    adversarial: dict[str, Any] = document["results"][0]["adversarial"]
    return adversarial


@pytest.mark.parametrize(
    ("image", "domain", "why"),
    [
        (encoded(coloured(0.4, 1024)), "pristine", None),
        (encoded(coloured(0.4, 100)), "pool", None),
        (encoded(coloured(0.4, 10)), None, "few colours"),
        (encoded(coloured(0.4, 1024).quantize(256)), None, "colour palette"),
        (encoded(coloured(0.4, 10).quantize(10)), None, "colour palette"),
        (encoded(coloured(0.4, 1024, 90).quantize(256)), None, "colour palette"),  # scaling gives it many colours
        (encoded(noise().convert("L").convert("1")), None, "1-bit image"),
        (encoded(Image.fromarray(np.asarray(noise()) & 0xC0)), "pool", None),  # posterised to two bits: 64 colours
        (encoded(Image.fromarray(np.asarray(noise()) & 0x80)), None, "few colours"),
        (encoded(coloured(0.4, 1024), "JPEG", quality=90), "pristine", None),
        (encoded(coloured(0.4, 1024), "WEBP", quality=90), "pristine", None),
        (encoded(noise(90, 60)), "pristine", None),
    ],
)
def test_an_image_is_calibrated_where_a_domain_holds_its_pixels(
    with_domains: Running, image: bytes, domain: str | None, why: str | None
) -> None:
    """Lossy and scaled ones like any other; palettes and bitmaps never; thresholds are those that were applied."""
    got = judgement(with_domains, image)
    assert (got["domain"], got["why"], got["calibrated"]) == (domain, why, domain is not None)
    applied = (0.3, 0.5) if domain == "pristine" else (0.6, 0.9)
    assert got["thresholds"] == dict(zip(("suspicious", "adversarial"), applied, strict=True))
    assert got["target_fpr"] == {"suspicious": 0.05, "adversarial": 0.01}
    score = got["score"]
    verdict = "adversarial" if score > applied[1] else "suspicious" if score > applied[0] else "clean"
    assert got["verdict"] == verdict


def test_one_request_may_hold_images_of_several_domains(with_domains: Running) -> None:
    """Each is judged by its own."""
    files = [("image", ("a", encoded(coloured(0.4, colours)))) for colours in (1024, 100, 10)]
    results = with_domains.http.post("/predict", files=files).json()["results"]
    assert [r["adversarial"]["domain"] for r in results] == ["pristine", "pool", None]
    assert [r["adversarial"]["verdict"] for r in results] == ["suspicious", "clean", "clean"]


def test_a_model_of_the_pool_alone_knows_no_other_domain(with_domains: Running) -> None:
    got = judgement(with_domains, encoded(coloured(0.4, 1024)), "?version=2")
    assert (got["domain"], got["thresholds"]["suspicious"]) == ("pool", 0.6)


def test_probability_is_the_scores_at_the_prior(with_domains: Running) -> None:
    """The map of the test is P = score at even odds; at the default prior the odds fall to a hundredth."""
    for red in (0.1, 0.4, 0.9):
        got = judgement(with_domains, encoded(coloured(red, 1024)))
        odds = got["score"] / (1 - got["score"]) * ODDS
        assert got["prior"] == 0.01
        assert got["probability"] == pytest.approx(odds / (1 + odds), rel=1e-4)


@pytest.mark.process
def test_the_prior_is_a_setting(tmp_path: Path) -> None:
    """At one half the map is answered as it is."""
    with Running(publish(tmp_path, "1", schema_2()), prior=0.5) as running:
        running.wait_ready()
        got = judgement(running, encoded(coloured(0.4, 1024)))
        assert got["prior"] == 0.5
        assert got["probability"] == pytest.approx(got["score"], rel=1e-5)


@pytest.mark.parametrize(
    ("image", "domain", "why"),
    [
        (encoded(coloured(0.4, 1)), "pristine", None),
        (encoded(coloured(0.4, 1024), "JPEG"), None, "lossy"),
        (encoded(coloured(0.4, 1024, 90)), None, "resized"),
        (encoded(coloured(0.4, 10).quantize(10)), None, "colour palette"),
    ],
)
def test_a_model_of_schema_1_is_served_by_what_its_files_say(
    with_domains: Running, image: bytes, domain: str | None, why: str | None
) -> None:
    """As before there were domains, with a reason; it has no map of its scores."""
    got = judgement(with_domains, image, "?version=1")
    assert (got["domain"], got["why"], got["calibrated"]) == (domain, why, domain is not None)
    assert (got["probability"], got["prior"]) == (None, 0.01)
    assert got["thresholds"] == {"suspicious": 0.41, "adversarial": 0.77}


@pytest.mark.process
def test_a_shadow_judges_by_its_own_domains(tmp_path: Path) -> None:
    """It counts a pristine image in the pool, so that its verdict differs there, and only there."""
    publish(publish(tmp_path, "1", schema_2("pool")), "2", schema_2())
    with Running(tmp_path, shadow="1") as running:
        running.wait_ready()

        def count(name: str, labels: str) -> float:
            start = f'awnet_shadow_{name}_total{{{labels},version="1"}} '
            lines = running.http.get("/metrics").text.splitlines()
            return next((float(line.removeprefix(start)) for line in lines if line.startswith(start)), 0.0)

        for compared, (colours, differing) in enumerate(((1024, 1), (100, 1), (10, 1)), start=1):
            judgement(running, encoded(coloured(0.4, colours)))
            eventually(lambda n=compared: count("images", 'model="awnet",result="compared"') == n)
            assert count("disagreements", 'about="verdict",model="awnet"') == differing


def test_a_reload_takes_a_version_with_other_domains_and_refuses_one_that_says_nonsense(tmp_path: Path) -> None:
    """The old version serves on; with the new one thresholds, domains and probability change at once."""
    small = Small(tmp_path)

    def reload() -> list[str]:
        return [change["result"] for change in json.loads(small.http("POST", "/admin/reload")[2])["changes"]]

    def judged() -> dict[str, Any]:
        body = encoded(coloured(0.55, 1024))
        status, _, answer = small.http("POST", "/predict", {b"content-type": b"image/png"}, body)
        assert status == 200, answer
        document = json.loads(answer)
        return {"version": document["model"]["version"], **document["results"][0]["adversarial"]}

    def nonsense(contract: dict[str, Any]) -> None:
        schema_2()(contract)
        contract["domains"][0]["ranges"]["sharpness"] = [0, 1]

    try:
        assert judged().items() >= {"version": "2", "domain": "pristine", "verdict": "suspicious"}.items()
        publish(tmp_path, "3", nonsense)
        assert reload() == ["refused"]
        assert (judged()["version"], judged()["probability"]) == ("2", None)
        [status] = json.loads(small.http("GET", "/admin/models")[2])["models"]
        assert "ranges.sharpness is not measured here" in status["refused"][0]["detail"]
        publish(tmp_path, "4", schema_2())
        assert reload() == ["loaded"]
        assert judged().items() >= {"version": "4", "domain": "pristine", "verdict": "adversarial"}.items()
        assert judged()["probability"] == pytest.approx(0.55 / 0.45 / 99 / (1 + 0.55 / 0.45 / 99), rel=0.02)
    finally:
        small.close()


def test_the_request_log_counts_what_is_not_calibrated_by_its_reason(with_domains: Running) -> None:
    judgement(with_domains, encoded(coloured(0.4, 10).quantize(10)))
    lines = [line for line in with_domains.text().splitlines() if '"uncalibrated"' in line]
    assert json.loads(lines[-1])["uncalibrated"] == {"colour palette": 1}


@pytest.mark.process
def test_the_bundled_model_is_served_with_either_schema(tmp_path: Path) -> None:
    """The same weights: classes and scores are the same, thresholds are those of the contract."""
    repository = tmp_path / "awnet"
    republish(BUNDLED, repository / "2", lambda contract: None)
    republish(BUNDLED, repository / "3", schema_2())
    ship = (ROOT / "examples/ship.png").read_bytes()
    with Running(tmp_path) as running:
        running.wait_ready()
        results = [
            running.http.post(f"/predict?version={version}", files={"image": ("a", ship)}).json()["results"][0]
            for version in (2, 3)
        ]
    old, new = results
    assert old["predictions"] == new["predictions"]
    assert old["adversarial"]["score"] == new["adversarial"]["score"]
    assert old["adversarial"]["thresholds"]["suspicious"] == pytest.approx(0.000468, abs=1e-6)
    assert new["adversarial"]["thresholds"]["suspicious"] == 0.3
    assert (old["adversarial"]["probability"], old["adversarial"]["domain"]) == (None, "pristine")

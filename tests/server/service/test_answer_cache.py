"""The answer cache answers what the engine would, for this caller, file, version and mode."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2

from server.core.engine import Signals
from server.errors import EngineFault
from server.http.schemas import Answer
from tests.server.cached import ADVERSARIAL, CLEAN, ME, OTHER, Cached, without_times
from tests.server.keys import key, table, write
from tests.server.schema_3 import publish_modes
from tests.server.tiny import encoded, noise, plain, publish
from tests.waiting import until

INFER = "/v2/models/awnet/infer"
Serve = Callable[..., Cached]


# What is answered.


@pytest.mark.parametrize("images", [(ADVERSARIAL,), (CLEAN, ADVERSARIAL, encoded(noise(90, 60), "JPEG"))])
def test_an_answer_of_the_cache_is_the_engines_but_for_one_word(serve_cached: Serve, images: tuple[bytes, ...]) -> None:
    """Signals, file and domain included; it takes no stage any time."""
    small = serve_cached()
    first, again = (small.predict(*images, query="?signals=all&top_k=10") for _ in range(2))
    assert (first.status_code, again.status_code, small.asked) == (200, 200, 1)
    Answer.model_validate(again.json(), strict=True)
    assert {**without_times(first), "cached": True} == without_times(again)
    timing = again.json()["timing_ms"]
    assert (timing["decode"], timing["queue"], timing["inference"]) == (0, 0, 0) < (timing["total"],)
    assert small.results() == {"miss": len(images), "hit": len(images)}


def test_a_request_is_answered_as_a_whole_or_not_at_all(serve_cached: Serve) -> None:
    """Half of a request would take the other half's place in the queue out of the count."""
    small = serve_cached()
    small.predict(CLEAN)
    assert "cached" not in small.predict(CLEAN, ADVERSARIAL).json()
    assert small.predict(ADVERSARIAL, CLEAN).json()["cached"] is True
    assert small.asked == 2


def test_every_protocol_answers_from_the_same_cache(serve_cached: Serve) -> None:
    """A file is a file, whichever way it comes; a tensor with its pixels is another question."""
    small = serve_cached()
    small.predict(ADVERSARIAL, address="127.0.0.1")
    tensor = np.asarray(plain(0.9)).transpose(2, 0, 1)[None]

    def rest(name: str, datatype: str, shape: Any, data: bytes) -> Any:
        head = json.dumps(
            {
                "inputs": [
                    {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
                ]
            }
        ).encode()
        length = {"inference-header-content-length": str(len(head))}
        return small.run(small.post(INFER, "127.0.0.1", content=head + data, headers=length)).json()

    element = len(ADVERSARIAL).to_bytes(4, "little") + ADVERSARIAL
    by_rest = rest("image_bytes", "BYTES", [1], element)
    assert by_rest["parameters"]["cached"] is True
    assert "cached" not in rest("image", "UINT8", tensor.shape, tensor.tobytes())["parameters"]
    again = rest("image", "UINT8", tensor.shape, tensor.tobytes())
    assert again["parameters"]["cached"] is True
    assert again["outputs"] == by_rest["outputs"]
    assert small.asked == 2
    message = service_pb2.ModelInferRequest(
        model_name="awnet",
        inputs=[{"name": "image_bytes", "datatype": "BYTES", "shape": [1]}],
        raw_input_contents=[element],
    )
    answer = small.infer(message)
    assert answer.parameters["cached"].bool_param
    logits = next(output["data"] for output in by_rest["outputs"] if output["name"] == "logits")
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == pytest.approx(logits)
    assert small.asked == 0


@pytest.mark.process
def test_what_differs_in_one_byte_is_another_image(serve_cached: Serve) -> None:
    """Images that begin alike, and other files of the same pixels: thresholds may speak for one and not another."""
    small = serve_cached()
    picture = noise(200, 150)
    files = [encoded(picture), encoded(picture, compress_level=1), encoded(picture, "JPEG", quality=95)]
    files += [encoded(picture, "WEBP", lossless=True), ADVERSARIAL, encoded(plain(0.9, (64, 64)))]
    one, another = np.asarray(plain(0.5)).copy(), np.asarray(plain(0.5)).copy()
    another[-1, -1, -1] += 1  # the last byte of the pixels
    files += [encoded(Image.fromarray(one)), encoded(Image.fromarray(another))]
    engine = [without_times(small.predict(image)) for image in files]
    assert small.asked == len(files)
    assert not any("cached" in answer for answer in engine)
    assert [without_times(small.predict(image)) for image in files] == [{**answer, "cached": True} for answer in engine]
    assert small.asked == 0
    assert len({json.dumps(answer["results"][0]["image"]) for answer in engine}) > 2
    small.run(small.service.decoding.pool.close())


def test_a_mode_has_answers_of_its_own(serve_cached: Serve, tmp_path: Path) -> None:
    small = serve_cached()
    publish_modes(small.settings.repository, "3", "auto", "robust", "natural")
    small.run(small.service.models.reload())
    small.engine.asked = []
    by_mode = {
        mode: without_times(small.predict(CLEAN, query=f"?mode={mode}")) for mode in ("auto", "robust", "natural")
    }
    assert small.asked == 3
    assert len({json.dumps(answer["results"]) for answer in by_mode.values()}) == 3
    for mode, answer in by_mode.items():
        assert without_times(small.predict(CLEAN, query=f"?mode={mode}")) == {**answer, "cached": True}
    assert small.asked == 0


def test_nobody_is_answered_by_what_another_caller_asked(serve_cached: Serve, tmp_path: Path) -> None:
    """Nor can they find out by the time that it takes: addresses and keys have answers of their own."""
    small = serve_cached()
    for address in (ME, OTHER):
        assert "cached" not in small.predict(CLEAN, address=address).json()
        assert small.predict(CLEAN, address=address).json()["cached"] is True
    assert small.asked == 2
    keyed = serve_cached(api_keys=write(tmp_path / "keys.toml", table("a"), table("b")))
    for name in ("a", "b"):
        assert "cached" not in keyed.predict(CLEAN, key=key(name)).json()
    assert keyed.predict(CLEAN, key=key("a"), address=OTHER).json()["cached"] is True
    assert keyed.asked == 2


def test_callers_share_answers_where_that_is_asked_for(serve_cached: Serve) -> None:
    small = serve_cached(answer_cache_shared=True)
    small.predict(CLEAN, address=ME)
    assert small.predict(CLEAN, address=OTHER).json()["cached"] is True


def test_a_policy_is_applied_to_what_the_cache_answers(serve_cached: Serve, tmp_path: Path) -> None:
    """Kept is what the model said; what of it this caller is told is decided now."""
    file = write(
        tmp_path / "keys.toml",
        table("trusted"),
        table("public", policy='"reject"'),
        table("told", ["predict"], answers='"verdict"'),
    )
    small = serve_cached(api_keys=file, answer_cache_shared=True)
    first = small.predict(ADVERSARIAL, key=key("trusted"))
    assert (first.status_code, small.asked) == (200, 1)
    refused = small.predict(ADVERSARIAL, key=key("public"))
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:awnet:problem:image-rejected")
    result = small.predict(ADVERSARIAL, key=key("told")).json()["results"][0]
    assert set(result["adversarial"]) == {"verdict", "calibrated", "why"}
    assert small.predict(ADVERSARIAL, key=key("told"), query="?signals=all").status_code == 403
    assert {**without_times(first), "cached": True} == without_times(small.predict(ADVERSARIAL, key=key("trusted")))
    assert small.asked == 0


def test_a_withheld_answer_is_withheld_from_the_cache_too(serve_cached: Serve) -> None:
    small = serve_cached(policy="reject")
    assert [small.predict(ADVERSARIAL).status_code for _ in range(3)] == [422] * 3
    assert small.asked == 1
    found = small.series("awnet_policy_decisions_total")
    assert [n for label, n in found.items() if 'decision="withheld"' in label] == [3]


# Versions.


def test_each_version_answers_for_itself_whatever_is_kept(serve_cached: Serve) -> None:
    """A rollback and back: neither gives the other's answer, and what was kept of a version is good when it is back."""
    small = serve_cached()

    def ask() -> tuple[str, bool]:
        answer = small.predict(CLEAN).json()
        assert answer["results"] == by_version[answer["model"]["version"]]
        return answer["model"]["version"], answer.get("cached", False)

    by_version = {n: small.predict(CLEAN, query=f"?version={n}", address=OTHER).json()["results"] for n in ("1", "2")}
    assert by_version["1"] != by_version["2"]
    assert [ask(), ask()] == [("2", False), ("2", True)]
    small.run(small.service.models.rollback("awnet"))
    assert [ask(), ask()] == [("1", False), ("1", True)]
    small.run(small.service.models.promote("awnet", 2))
    assert ask() == ("2", True)


def test_a_version_whose_file_was_replaced_has_no_old_answers(serve_cached: Serve) -> None:
    small = serve_cached()
    old = small.predict(CLEAN).json()
    publish(small.settings.repository, "2", seed=7)
    small.run(small.service.models.reload())
    new = small.predict(CLEAN).json()
    assert "cached" not in new
    assert (new["model"]["version"], new["model"]["sha256"] == old["model"]["sha256"]) == ("2", False)
    assert new["results"] != old["results"]


def test_the_canary_has_its_share_of_what_the_cache_answers(serve_cached: Serve) -> None:
    small = serve_cached(version="1", canary="2:0.25", versions_kept=3)
    answers = [small.predict(CLEAN).json() for _ in range(40)]
    assert [answer["model"]["version"] for answer in answers].count("2") == 10
    assert small.asked == 2
    verdicts = small.series("awnet_mode_images_total")
    assert sorted(verdicts.values()) == [10, 30]


def test_a_shadow_is_compared_on_every_request(serve_cached: Serve) -> None:
    """While it is, nothing is answered from the cache: the shares of requests and disagreements are of all."""
    small = serve_cached(version="1")
    small.run(small.service.models.set_shadow(2))
    small.engine.asked = []
    models = small.service.models

    async def ask(times: int) -> None:
        for _ in range(times):
            answer = await small.post("/predict", content=CLEAN)
            assert answer.status_code == 200
            assert "cached" not in answer.json()
            await until(lambda: not models._rollouts["awnet"]._comparer._tasks)

    small.run(ask(4))
    assert small.asked == 8
    compared = small.series("awnet_shadow_images_total")
    assert [n for label, n in compared.items() if 'result="compared"' in label] == [4]
    assert small.results() == {"bypassed": 4}
    small.run(small.service.models.set_shadow(None))
    assert small.predict(CLEAN).json()["cached"] is True


def test_a_golden_image_that_is_answered_wrongly_empties_the_cache(serve_cached: Serve) -> None:
    """What a faulty engine said, also to a request that is still being answered, is not said again."""
    small = serve_cached()
    small.predict(CLEAN)

    async def asked_meanwhile() -> None:
        small.engine.gate.clear()
        asking = asyncio.create_task(small.post("/predict", content=ADVERSARIAL))
        await until(lambda: len(small.engine.asked) == 2)
        small.service._missed(small.service.models.latest(), "auto", "clean")
        small.engine.gate.set()
        assert (await asking).status_code == 200

    small.run(asked_meanwhile())
    assert [small.predict(image).json().get("cached") for image in (CLEAN, ADVERSARIAL)] == [None, None]


# What is not kept.


def test_errors_are_never_kept(serve_cached: Serve) -> None:
    """Of the engine, of the image, and an answer that is not finite: the next request is computed."""
    small = serve_cached()
    small.engine.fault = EngineFault("broken")
    assert small.predict(CLEAN).status_code == 503
    small.engine.fault = None

    def spoil(signals: Signals) -> None:
        signals.omega[:] = np.nan

    small.engine.spoil = spoil
    assert small.predict(CLEAN).status_code == 503
    small.engine.spoil = None
    assert small.predict(CLEAN[:-20]).status_code == small.predict(CLEAN[:-20]).status_code == 422
    assert "cached" not in small.predict(CLEAN).json()
    cache = small.service._cache
    assert cache is not None
    assert len(cache) == 1
    for _ in range(2):  # of a form, what could be decoded is kept, and the form is never answered as if all could
        found = small.predict(ADVERSARIAL, CLEAN[:-20]).json()
        assert "cached" not in found
        assert "problem" in found["results"][1]
    assert len(cache) == 2
    assert small.predict(ADVERSARIAL).json()["cached"] is True


def test_images_that_are_too_large_together_are_refused_though_each_is_known(serve_cached: Serve) -> None:
    small = serve_cached(max_request_pixels=9_000)
    images = [encoded(noise(70, 70, seed)) for seed in range(2)]
    for image in images:
        assert small.predict(image).status_code == 200
    assert small.predict(*images).status_code == 413

"""The answer cache answers what the engine would, for this caller, file, version and mode; and all of it counts."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client import generate_latest
from pydantic import ValidationError
from tritonclient.grpc import service_pb2, service_pb2_grpc

from server.answer_cache import ANSWER_BYTES, INLINE_BYTES, AnswerCache
from server.core.engine import Signals
from server.core.images import EncodedImage, Limits, PixelArray
from server.errors import EngineFault
from server.guard.fingerprint import Fingerprints
from server.http.schemas import Answer
from server.monitoring import request_log
from server.oip.grpc_front import GrpcFront
from server.settings import Settings
from tests.server.guard.test_guard import variants
from tests.server.keys import key, table, write
from tests.server.schema_3 import publish_modes
from tests.server.small import Small
from tests.server.tiny import SIZE, encoded, noise, plain, publish

ME, OTHER = "192.0.2.1", "192.0.2.2"
CLEAN, ADVERSARIAL = encoded(plain(0.2)), encoded(plain(0.9))
INFER = "/v2/models/awnet/infer"

Serve = Callable[..., "Cached"]


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


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    running: list[Cached] = []

    def start(**settings: Any) -> Cached:
        running.append(Cached(tmp_path_factory.mktemp("repository"), **settings))
        running[-1].engine.asked = []
        return running[-1]

    yield start
    for small in running:
        small.close()


def file(pixels: np.ndarray[Any, Any]) -> bytes:
    """Pixels [3,S,S] as a PNG file."""
    return encoded(Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1))))


def without_times(answer: httpx.Response) -> Any:
    found = answer.json()
    assert answer.status_code == 200, found
    for name in ("request_id", "timing_ms"):
        del found[name]
    return found


# What is answered.


@pytest.mark.parametrize("images", [(ADVERSARIAL,), (CLEAN, ADVERSARIAL, encoded(noise(90, 60), "JPEG"))])
def test_an_answer_of_the_cache_is_the_engines_but_for_one_word(serve: Serve, images: tuple[bytes, ...]) -> None:
    """Signals, file and domain included; it takes no stage any time."""
    small = serve()
    first, again = (small.predict(*images, query="?signals=all&top_k=10") for _ in range(2))
    assert (first.status_code, again.status_code, small.asked) == (200, 200, 1)
    Answer.model_validate(again.json(), strict=True)
    assert {**without_times(first), "cached": True} == without_times(again)
    timing = again.json()["timing_ms"]
    assert (timing["decode"], timing["queue"], timing["inference"]) == (0, 0, 0) < (timing["total"],)
    assert small.results() == {"miss": len(images), "hit": len(images)}


def test_a_request_is_answered_as_a_whole_or_not_at_all(serve: Serve) -> None:
    """Half of a request would take the other half's place in the queue out of the count."""
    small = serve()
    small.predict(CLEAN)
    assert "cached" not in small.predict(CLEAN, ADVERSARIAL).json()
    assert small.predict(ADVERSARIAL, CLEAN).json()["cached"] is True
    assert small.asked == 2


def test_every_protocol_answers_from_the_same_cache(serve: Serve) -> None:
    """A file is a file, whichever way it comes; a tensor with its pixels is another question."""
    small = serve()
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

    async def call() -> Any:
        front = GrpcFront(small.service, "127.0.0.1", 0)
        port = await front.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                return await service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=60)
        finally:
            await front.stop(0)

    answer = small.run(call())
    assert answer.parameters["cached"].bool_param
    told = next(output["data"] for output in by_rest["outputs"] if output["name"] == "logits")
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == pytest.approx(told)
    assert small.asked == 0


@pytest.mark.process
def test_what_differs_in_one_byte_is_another_image(serve: Serve) -> None:
    """Images that begin alike, and other files of the same pixels: thresholds may speak for one and not another."""
    small = serve()
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


def test_a_mode_has_answers_of_its_own(serve: Serve, tmp_path: Path) -> None:
    small = serve()
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


def test_nobody_is_answered_by_what_another_caller_asked(serve: Serve, tmp_path: Path) -> None:
    """Nor can they find out by the time that it takes: addresses and keys have answers of their own."""
    small = serve()
    for address in (ME, OTHER):
        assert "cached" not in small.predict(CLEAN, address=address).json()
        assert small.predict(CLEAN, address=address).json()["cached"] is True
    assert small.asked == 2
    keyed = serve(api_keys=write(tmp_path / "keys.toml", table("a"), table("b")))
    for name in ("a", "b"):
        assert "cached" not in keyed.predict(CLEAN, key=key(name)).json()
    assert keyed.predict(CLEAN, key=key("a"), address=OTHER).json()["cached"] is True
    assert keyed.asked == 2


def test_callers_share_answers_where_that_is_asked_for(serve: Serve) -> None:
    small = serve(answer_cache_shared=True)
    small.predict(CLEAN, address=ME)
    assert small.predict(CLEAN, address=OTHER).json()["cached"] is True


def test_a_policy_is_applied_to_what_the_cache_answers(serve: Serve, tmp_path: Path) -> None:
    """Kept is what the model said; what of it this caller is told is decided now."""
    file = write(
        tmp_path / "keys.toml",
        table("trusted"),
        table("public", policy='"reject"'),
        table("told", ["predict"], answers='"verdict"'),
    )
    small = serve(api_keys=file, answer_cache_shared=True)
    first = small.predict(ADVERSARIAL, key=key("trusted"))
    assert (first.status_code, small.asked) == (200, 1)
    refused = small.predict(ADVERSARIAL, key=key("public"))
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:awnet:problem:image-rejected")
    result = small.predict(ADVERSARIAL, key=key("told")).json()["results"][0]
    assert set(result["adversarial"]) == {"verdict", "calibrated", "why"}
    assert small.predict(ADVERSARIAL, key=key("told"), query="?signals=all").status_code == 403
    assert {**without_times(first), "cached": True} == without_times(small.predict(ADVERSARIAL, key=key("trusted")))
    assert small.asked == 0


def test_a_withheld_answer_is_withheld_from_the_cache_too(serve: Serve) -> None:
    small = serve(policy="reject")
    assert [small.predict(ADVERSARIAL).status_code for _ in range(3)] == [422] * 3
    assert small.asked == 1
    found = small.series("awnet_policy_decisions_total")
    assert [n for label, n in found.items() if 'decision="withheld"' in label] == [3]


# Versions.


def test_each_version_answers_for_itself_whatever_is_kept(serve: Serve) -> None:
    """A rollback and back: neither gives the other's answer, and what was kept of a version is good when it is back."""
    small = serve()

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


def test_a_version_whose_file_was_replaced_has_no_old_answers(serve: Serve) -> None:
    small = serve()
    old = small.predict(CLEAN).json()
    publish(small.settings.repository, "2", seed=7)
    small.run(small.service.models.reload())
    new = small.predict(CLEAN).json()
    assert "cached" not in new
    assert (new["model"]["version"], new["model"]["sha256"] == old["model"]["sha256"]) == ("2", False)
    assert new["results"] != old["results"]


def test_the_canary_has_its_share_of_what_the_cache_answers(serve: Serve) -> None:
    small = serve(version="1", canary="2:0.25", versions_kept=3)
    answers = [small.predict(CLEAN).json() for _ in range(40)]
    assert [answer["model"]["version"] for answer in answers].count("2") == 10
    assert small.asked == 2
    verdicts = small.series("awnet_mode_images_total")
    assert sorted(verdicts.values()) == [10, 30]


def test_a_shadow_is_compared_on_every_request(serve: Serve) -> None:
    """While it is, nothing is answered from the cache: the shares of requests and disagreements are of all."""
    small = serve(version="1")
    small.run(small.service.models.set_shadow(2))
    small.engine.asked = []

    async def ask(times: int) -> None:
        for _ in range(times):
            compared = small.service.models
            answer = await small.post("/predict", content=CLEAN)
            assert answer.status_code == 200
            assert "cached" not in answer.json()
            for _ in range(400):
                if not compared._rollouts["awnet"]._comparer._tasks:
                    break
                await asyncio.sleep(0.005)

    small.run(ask(4))
    assert small.asked == 8
    compared = small.series("awnet_shadow_images_total")
    assert [n for label, n in compared.items() if 'result="compared"' in label] == [4]
    assert small.results() == {"bypassed": 4}
    small.run(small.service.models.set_shadow(None))
    assert small.predict(CLEAN).json()["cached"] is True


def test_a_golden_image_that_is_answered_wrongly_empties_the_cache(serve: Serve) -> None:
    """What a faulty engine said, also to a request that is still being answered, is not said again."""
    small = serve()
    small.predict(CLEAN)

    async def asked_meanwhile() -> None:
        small.engine.gate.clear()
        asking = asyncio.create_task(small.post("/predict", content=ADVERSARIAL))
        await asyncio.sleep(0.05)
        small.service._missed(small.service.models.latest(), "auto", "clean")
        small.engine.gate.set()
        assert (await asking).status_code == 200

    small.run(asked_meanwhile())
    assert [small.predict(image).json().get("cached") for image in (CLEAN, ADVERSARIAL)] == [None, None]


# What is not kept.


def test_errors_are_never_kept(serve: Serve) -> None:
    """Of the engine, of the image, and an answer that is not finite: the next request is computed."""
    small = serve()
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


def test_images_that_are_too_large_together_are_refused_though_each_is_known(serve: Serve) -> None:
    small = serve(max_request_pixels=9_000)
    images = [encoded(noise(70, 70, seed)) for seed in range(2)]
    for image in images:
        assert small.predict(image).status_code == 200
    assert small.predict(*images).status_code == 413


def test_a_flood_of_images_costs_the_cache_what_it_has_and_no_more(serve: Serve) -> None:
    """What was used longest ago goes first, and what the metrics say is what there is."""
    small = serve(answer_cache=8)
    assert small.series("awnet_answer_cache_answers") == {}
    small.predict(CLEAN)
    size = small.series("awnet_answer_cache_bytes")[""]
    for seed in range(30):
        assert small.predict(encoded(noise(seed=seed)), address=OTHER).status_code == 200
        if seed % 5 == 0:
            assert small.predict(CLEAN).json()["cached"] is True
    for seed in range(30, 38):
        small.predict(encoded(noise(seed=seed)), address=OTHER)
    assert "cached" not in small.predict(CLEAN).json()
    assert small.series("awnet_answer_cache_answers") == {"": 8}
    assert small.series("awnet_answer_cache_bytes") == {"": 8 * size}


# What is counted.


def test_an_attacked_image_that_is_sent_again_and_again_is_as_many_detections(serve: Serve, tmp_path: Path) -> None:
    """In verdicts, scores, the CUSUM, decisions, findings and the request log: all series are as without a cache."""
    families = [f"awnet_{name}" for name in ("verdict", "score", "mode", "policy", "cusum", "omega", "findings")]
    lines: dict[str, list[Any]] = {}
    counted: dict[str, dict[str, float]] = {}
    flagged: dict[str, Any] = {}
    for name, answers in (("without", 0), ("with", 100)):
        small = serve(answer_cache=answers, findings_dir=tmp_path / name, request_log=True)
        stream = io.StringIO()
        request_log.configure(True, handler=logging.StreamHandler(stream))
        small.service._reporting.start()  # type: ignore[union-attr]
        for _ in range(25):
            assert small.predict(ADVERSARIAL).status_code == 200
            assert small.predict(CLEAN).status_code == 200
        small.run(small.service._reporting.stop())  # type: ignore[union-attr]
        request_log.configure(False)
        lines[name] = [json.loads(line) for line in stream.getvalue().splitlines()]
        counted[name] = {n: value for family in families for n, value in small.series(family).items()}
        flagged[name] = [client.flagged for client in small.service.monitor.clients.top()]
        assert small.asked == (2 if answers else 50)
    assert counted["with"] == counted["without"]
    assert any("adversarial" in label and value == 25 for label, value in counted["with"].items())
    assert flagged["with"] == flagged["without"] != []
    assert [line["verdicts"] for line in lines["with"]] == [line["verdicts"] for line in lines["without"]]
    assert sum(line.get("cached", False) for line in lines["with"]) == 48
    assert not any("cached" in line for line in lines["without"])


def test_stages_are_those_of_the_engine_alone(serve: Serve) -> None:
    """A thousand answers from the cache would make any engine look fast."""
    small = serve()
    for _ in range(5):
        small.predict(CLEAN)
    assert list(small.series("awnet_stage_seconds_count").values()) == [1, 1, 1]


def test_the_query_guard_sees_what_it_would_see_without(serve: Serve) -> None:
    """Images alike, some of them twice: the numbers told are the same, and repeated queries are held back the same."""
    images = [file(pixels) for pixels in variants(0, 14)]
    asked = [*images[:6], *images[:6], *images[6:], *images[::-1]]
    told = []
    for answers in (0, 100):
        small = serve(answer_cache=answers, query_guard="flag", query_guard_images=8)
        told.append([small.predict(image).json()["results"][0]["query_guard"] for image in asked])
        assert small.asked == (len(images) if answers else len(asked))
        assert small.series("awnet_query_guard_images_total") != {}
        told.append(small.series("awnet_query_guard_images_total"))
    assert told[:2] == told[2:]
    assert any(said["repeated"] for said in told[0])


def test_the_cache_does_not_answer_past_a_rate(serve: Serve) -> None:
    small = serve(requests_per_second=1e-3, request_burst=3)
    assert [small.predict(CLEAN).status_code for _ in range(5)] == [200, 200, 200, 429, 429]


def test_identical_images_at_a_time_are_each_computed_and_kept_once(serve: Serve) -> None:
    """Nobody waits for another's request, or shares its deadline."""
    small = serve()

    async def together() -> list[httpx.Response]:
        small.engine.gate.clear()
        asking = [asyncio.create_task(small.post("/predict", content=CLEAN)) for _ in range(5)]
        await asyncio.sleep(0.05)
        small.engine.gate.set()
        return await asyncio.gather(*asking)

    answers = small.run(together())
    assert [answer.status_code for answer in answers] == [200] * 5
    assert small.asked == 5
    assert small.series("awnet_answer_cache_answers") == {"": 1}


def test_without_it_nothing_is_kept_and_nothing_is_said(serve: Serve) -> None:
    small = serve(answer_cache=0)
    for _ in range(3):
        assert "cached" not in small.predict(CLEAN).json()
    assert small.asked == 3
    assert small.service._cache is None
    assert small.series("awnet_answer_cache") == {}


def test_shared_answers_need_answers() -> None:
    with pytest.raises(ValidationError, match="answer_cache_shared needs answer_cache"):
        Settings(answer_cache_shared=True)


# Memory.


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("kind", ["file", "tensor"])
def test_memory_is_bounded_as_it_is_told_and_is_nothing_to_the_garbage_collector(kind: str, guarded: bool) -> None:
    """Of a wide model: 10 classes and 2,000 values of omega; images are parts of larger arrays, as they come in."""
    answers, channels = 300, 2000
    cache = AnswerCache(answers, 1 << 30)
    model = Small.__new__(Small)  # anything with a hash
    model.sha256 = "0" * 64  # type: ignore[attr-defined]
    fingerprints = Fingerprints()
    rng = np.random.default_rng(0)

    async def fill(count: int) -> None:
        for _ in range(count // 4):
            pixels = rng.integers(0, 256, (4, 3, SIZE, SIZE), np.uint8)
            images: list[Any] = [PixelArray(one) for one in pixels]
            if kind == "file":
                images = [EncodedImage(file(one), Limits(), n) for n, one in enumerate(pixels)]
            found = await cache.find(model, "auto", "me", images)  # type: ignore[arg-type]
            for image in images:
                image.pixels(SIZE)
            prints = [fingerprints.of(one) for one in pixels] if guarded else []
            values = rng.random((4, 12 + channels), np.float32)
            signals = Signals(values[:, :10], values[:, 10:12], values[:, 12:], 0, 0, 0)
            cache.keep(found.keys, signals, images, prints)

    asyncio.run(fill(8))
    cache.clear()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    asyncio.run(fill(2 * answers))
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(cache) == answers
    assert cache.held_bytes == answers * (ANSWER_BYTES + 4 * (12 + channels) + guarded * 3 * SIZE * SIZE)
    assert 0.7 * cache.held_bytes < held <= cache.held_bytes
    gc.collect()  # the tuple around the tuples that the first one found
    assert not any(gc.is_tracked(answer) for answer in cache._answers.values())


def test_a_large_file_is_not_hashed_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = AnswerCache(8, 1 << 30)
    elsewhere = []
    real = asyncio.to_thread

    async def to_thread(do: Any, *given: Any) -> Any:
        elsewhere.append(do)
        return await real(do, *given)

    monkeypatch.setattr("server.answer_cache.asyncio.to_thread", to_thread)
    model = Small.__new__(Small)
    model.sha256 = "0" * 64  # type: ignore[attr-defined]
    for size in (INLINE_BYTES, INLINE_BYTES + 1):
        asyncio.run(cache.find(model, "auto", "me", [EncodedImage(b"x" * size, Limits())]))  # type: ignore[arg-type]
    assert len(elsewhere) == 1

"""Operating modes: every answer is by the branch that was asked for, or there is none."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from prometheus_client import generate_latest

from server.core import clock
from server.core.engine import Model, Runner, Signals, Terms, self_test
from server.core.images import ImageInput, PixelArray
from server.core.modes import LOGITS, Mode
from server.core.verdict import ranked
from server.engines.onnxruntime import EmbeddedEngine
from server.engines.repository import Repository
from server.errors import DeadlineExceeded, SelfTestFailed, StartupError, UnknownMode
from server.http.schemas import Answer
from server.settings.settings import Settings
from server.versions.events import Events
from server.versions.models import Models
from tests.server.schema_3 import MODES, branches, publish_modes, schema_3
from tests.server.small import AroundEngine, AroundRunner, Small
from tests.server.tiny import LABELS, SIZE, encoded, noise, plain, publish, tensor
from tests.waiting import until

PNG = encoded(noise())
PIXELS = np.asarray(noise()).transpose(2, 0, 1)
NO_DEADLINE = Terms()
INFER = "/v2/models/awnet/infer"


def outputs(repository: Path, version: str, images: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """What ONNX Runtime makes of images [N,3,S,S], by the name of the output."""
    session = ort.InferenceSession(repository / "awnet" / version / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    """Versions 1 and 2 know one mode, version 3 all."""
    running = Small(publish_modes(tmp_path_factory.mktemp("repository"), "3", seed=3), versions_kept=3)
    yield running
    running.close()


@pytest.fixture(scope="module")
def expected(small: Small) -> dict[str, np.ndarray[Any, Any]]:
    return outputs(small.settings.repository, "3", PIXELS[None])


def predicted(small: Small, query: str = "") -> dict[str, Any]:
    status, _, body = small.http("POST", f"/predict?top_k=10{query}", {b"content-type": b"image/png"}, PNG)
    assert status == 200, body
    Answer.model_validate_json(body, strict=True)
    return dict(json.loads(body))


def refused(small: Small, query: str) -> dict[str, Any]:
    status, _, body = small.http("POST", f"/predict?{query}", {b"content-type": b"image/png"}, PNG)
    problem = json.loads(body)
    assert status == problem["status"] == 422
    return dict(problem)


def tensor_request(**parameters: Any) -> bytes:
    given = {"name": "image", "datatype": "UINT8", "shape": [1, 3, SIZE, SIZE], "data": PIXELS.ravel().tolist()}
    return json.dumps({"inputs": [given], "parameters": parameters}).encode()


def inferred(small: Small, path: str = INFER, **parameters: Any) -> tuple[int, dict[str, Any]]:
    status, _, body = small.http("POST", path, body=tensor_request(**parameters))
    return status, json.loads(body)


# What is answered.


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_answers_by_its_own_branch(small: Small, expected: dict[str, Any], mode: Mode) -> None:
    """Class probabilities are those of its logits, here and over the protocol; score and verdict never change."""
    answer = predicted(small, f"&mode={mode}")
    assert answer["mode"] == mode
    [result] = answer["results"]
    likely = [share for _, share in sorted(ranked(expected[LOGITS[mode]][0], len(LABELS)))]
    probabilities = {row["class_id"]: row["probability"] for row in result["predictions"]}
    np.testing.assert_allclose([probabilities[k] for k in range(len(LABELS))], likely, rtol=1e-4)
    assert result["adversarial"]["score"] == pytest.approx(float(expected["p_type"][0, 0]), rel=1e-5)

    status, answer = inferred(small, mode=mode)
    assert (status, answer["parameters"]["mode"]) == (200, mode)
    for output, name in zip(answer["outputs"], (LOGITS[mode], "p_type", "omega"), strict=True):
        np.testing.assert_allclose(output["data"], expected[name].ravel(), atol=1e-4)
    assert [output["name"] for output in answer["outputs"]] == ["logits", "p_type", "omega"]


def test_requests_that_name_no_mode_are_answered_in_the_default_one(small: Small, tmp_path: Path) -> None:
    """auto, unless the setting says another; what a request names comes before the setting."""
    assert predicted(small)["mode"] == "auto"
    assert inferred(small)[1]["parameters"]["mode"] == "auto"
    for version in ("1", "2"):  # those that `Small` publishes beside it have no such mode, and are not opened
        publish_modes(tmp_path, version, "auto")
    robust = Small(publish_modes(tmp_path, "3"), mode="robust")
    assert predicted(robust)["mode"] == "robust"
    assert predicted(robust, "&mode=auto")["mode"] == "auto"
    assert inferred(robust)[1]["parameters"]["mode"] == "robust"
    assert list(robust.service.models.loaded()["awnet"]) == [3]
    robust.close()


def test_a_mode_that_the_model_lacks_is_refused_with_those_that_it_has(small: Small) -> None:
    """Never answered by another one; over the protocol it is a bad request, as it knows no 422."""
    for query, names in (
        ("mode=robust&version=2", "there are auto"),
        ("mode=paranoid", "there are auto, robust, natural"),
        ("mode=Robust", "there are auto, robust, natural"),
        ("mode=", "there are auto, robust, natural"),
        (f"mode={'x' * 200}", "there are auto, robust, natural"),
    ):
        problem = refused(small, query)
        assert problem["type"] == "urn:awnet:problem:unknown-mode"
        assert names in problem["detail"] and len(problem["detail"]) < 130
    assert refused(small, "mode=auto&mode=robust")["type"] == "urn:awnet:problem:invalid-query"
    for path, mode in (("/v2/models/awnet/versions/2/infer", "robust"), (INFER, "paranoid"), (INFER, "")):
        status, answer = inferred(small, path, mode=mode)
        assert (status, list(answer)) == (400, ["error"]) and "has no mode" in answer["error"]


@pytest.mark.parametrize("wrong", [1, True, 0.5])
def test_a_mode_over_the_protocol_is_a_text(small: Small, wrong: object) -> None:
    """A number is no mode, and not the default either."""
    status, answer = inferred(small, mode=wrong)
    assert (status, answer["error"]) == (400, "parameter 'mode' must be a text")


def test_a_model_tells_its_modes_its_mixing_and_its_precision(small: Small) -> None:
    """Earlier contracts mean one mode; the default is the server's. The admin port has the modes of every version."""

    def described(query: str) -> list[Any]:
        document = json.loads(small.http("GET", f"/model?{query}")[2])
        return [document[key] for key in ("modes", "default_mode", "mixing", "precision")]

    bounded = {"kind": "bounded", "limit": 0.45, "temperature": 1.5}
    assert described("version=3") == [["auto", "robust", "natural"], "auto", bounded, "float32"]
    assert described("version=2") == [
        ["auto"],
        "auto",
        {"kind": "norms", "limit": None, "temperature": None},
        "float32",
    ]
    status = json.loads(small.http("GET", "/admin/models")[2])
    modes = {version["version"]: version["modes"] for version in status["models"][0]["versions"]}
    assert modes == {"1": ["auto"], "2": ["auto"], "3": list(MODES)}


def test_images_are_counted_by_mode(small: Small) -> None:
    """From 0 for every mode of an open version."""

    def counted() -> dict[tuple[str, str], float]:
        families = {family.name: family for family in small.metrics.registry.collect()}
        samples = families["awnet_mode_images"].samples
        return {(s.labels["version"], s.labels["mode"]): s.value for s in samples}

    before = counted()
    assert before.keys() == {("1", "auto"), ("2", "auto"), *(("3", mode) for mode in MODES)}
    predicted(small, "&mode=natural")
    after = counted()
    assert {key: after[key] - before[key] for key in after if after[key] != before[key]} == {("3", "natural"): 1}
    refused(small, "mode=paranoid")
    assert b'awnet_rejections_total{reason="unknown-mode"}' in generate_latest(small.metrics.registry)


# Inside the engine.


def with_engine(repository: Path, use: Any, **options: Any) -> Any:
    async def go() -> Any:
        engine = EmbeddedEngine(Repository(repository), **{"threads": 2, **options})
        await engine.start()
        try:
            return await use(engine)
        finally:
            await engine.close()

    return asyncio.run(asyncio.wait_for(go(), 60))


def test_under_load_of_mixed_modes_every_answer_is_its_own_modes(tmp_path: Path) -> None:
    """Hundreds of requests at once, batched, of one and of several images: no row of another mode among them."""
    rng = np.random.default_rng(11)
    images = rng.integers(0, 256, (40, 3, 1, 1), np.uint8) * np.ones((1, 1, SIZE, SIZE), np.uint8)
    right = outputs(publish_modes(tmp_path, "1"), "1", images)
    sizes: list[int] = []
    order = random.Random(5)

    async def use(engine: EmbeddedEngine) -> None:
        runner = await engine.open("awnet", 1)
        await runner.warm()
        asked = []
        for _ in range(400):
            first, count = order.randrange(36), order.choice((1, 1, 1, 3, 4))
            asked.append((order.choice(list(LOGITS)), first, count, order.choice(("normal", "low"))))
        answers = await asyncio.gather(
            *(
                runner.infer([PixelArray(i) for i in images[first : first + count]], Terms(priority=priority), mode)
                for mode, first, count, priority in asked
            )
        )
        for (mode, first, count, _), signals in zip(asked, answers, strict=True):
            rows = slice(first, first + count)
            np.testing.assert_allclose(signals.logits, right[LOGITS[mode]][rows], atol=1e-4)
            np.testing.assert_allclose(signals.p_type, right["p_type"][rows], atol=1e-4)
            np.testing.assert_allclose(signals.omega, right["omega"][rows], atol=1e-3)
        assert engine.waiting() == 0

    with_engine(tmp_path, use, capacity=10_000, on_batch=sizes.append)
    assert max(sizes) == 8 and sum(sizes) / len(sizes) > 2


class Slow(PixelArray):
    """An image whose decoding takes until it is let go."""

    def __init__(self, pixels: np.ndarray[Any, Any]) -> None:
        super().__init__(pixels)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def pixels(self, size: int) -> np.ndarray[Any, Any]:
        self.begun.set()
        self.go_on.wait(30)
        return super().pixels(size)


def test_priorities_hold_across_modes_and_a_late_request_of_one_holds_up_no_other(tmp_path: Path) -> None:
    """A low request waits for normal ones of every mode, though its own queue is free; a deadline is told on time."""

    async def use(engine: EmbeddedEngine) -> None:
        runner = await engine.open("awnet", 1)
        slow, ended = Slow(PIXELS), []

        async def ask(mode: Mode, priority: str, **terms: Any) -> None:
            try:
                await runner.infer([PixelArray(PIXELS)], Terms(priority=priority, **terms), mode)  # type: ignore[arg-type]
                ended.append((mode, priority))
            except DeadlineExceeded:
                ended.append((mode, "late"))

        first = asyncio.create_task(runner.infer([slow], NO_DEADLINE, "auto"))
        await until(slow.begun.is_set)
        late = asyncio.create_task(ask("natural", "normal", deadline=clock.now() + 0.05))
        asked = [asyncio.create_task(ask("robust", "low"))]
        asked += [asyncio.create_task(ask(mode, "normal")) for mode in ("natural", "auto", "natural")]
        await late
        slow.go_on.set()
        await asyncio.gather(first, *asked)
        assert ended[0] == ("natural", "late")
        assert ended[-1] == ("robust", "low")
        assert Counter(ended[1:-1]) == {("natural", "normal"): 2, ("auto", "normal"): 1}
        assert engine.waiting() == 0

    with_engine(publish_modes(tmp_path, "1"), use, threads=1, max_batch=1)


def test_a_deadline_counts_in_every_mode(tmp_path: Path) -> None:
    """One that has passed is told, and leaves nothing waiting."""

    async def use(engine: EmbeddedEngine) -> None:
        runner = await engine.open("awnet", 1)
        for mode in LOGITS:
            with pytest.raises(DeadlineExceeded):
                await runner.infer([PixelArray(PIXELS)], Terms(deadline=0.0), mode)
        assert engine.waiting() == 0

    with_engine(publish_modes(tmp_path, "1"), use)


def test_closing_a_version_answers_what_it_accepted_in_every_mode(tmp_path: Path) -> None:
    """And the engine can open it again."""

    async def use(engine: EmbeddedEngine) -> None:
        for _ in range(2):
            runner = await engine.open("awnet", 1)
            asked = [asyncio.create_task(runner.infer([PixelArray(PIXELS)], NO_DEADLINE, m)) for m in (*LOGITS,) * 5]
            await asyncio.sleep(0)
            await runner.close()
            assert all(signals.finite() for signals in await asyncio.gather(*asked))

    with_engine(publish_modes(tmp_path, "1"), use)


class Told(Events):
    """Remembers what it is told of the shadow."""

    def __init__(self) -> None:
        self.shadows: Counter[str] = Counter()
        self.differences = 0

    def shadow(self, model: Model, result: str, images: int) -> None:
        self.shadows[result] += images

    def disagreement(self, model: Model, about: str, images: int) -> None:
        self.differences += images


class Deaf(AroundRunner):
    """A runner that answers in mode auto, whatever was asked for."""

    async def infer(self, images: Sequence[ImageInput], terms: Terms = NO_DEADLINE, mode: Mode = "auto") -> Signals:
        return await self.inner.infer(images, terms, "auto")


def test_the_self_test_proves_every_mode(tmp_path: Path) -> None:
    """An engine that is right in mode auto alone does not pass."""

    async def use(engine: EmbeddedEngine) -> None:
        runner: Runner = await engine.open("awnet", 1)
        await self_test(runner)
        with pytest.raises(SelfTestFailed, match="golden logits_adv"):
            await self_test(Deaf(runner))

    with_engine(publish_modes(tmp_path, "1"), use)


def test_a_version_with_a_wrong_golden_value_of_a_mode_is_not_served(tmp_path: Path) -> None:
    """The version before it serves on."""

    def spoil(contract: dict[str, Any]) -> None:
        schema_3()(contract)
        contract["golden"]["logits_nat"] = tensor(np.zeros((3, len(LABELS)), np.float32))

    publish(publish_modes(tmp_path, "3"), "4", spoil, branches=branches())
    running = Small(tmp_path, versions_kept=1)
    assert running.service.models.latest().version == 3
    [refusal] = running.service.models.status()["models"][0]["refused"]
    assert (refusal["version"], "golden logits_nat" in refusal["detail"]) == ("4", True)
    running.close()


# Versions that lack a mode.


def start(repository: Path, **options: Any) -> Models:
    return Models(AroundEngine(repository), **{"default": "awnet", **options})


def run(scenario: Any) -> Any:
    return asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_start_in_a_default_mode_that_no_version_has_is_refused_in_one_line(tmp_path: Path) -> None:
    """It says which modes there are."""

    async def scenario() -> None:
        models = start(publish(tmp_path), mode="robust")
        with pytest.raises(StartupError, match=r"no mode 'robust', the default here; there are auto$"):
            await models.start()
        await models.close()

    run(scenario)


def test_a_version_that_lacks_the_default_mode_is_taken_neither_by_a_reload_nor_by_request(tmp_path: Path) -> None:
    """Nor by a rollback; what serves, serves on."""

    async def scenario() -> None:
        publish(publish_modes(tmp_path, "2", "auto", "robust"), "1")
        models = start(tmp_path, mode="robust")
        await models.start()
        assert list(models.loaded()["awnet"]) == [2]
        publish_modes(tmp_path, "3", "auto", "natural")
        changes = (await models.reload())["changes"]
        assert [(change["version"], change["result"]) for change in changes] == [("3", "refused")]
        for change in (models.promote(None, 3), models.set_canary(3, 0.5), models.set_shadow(1)):
            with pytest.raises(StartupError, match="no mode 'robust'"):
                await change
        assert models.latest().version == 2
        await models.close()

    run(scenario)


def test_a_canary_gets_its_share_of_what_it_can_answer(tmp_path: Path) -> None:
    """Requests in a mode that it lacks stay with the serving version; those it can answer are split exactly."""

    async def scenario() -> None:
        publish(publish_modes(tmp_path, "2"), "1", seed=1)
        models = start(tmp_path)
        await models.start()
        await models.set_canary(1, 0.5)
        took = {mode: [models.lease(mode=mode).model.version for _ in range(10)] for mode in MODES}
        assert (took["robust"], took["natural"]) == ([2] * 10, [2] * 10)
        assert sorted(took["auto"]) == [1] * 5 + [2] * 5
        await models.close()

    run(scenario)


def test_a_canary_never_answers_what_the_serving_version_refuses(tmp_path: Path) -> None:
    """Or the same request would be refused now and answered then."""

    async def scenario() -> None:
        publish_modes(publish(tmp_path, "2"), "1")
        models = start(tmp_path)
        await models.start()
        await models.set_canary(1, 1.0)
        assert models.lease(mode="auto").model.version == 1
        with pytest.raises(UnknownMode, match="version 2 of awnet has no mode 'robust'; there are auto"):
            models.lease(mode="robust")
        assert models.lease(version=1, mode="robust").mode == "robust"
        await models.close()

    run(scenario)


def test_after_a_rollback_a_mode_that_is_gone_is_refused(tmp_path: Path) -> None:
    """By the version that serves now, in words that say so."""

    async def scenario() -> None:
        publish(publish_modes(tmp_path, "2"), "1")
        models = start(tmp_path)
        await models.start()
        assert models.lease(mode="robust").model.version == 2
        await models.rollback()
        with pytest.raises(UnknownMode, match="version 1 of awnet"):
            models.lease(mode="robust")
        assert models.lease(version=2, mode="robust").mode == "robust"
        await models.close()

    run(scenario)


def test_a_shadow_is_compared_in_the_same_mode(tmp_path: Path) -> None:
    """Two versions of the same weights never differ, whatever mode is asked for; what the shadow lacks is dropped."""
    for version in ("1", "2"):
        publish_modes(tmp_path, version, seed=4)
    publish(tmp_path, "3", seed=4)

    async def scenario() -> None:
        events = Told()
        models = start(tmp_path, pinned=2, shadow=1, events=events)
        await models.start()
        files = [np.asarray(plain(red)).transpose(2, 0, 1) for red in (0.0, 0.3, 0.6, 0.9)]

        async def ask_all() -> None:
            for mode in MODES:
                for pixels in files:
                    with models.lease(mode=mode) as lease:
                        await lease.infer([PixelArray(pixels)], NO_DEADLINE)
                    await until(lambda: not models._comparer._tasks)

        await ask_all()
        assert (events.shadows, events.differences) == ({"compared": 12}, 0)
        await models.set_shadow(3)
        events.shadows.clear()
        await ask_all()
        assert events.shadows == {"compared": 4, "dropped": 8}
        await models.close()

    run(scenario)


def test_a_setting_that_is_no_mode_is_refused() -> None:
    """At the start, as every setting is."""
    assert Settings(mode="robust").mode == "robust"
    for wrong in ("paranoid", "", "Auto"):
        with pytest.raises(ValueError, match="mode"):
            Settings(mode=wrong)

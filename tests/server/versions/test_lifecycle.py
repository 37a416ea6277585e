"""Taking, refusing, splitting, comparing and going back, under load: not one request may notice anything."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import shutil
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from server.core.engine import Engine, Leisure, Model, Runner, Signals, Terms
from server.core.images import ImageInput, PixelArray
from server.core.modes import Mode
from server.errors import (
    DeadlineExceeded,
    EngineFault,
    EngineUnavailable,
    NotReady,
    QueueFull,
    RequestError,
    StartupError,
    UnknownModel,
)
from server.versions.events import Events
from server.versions.models import Models
from tests.server.small import AroundEngine, AroundRunner
from tests.server.tiny import SIZE, graph, manifest_of, publish, tensor, write
from tests.waiting import settle, until

IMAGE = np.random.default_rng(3).integers(0, 256, (3, SIZE, SIZE), np.uint8)
NO_DEADLINE = Terms()


class Told(Events):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.reloads: list[str] = []
        self.open: dict[str, set[int]] = {}
        self.now: dict[str, dict[int, str]] = {}
        self.shadows: dict[str, int] = {}
        self.disagreements: dict[str, int] = {}

    def opened(self, model: Model) -> None:
        self.open.setdefault(model.name, set()).add(model.version)

    def closed(self, model: Model) -> None:
        self.open[model.name].remove(model.version)

    def roles(self, name: str, roles: Mapping[int, str]) -> None:
        self.now[name] = dict(roles)

    def reload(self, name: str, result: str) -> None:
        self.reloads.append(result)

    def shadow(self, model: Model, result: str, images: int) -> None:
        self.shadows[result] = self.shadows.get(result, 0) + images

    def disagreement(self, model: Model, about: str, images: int) -> None:
        self.disagreements[about] = self.disagreements.get(about, 0) + images


class Shelf(AroundEngine):
    """An engine that remembers what it opened and does with a version what a test says.

    Attributes:
        before: awaited ahead of every answer of a version.
        opening: awaited ahead of opening any.
        leisure: what the versions that were opened were to ask; None where all cores were theirs.
        terms: of every request, with the version.
    """

    def __init__(self, repository: Path, key: Path | None = None, **options: Any) -> None:
        super().__init__(repository, key, **options)
        self.opened: list[int] = []
        self.closed: list[int] = []
        self.asked: list[int] = []
        self.leisure: dict[int, Leisure | None] = {}
        self.terms: list[tuple[int, Terms]] = []
        self.looks = 0
        self.before: dict[int, Callable[[], Awaitable[None]]] = {}
        self.opening: Callable[[], Awaitable[None]] | None = None

    async def fingerprint(self) -> object:
        self.looks += 1
        return await super().fingerprint()

    async def open(self, name: str, version: int, leisure: Leisure | None = None) -> Runner:
        self.opened.append(version)
        self.leisure[version] = leisure
        if self.opening is not None:
            await self.opening()
        return _Book(self, await super().open(name, version, leisure))


class _Book(AroundRunner):
    def __init__(self, shelf: Shelf, inner: Runner) -> None:
        super().__init__(inner)
        self.shelf = shelf

    async def infer(self, images: Sequence[ImageInput], terms: Terms = NO_DEADLINE, mode: Mode = "auto") -> Signals:
        version = self.model.version
        self.shelf.asked.append(version)
        self.shelf.terms.append((version, terms))
        if version in self.shelf.before:
            await self.shelf.before[version]()
        return await super().infer(images, terms, mode)

    async def close(self) -> None:
        await super().close()
        self.shelf.closed.append(self.model.version)


class Held(PixelArray):
    """An image that is not decoded before it is free."""

    def __init__(self) -> None:
        super().__init__(IMAGE)
        self.free = threading.Event()

    def pixels(self, size: int) -> NDArray[np.uint8]:
        self.free.wait()
        return super().pixels(size)


@asynccontextmanager
async def serving(engine: Engine, **options: Any) -> Any:
    models = Models(engine, **{"default": "awnet", "events": Told(), **options})
    await models.start()
    try:
        yield models
    finally:
        await models.close()


def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(scenario(), 60))


async def answer(models: Models, name: str | None = None, version: int | None = None) -> int:
    """Ask once; the version that answered."""
    with models.lease(name, version) as lease:
        signals = await lease.infer([PixelArray(IMAGE)], NO_DEADLINE)
        assert signals.finite()
        return lease.model.version


class Load:
    """Four clients that ask all the time. Leaving it raises what any of them met, and checks every answer's values."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.versions: list[str] = []
        self.values: dict[int, list[float]] = {}
        self.leaving = False

    async def __aenter__(self) -> Load:
        self.tasks = [asyncio.create_task(self.ask()) for _ in range(4)]
        await self.more()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.leaving = True
        await asyncio.gather(*self.tasks)

    async def more(self, count: int = 20) -> None:
        """Wait until so many more requests are answered."""
        wanted = len(self.versions) + count

        def answered() -> bool:
            for task in self.tasks:
                if task.done():
                    task.result()
            return len(self.versions) >= wanted

        await until(answered)

    async def ask(self) -> None:
        while not self.leaving:
            with self.models.lease() as lease:
                signals = await lease.infer([PixelArray(IMAGE)], NO_DEADLINE)
                version = lease.model.version
            known = self.values.setdefault(version, signals.logits[0].tolist())
            assert signals.logits[0].tolist() == pytest.approx(known, abs=1e-4)
            self.versions.append(version)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_new_version_is_taken_without_a_request_noticing(tmp_path: Path) -> None:
    """Before the switch the old values come, after it the new ones, and at no time an error."""

    async def scenario() -> None:
        async with serving(Shelf(publish(tmp_path))) as models, Load(models) as load:
            publish(tmp_path, "2", seed=1)
            report = await models.reload()
            assert [change["result"] for change in report["changes"]] == ["loaded"]
            switched = len(load.versions)
            await load.more()
            assert set(load.versions[switched + 4 :]) == {2}  # four were on their way
            assert set(load.versions[:20]) == {1}
            assert load.values[1] != load.values[2]
            assert models.status()["models"][0]["serving"] == "2"

    run(scenario)


def with_model(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    """Version 2 from the good model, spoilt by `change`, with a manifest that fits the spoilt file."""

    def spoil(repository: Path) -> None:
        model = onnx.load_from_string((publish(repository, "2", seed=1) / "awnet/2/model.onnx").read_bytes())
        change(model)
        write(repository / "awnet/2", model.SerializeToString())

    return spoil


def with_contract(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def spoil(repository: Path) -> None:
        publish(repository, "2", change, seed=1)

    return spoil


def with_manifest(**changes: Any) -> Callable[[Path], None]:
    def spoil(repository: Path) -> None:
        publish(repository, "2", seed=1)
        path = repository / "awnet/2/manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def corrupt(repository: Path) -> None:
    write(repository / "awnet/2", b"\x08\x0a" + b"not a model" * 100)


def half_copied(repository: Path) -> None:
    path = publish(repository, "2", seed=1) / "awnet/2/model.onnx"
    path.write_bytes(path.read_bytes()[:-1000])


def bit_flipped(repository: Path) -> None:
    path = publish(repository, "2", seed=1) / "awnet/2/model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def without_model(repository: Path) -> None:
    (publish(repository, "2", seed=1) / "awnet/2/model.onnx").unlink()


def without_manifest(repository: Path) -> None:
    publish(repository, "2", seed=1, manifest=False)


def external_data(model: onnx.ModelProto) -> None:
    weights = model.graph.initializer[1]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="/etc/passwd")


def external_data_in_a_branch(model: onnx.ModelProto) -> None:
    inner = numpy_helper.from_array(np.zeros(3, np.float32), "inner")
    inner.external_data.add(key="location", value="weights.bin")
    branch = helper.make_graph([helper.make_node("Constant", [], ["x"], value=inner)], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["image"], [""], then_branch=branch, else_branch=branch))


def foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Anything", ["image"], ["unused"], domain="com.example"))
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def no_numbers(model: onnx.ModelProto) -> None:
    for weights in model.graph.initializer:
        if weights.name == "mean_to_logits":
            weights.CopyFrom(numpy_helper.from_array(np.full((3, 10), np.nan, np.float32), weights.name))


def other_shape(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def other_golden(contract: dict[str, Any]) -> None:
    contract["golden"]["p_type"] = tensor(np.full((3, 2), 0.5, np.float32))


FAULTS: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "corrupt": ("refused", "well-formed", corrupt),
    "half copied": ("refused", "bytes", half_copied),
    "a flipped bit": ("refused", "SHA-256", bit_flipped),
    "no model": ("absent", "no model.onnx", without_model),
    "no manifest": ("refused", "no manifest.json", without_manifest),
    "a manifest of another version": ("refused", "is that of", with_manifest(version=1)),
    "a manifest of another model": ("refused", "is that of", with_manifest(model="other")),
    "a manifest of the future": ("refused", "schema_version", with_manifest(schema_version=2)),
    "a manifest without the model": ("refused", "does not list", with_manifest(files={})),
    "a wrong shape in the contract": ("refused", "shape", with_contract(lambda c: c["preprocessing"].update(size=16))),
    "a wrong shape in the graph": ("refused", "tensors", with_model(other_shape)),
    "a contract of the future": ("refused", "schema_version", with_contract(lambda c: c.update(schema_version=9))),
    "wrong values": ("refused", "golden p_type", with_contract(other_golden)),
    "NaN": ("refused", "golden logits", with_model(no_numbers)),
    "external data": ("refused", "outside of the model", with_model(external_data)),
    "external data in a branch": ("refused", "outside of the model", with_model(external_data_in_a_branch)),
    "a foreign operator": ("refused", "com.example", with_model(foreign_operator)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_version_that_cannot_be_served_leaves_the_old_one_serving(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Under load no request fails, the metric and one log line tell of it once, and a mended version is taken."""
    result, word, spoil = FAULTS[fault]

    async def scenario() -> None:
        shelf = Shelf(publish(tmp_path))
        async with serving(shelf) as models, Load(models) as load:
            events = models._events
            spoil(tmp_path)
            for _ in range(3):
                await models.reload()
            await load.more()
            assert set(load.versions) == {1}
            assert events.reloads.count(result) == 1
            (line,) = errors(caplog)
            assert word in line
            assert "version 1 serves on" in line
            assert events.open == {"awnet": {1}}
            shutil.rmtree(tmp_path / "awnet/2")
            publish(tmp_path, "2", seed=1)
            await models.reload()
            await load.more()
            assert load.versions[-1] == 2
            assert models.status()["models"][0]["refused"] == []

    run(scenario)


def test_a_version_that_cannot_be_trusted_leaves_the_old_one_serving(tmp_path: Path) -> None:
    """With a key: unsigned, signed by somebody else, and signed before the manifest was changed are refused."""
    key, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    public = tmp_path / "key.pub.pem"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    home = tmp_path / "repository"

    def sign(version: str, by: Ed25519PrivateKey) -> None:
        folder = home / "awnet" / version
        signature = base64.b64encode(by.sign((folder / "manifest.json").read_bytes()))
        (folder / "manifest.json.sig").write_bytes(signature + b"\n")

    async def scenario() -> None:
        publish(home)
        sign("1", key)
        async with serving(Shelf(home, public)) as models, Load(models) as load:
            publish(home, "2", seed=1)
            await models.reload()
            sign("2", stranger)
            await models.reload()
            sign("2", key)
            manifest = home / "awnet/2/manifest.json"
            right = manifest.read_text()
            manifest.write_text(right + "\n")
            await models.reload()
            assert models._events.reloads == ["loaded", "refused", "refused", "refused"]
            assert set(load.versions) == {1}
            manifest.write_text(right)
            await models.reload()
            await load.more()
            assert load.versions[-1] == 2

    run(scenario)


def test_a_refused_version_is_not_tried_again_until_its_files_change(tmp_path: Path) -> None:
    """Nor because another one has come."""

    async def scenario() -> None:
        shelf = Shelf(publish(tmp_path))
        async with serving(shelf, kept=1) as models:
            bit_flipped(tmp_path)
            await models.reload()
            await models.reload()
            assert shelf.opened == [1, 2]
            publish(tmp_path, "3", seed=2)
            await models.reload()
            assert shelf.opened == [1, 2, 3]
            (tmp_path / "awnet/2/manifest.json").touch()
            await models.reload()
            assert shelf.opened == [1, 2, 3]  # 3 serves; nobody needs 2

    run(scenario)


def test_requests_are_answered_while_a_version_loads(tmp_path: Path) -> None:
    """Nothing waits for it, not even the event loop."""

    async def scenario() -> None:
        shelf = Shelf(publish(tmp_path))
        gate = asyncio.Event()
        async with serving(shelf) as models:

            async def wait() -> None:
                await gate.wait()

            shelf.opening = wait
            publish(tmp_path, "2", seed=1)
            loading = asyncio.create_task(models.reload())
            for _ in range(20):
                assert await answer(models) == 1
            assert models.ready
            assert not loading.done()
            gate.set()
            await loading
            assert await answer(models) == 2

    run(scenario)


def test_what_is_opened_while_requests_are_answered_takes_no_cores_from_them(tmp_path: Path) -> None:
    """Whatever opens it; a start, which nobody waits for but those who want it ready, has all of them."""

    async def scenario() -> None:
        shelf = Shelf(publish(tmp_path))
        publish(tmp_path, "2", seed=1)
        async with serving(shelf) as models:
            assert shelf.leisure == {1: None, 2: None}
            publish(tmp_path, "3", seed=2)
            await models.reload()
            publish(tmp_path, "4", seed=3)
            polling = asyncio.create_task(models.poll(0.01))
            await until(lambda: models.latest().version == 4)
            polling.cancel()
            await models.promote(None, 1)
            (tmp_path / "awnet/4/manifest.json").touch()
            await models.reload()
            publish(tmp_path, "6", seed=5)
            await models.set_canary(6, 0.5)
            assert {version for version, leisure in shelf.leisure.items() if leisure} == {1, 3, 4, 6}
            # Nobody has asked but the golden tests.
            assert {terms.background for version, terms in shelf.terms if version in (3, 4, 6)} == {True}
            assert {terms.background for version, terms in shelf.terms if version == 2} == {False}

    run(scenario)


def test_what_a_rollback_waits_for_takes_its_time_no_longer(tmp_path: Path) -> None:
    """Changes are made one after another; on busy cores a version that is opened at leisure takes a minute."""

    async def scenario() -> None:
        shelf = Shelf(publish(tmp_path))
        publish(tmp_path, "2", seed=1)
        gate = asyncio.Event()
        async with serving(shelf) as models:

            async def wait() -> None:
                await gate.wait()

            shelf.opening = wait
            publish(tmp_path, "3", seed=2)
            loading = asyncio.create_task(models.reload())
            await until(lambda: 3 in shelf.leisure)
            leisure = shelf.leisure[3]
            assert leisure is not None and leisure()
            asked = [asyncio.create_task(models.rollback()), asyncio.create_task(models.set_canary(None))]
            await asyncio.sleep(0)
            assert not leisure()
            asked[1].cancel()
            await asyncio.wait(asked[1:])
            assert not leisure(), "the other one still waits"
            gate.set()
            await asyncio.gather(loading, asked[0])
            assert leisure() and models.latest().version == 2

    run(scenario)


def test_a_worker_that_joins_opens_what_the_others_serve_at_once(tmp_path: Path) -> None:
    """It answers nobody until then, and its place among them is empty."""

    async def scenario() -> None:
        publish(tmp_path, "1")
        publish(tmp_path, "2", seed=1)
        publish(tmp_path, "3", seed=2)
        async with serving(Shelf(tmp_path)) as others:
            await others.promote(None, 1)
            await others.set_shadow(2)
            state = others.state()
        shelf, at_leisure = Shelf(tmp_path), list[bool]()
        async with serving(shelf) as models:
            opened = list(shelf.opened)

            async def note() -> None:
                leisure = shelf.leisure[shelf.opened[-1]]
                at_leisure.append(leisure is not None and leisure())

            shelf.opening = note
            await models.adopt(state)
            assert models.latest().version == 1 and len(shelf.opened) > len(opened)
            assert at_leisure == [False] * (len(shelf.opened) - len(opened))
            publish(tmp_path, "4", seed=3)
            await models.promote(None, 4)
            assert at_leisure[-1], "later there is time again"

    run(scenario)


def test_the_golden_test_of_a_new_version_needs_no_room_in_a_full_queue(tmp_path: Path) -> None:
    """That the server is busy says nothing against the version."""

    async def scenario() -> None:
        shelf = Shelf(publish(tmp_path), capacity=1)
        async with serving(shelf) as models:
            image = Held()
            with models.lease() as lease:
                waiting = asyncio.create_task(lease.infer([image], NO_DEADLINE))
                try:
                    await settle()
                    with pytest.raises(QueueFull):
                        await answer(models)
                    publish(tmp_path, "2", seed=1)
                    await models.reload()
                    assert models.latest().version == 2
                finally:
                    image.free.set()
                await waiting
            assert await answer(models) == 2

    run(scenario)


def test_an_engine_that_is_away_is_asked_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It says nothing against the version, so polling tries it again though no file has changed."""

    async def scenario() -> None:
        shelf = Shelf(publish(tmp_path))
        async with serving(shelf) as models:
            publish(tmp_path, "2", seed=1)
            away = [True]

            async def refuse() -> None:
                if away[0]:
                    raise EngineUnavailable("gone for a moment")

            shelf.opening = refuse
            await models.reload()
            await models.reload()
            assert models._events.reloads == ["loaded", "unavailable", "unavailable"]
            assert len(errors(caplog)) == 1
            polling = asyncio.create_task(models.poll(0.01))
            await until(lambda: models._events.reloads.count("unavailable") > 3)
            assert await answer(models) == 1
            away[0] = False
            await until(lambda: models.latest().version == 2)
            assert await answer(models) == 2
            polling.cancel()

    run(scenario)


def test_polling_takes_what_appears_and_outlives_what_goes_wrong(tmp_path: Path) -> None:
    """The repository is gone for a moment, comes back, and holds a new version."""

    async def scenario() -> None:
        home = publish(tmp_path / "repository")
        shelf = Shelf(home)
        async with serving(shelf) as models, Load(models) as load:
            polling = asyncio.create_task(models.poll(0.01))
            home.rename(tmp_path / "elsewhere")
            looks = shelf.looks
            await until(lambda: shelf.looks > looks + 2)
            (tmp_path / "elsewhere").rename(home)
            publish(home, "2", seed=1)
            while load.versions[-1] != 2:
                await load.more(1)
            opened, looks = list(shelf.opened), shelf.looks
            await until(lambda: shelf.looks > looks + 5)
            assert shelf.opened == opened  # looking costs nothing while nothing changes
            polling.cancel()

    run(scenario)


def test_a_version_whose_files_are_gone_serves_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Taking files away is no way back: it would leave nothing to go back to."""

    async def scenario() -> None:
        publish(tmp_path)
        async with serving(Shelf(publish(tmp_path, "2", seed=1))) as models:
            shutil.rmtree(tmp_path / "awnet/2")
            await models.reload()
            await models.reload()
            assert await answer(models) == 2
            assert models._events.reloads.count("absent") == 1
            assert len(errors(caplog)) == 1

    run(scenario)


def test_files_that_are_replaced_are_taken_only_if_they_are_good(tmp_path: Path) -> None:
    """A version should never change; where it does, it is proven like a new one, and a touch changes nothing."""

    async def scenario() -> None:
        shelf = Shelf(publish(tmp_path))
        async with serving(shelf) as models, Load(models) as load:
            first = models.latest().sha256
            path = tmp_path / "awnet/1/model.onnx"
            good = path.read_bytes()
            (tmp_path / "awnet/1/manifest.json").touch()
            await models.reload()
            assert models._events.reloads == ["loaded", "unchanged"]
            path.write_bytes(b"rubbish")
            await models.reload()
            assert models._events.reloads[-1] == "refused"
            path.write_bytes(good)
            await models.reload()
            assert models.latest().sha256 == first
            await load.more()
            load.values.clear()
        async with serving(Shelf(tmp_path)) as models:
            other = publish(tmp_path / "other", "1", seed=5) / "awnet/1/model.onnx"
            write(tmp_path / "awnet/1", other.read_bytes())
            await models.reload()
            assert models.latest().sha256 != first
            assert await answer(models) == 1
            assert models._events.open == {"awnet": {1}}

    run(scenario)


def test_a_canary_whose_files_are_replaced_fails_nobody(tmp_path: Path) -> None:
    """Every request meets the old files' model or the new one's, also while the reload goes on with other versions."""

    async def scenario() -> None:
        publish(tmp_path)
        publish(tmp_path, "2", seed=1)
        shelf = Shelf(tmp_path)
        async with serving(shelf, canary=(2, 0.5), shadow=3) as models:
            before = models.loaded()["awnet"][2].sha256
            publish(tmp_path, "3", seed=3)
            other = publish(tmp_path / "other", "2", seed=5) / "awnet/2/model.onnx"
            write(tmp_path / "awnet/2", other.read_bytes())

            asked: list[str] = []

            async def slow() -> None:
                enough = len(asked) + 10
                await until(lambda: len(asked) >= enough)

            shelf.opening = slow
            reloading = asyncio.create_task(models.reload())

            async def replaced() -> bool:
                asked.append(await answer(models))
                return reloading.done()

            await until(replaced)
            assert {1, 2} <= set(asked)
            assert models.loaded()["awnet"][2].sha256 != before
            assert models._events.now["awnet"] == {1: "serving", 2: "canary", 3: "shadow"}
            assert shelf.closed == [2]

    run(scenario)


def test_what_lasts_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two things that are missing at the same time do not take turns in the log."""

    async def scenario() -> None:
        async with serving(Shelf(publish(tmp_path)), shadow=8, canary=(9, 0.1)) as models:
            assert await answer(models) == 1
            shutil.rmtree(tmp_path / "awnet/1")
            before = len(errors(caplog))
            for _ in range(5):
                await models.reload()
            assert len(errors(caplog)) == before + 1
            publish(tmp_path, "8", seed=8)
            await models.reload()
            assert models._events.now["awnet"] == {1: "serving", 8: "shadow"}

    run(scenario)


def test_a_rollback_needs_no_disk_and_holds(tmp_path: Path) -> None:
    """The version before is still open; polling does not undo the rollback, a newer version or a request does."""

    async def scenario() -> None:
        shelf = Shelf(publish(tmp_path))
        async with serving(shelf) as models, Load(models) as load:
            publish(tmp_path, "2", seed=1)
            await models.reload()
            await load.more()
            shutil.rmtree(tmp_path / "awnet/1")
            opened = list(shelf.opened)
            await models.rollback()
            assert await answer(models) == 1
            assert await answer(models, version=2) == 2
            (tmp_path / "awnet/2/manifest.json").touch()
            await models.reload()
            assert await answer(models) == 1
            assert shelf.opened == [*opened, 2]  # touched, so read again, and not taken
            publish(tmp_path, "3", seed=2)
            await models.reload()
            assert await answer(models) == 3
            await models.rollback()
            assert await answer(models) == 1
            await models.promote(None, 3)
            assert await answer(models) == 3

    run(scenario)


def test_there_is_no_rollback_from_the_first_version(tmp_path: Path) -> None:
    """And it changes nothing."""

    async def scenario() -> None:
        async with serving(Shelf(publish(tmp_path))) as models:
            with pytest.raises(UnknownModel, match="no version before 1"):
                await models.rollback()
            assert await answer(models) == 1

    run(scenario)


def test_after_a_start_the_next_lower_version_can_be_gone_back_to(tmp_path: Path) -> None:
    """It is kept open for that."""

    async def scenario() -> None:
        for version in ("1", "2", "3"):
            publish(tmp_path, version, seed=int(version))
        shelf = Shelf(tmp_path)
        async with serving(shelf, kept=2) as models:
            assert shelf.opened == [3, 2]
            assert models._events.now == {"awnet": {3: "serving", 2: "kept"}}
            with pytest.raises(UnknownModel):
                models.lease(version=1)
            await models.rollback()
            assert await answer(models) == 2
            assert shelf.opened == [3, 2]

    run(scenario)


def test_a_promotion_that_fails_changes_nothing(tmp_path: Path) -> None:
    """Whoever asked is told why."""

    async def scenario() -> None:
        async with serving(Shelf(publish(tmp_path))) as models:
            bit_flipped(tmp_path)
            with pytest.raises(StartupError, match="SHA-256"):
                await models.promote(None, 2)
            with pytest.raises(StartupError, match="no version 7"):
                await models.promote(None, 7)
            assert await answer(models) == 1

    run(scenario)


def test_only_the_newest_versions_are_kept_open(tmp_path: Path) -> None:
    """Memory does not grow with the number of versions that ever served."""

    async def scenario() -> None:
        shelf = Shelf(publish(tmp_path))
        async with serving(shelf, kept=2) as models, Load(models) as load:
            for version in ("2", "3", "4"):
                publish(tmp_path, version, seed=int(version))
                await models.reload()
                await load.more()
            assert sorted(models.loaded()["awnet"]) == [3, 4]
            await until(lambda: not models.status()["closing"])
            assert shelf.closed == [1, 2]
            assert models._events.open == {"awnet": {3, 4}}

    run(scenario)


def test_a_version_is_not_closed_while_a_request_holds_it(tmp_path: Path) -> None:
    """It is answered by what it began with, however long ago that was replaced."""

    async def scenario() -> None:
        shelf = Shelf(publish(tmp_path))
        async with serving(shelf, kept=1) as models:
            with models.lease() as lease:
                publish(tmp_path, "2", seed=1)
                await models.reload()
                assert await answer(models) == 2
                await settle()
                assert shelf.closed == []
                assert (await lease.infer([PixelArray(IMAGE)], NO_DEADLINE)).finite()
                assert lease.model.version == 1
            await until(lambda: shelf.closed == [1])

    run(scenario)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 1 / 3, 0.5, 1.0])
def test_the_canary_gets_exactly_its_share(tmp_path: Path, share: float) -> None:
    """After any number of requests it is less than one off; what names a version or another model is not split."""

    async def scenario() -> None:
        publish(tmp_path)
        publish(tmp_path, "2", seed=1)
        publish(tmp_path, name="other")
        async with serving(Shelf(tmp_path), canary=(2, share), others=["other"]) as models:
            given = 0
            for n in range(1, 5001):
                given += models.lease().model.version == 2
                models.lease(version=1)
                models.lease("other")
                assert -1e-2 < n * share - given < 1 + 1e-2
            assert models._events.now["awnet"] == {1: "serving", 2: "canary"}

    run(scenario)


def test_the_canary_can_be_changed_ended_and_promoted(tmp_path: Path) -> None:
    """Without a restart, and a version that cannot be served is no canary."""

    async def scenario() -> None:
        shelf = Shelf(publish(tmp_path))
        async with serving(shelf, kept=1) as models, Load(models) as load:
            publish(tmp_path, "2", seed=1)
            with pytest.raises(RequestError, match="serves"):
                await models.set_canary(1, 0.5)
            await models.set_canary(2, 0.5)
            assert [await answer(models, version=2), models.status()["canary"]["share"]] == [2, 0.5]
            before = len(load.versions)
            await load.more(200)
            share = load.versions[before:].count(2) / len(load.versions[before:])
            assert share == pytest.approx(0.5, abs=0.05)
            await models.reload()
            assert models.latest().version == 1  # a canary is not taken by itself
            await models.set_canary(None)
            await models.reload()
            assert models.latest().version == 2
            publish(tmp_path, "3", seed=2)
            await models.set_canary(3, 0.1)
            await models.promote(None, 3)
            assert models.status()["canary"] is None
            assert await answer(models) == 3
            with pytest.raises(StartupError):
                await models.set_canary(9, 0.1)
            with pytest.raises(ValueError, match="share"):
                await models.set_canary(2, 1.5)

    run(scenario)


def test_the_shadow_answers_too_and_only_its_disagreement_is_seen(tmp_path: Path) -> None:
    """Other weights give another class, other thresholds another verdict; the client gets the old answer."""

    def stricter(contract: dict[str, Any]) -> None:
        contract["thresholds"]["suspicious"]["score"] = 0.0
        contract["thresholds"]["adversarial"]["score"] = 1e-6

    async def scenario() -> None:
        publish(tmp_path)
        publish(tmp_path, "2", stricter, seed=1)
        shelf = Shelf(tmp_path)
        async with serving(shelf, shadow=2) as models:
            events = models._events
            assert events.now["awnet"] == {1: "serving", 2: "shadow"}
            for n in range(5):
                assert await answer(models) == 1
                await until(lambda n=n: events.shadows.get("compared", 0) > n)  # type: ignore[misc]
            assert events.disagreements["verdict"] == 5
            expected = [await lease_class(models, version) for version in (1, 2)]
            assert events.disagreements.get("class", 0) == 5 * (expected[0] != expected[1])
            await models.set_shadow(None)
            shelf.asked.clear()
            assert await answer(models) == 1
            await settle()
            assert (shelf.asked, events.shadows) == ([1], {"compared": 5})

    async def lease_class(models: Models, version: int) -> int:
        with models.lease(version=version) as lease:
            return int((await lease.infer([PixelArray(IMAGE)], NO_DEADLINE)).logits.argmax())

    run(scenario)


@pytest.mark.parametrize("fault", [EngineFault("broken"), DeadlineExceeded("late"), RuntimeError("unforeseen")])
def test_a_shadow_that_fails_is_only_counted(tmp_path: Path, fault: Exception) -> None:
    """The client is answered as if there were none."""

    async def scenario() -> None:
        publish(tmp_path)
        publish(tmp_path, "2", seed=1)
        shelf = Shelf(tmp_path)
        async with serving(shelf, shadow=2) as models:

            async def fail() -> None:
                raise fault

            shelf.before[2] = fail
            for _ in range(3):
                assert await answer(models) == 1
            await until(lambda: models._events.shadows == {"failed": 3})

    run(scenario)


def test_a_slow_shadow_delays_nobody_and_is_dropped_beyond_its_room(tmp_path: Path) -> None:
    """It never finishes; everybody is answered, sixteen images wait for it, the rest is counted as dropped."""

    async def scenario() -> None:
        publish(tmp_path)
        publish(tmp_path, "2", seed=1)
        shelf = Shelf(tmp_path)
        async with serving(shelf, shadow=2) as models:

            async def wait() -> None:
                await asyncio.Event().wait()

            shelf.before[2] = wait
            for _ in range(40):
                assert await answer(models) == 1
            await asyncio.sleep(0)
            assert models._events.shadows == {"dropped": 24}
        assert models._events.shadows == {"dropped": 40}  # what was under way ended with the server

    run(scenario)


def test_nobody_is_refused_for_the_shadows_sake(tmp_path: Path) -> None:
    """Where the queue is full and the shadow holds a part of it, it gives that back."""

    async def scenario() -> None:
        publish(tmp_path)
        publish(tmp_path, "2", seed=1)
        shelf = Shelf(tmp_path)
        async with serving(shelf, shadow=2) as models:
            held = [0]

            async def hold() -> None:
                held[0] += 1
                try:
                    await asyncio.Event().wait()
                finally:
                    held[0] -= 1

            async def full_while_held() -> None:
                if held[0]:
                    raise QueueFull("full")

            shelf.before = {1: full_while_held, 2: hold}
            for _ in range(5):
                assert await answer(models) == 1
                await asyncio.sleep(0)
            assert held[0] == 1

    run(scenario)


def test_several_models_are_served_side_by_side(tmp_path: Path) -> None:
    """Each by its name, with versions of its own; one that cannot be served does not stop the others."""

    async def scenario() -> None:
        publish(tmp_path)
        publish(tmp_path, "4", name="other", seed=3)
        async with serving(Shelf(tmp_path), others=["other", "third"]) as models:
            assert await answer(models) == 1
            assert await answer(models, "other") == 4
            assert await answer(models, "other", 4) == 4
            assert {name: list(found) for name, found in models.loaded().items()} == {
                "awnet": [1],
                "other": [4],
                "third": [],
            }
            with pytest.raises(UnknownModel):
                models.lease("nobody")
            with pytest.raises(UnknownModel):
                models.lease("other", 1)
            with pytest.raises(NotReady):
                models.lease("third")
            publish(tmp_path, "1", name="third")
            await models.reload()
            assert await answer(models, "third") == 1

    run(scenario)


def test_a_start_falls_back_to_the_newest_version_that_can_be_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A bad publication must not keep a server from coming back; it is told as in a reload."""

    async def scenario() -> None:
        publish(tmp_path)
        bit_flipped(tmp_path)
        async with serving(Shelf(tmp_path)) as models:
            assert await answer(models) == 1
            assert models._events.reloads == ["refused", "loaded"]
            (line,) = errors(caplog)
            assert "version 2 refused" in line

    run(scenario)


def test_a_pinned_version_is_served_and_nothing_else_is_taken(tmp_path: Path) -> None:
    """Newer ones may appear; the older one is kept for going back."""

    async def scenario() -> None:
        for version in ("1", "2", "3"):
            publish(tmp_path, version, seed=int(version))
        async with serving(Shelf(tmp_path), pinned=2) as models:
            assert await answer(models) == 2
            publish(tmp_path, "4", seed=4)
            await models.reload()
            assert await answer(models) == 2
            assert sorted(models.loaded()["awnet"]) == [1, 2]

    run(scenario)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"default": "other"}, "no version"), ({"pinned": 7}, "no version 7"), ({"pinned": 2}, "SHA-256")],
)
def test_a_start_without_its_model_is_refused(tmp_path: Path, options: dict[str, Any], word: str) -> None:
    """A pinned version is that one or none."""

    async def scenario() -> None:
        publish(tmp_path)
        bit_flipped(tmp_path)
        models = Models(Shelf(tmp_path), **{"default": "awnet", **options})
        with pytest.raises(StartupError, match=word):
            await models.start()
        assert not models.ready
        await models.close()

    run(scenario)


def test_closing_waits_for_those_who_are_being_answered(tmp_path: Path) -> None:
    """And no new request is let in."""

    async def scenario() -> None:
        shelf = Shelf(publish(tmp_path))
        models = Models(shelf, default="awnet")
        await models.start()
        with models.lease() as lease:
            closing = asyncio.create_task(models.close())
            await settle()
            assert shelf.closed == []
            with pytest.raises(NotReady):
                models.lease()
            assert (await lease.infer([PixelArray(IMAGE)], NO_DEADLINE)).finite()
        await closing
        assert shelf.closed == [1]

    run(scenario)


def test_the_tiny_models_differ(tmp_path: Path) -> None:
    """What these tests rest on: seeds give other weights, and a manifest fits its file."""
    assert graph(0).SerializeToString() != graph(1).SerializeToString()
    folder = publish(tmp_path) / "awnet/1"
    assert manifest_of(folder, (folder / "model.onnx").read_bytes()) == json.loads(
        (folder / "manifest.json").read_text()
    )


def test_changes_asked_for_at_once_are_made_one_after_the_other(tmp_path: Path) -> None:
    """Two versions are promoted and one is to be canary, all at the same time: no version is opened while another is,
    the later promotion wins, and the canary is one beside what serves then."""
    for version in ("1", "2", "3", "4"):
        publish(tmp_path, version)
    shelf = Shelf(tmp_path)

    async def scenario() -> None:
        async with serving(shelf, pinned=1, kept=1) as models:
            shelf.opened.clear()
            under_way, most = 0, 0

            async def slowly() -> None:
                nonlocal under_way, most
                under_way += 1
                most = max(most, under_way)
                await settle()
                under_way -= 1

            shelf.opening = slowly
            await asyncio.gather(models.promote(None, 3), models.promote(None, 2), models.set_canary(4, 0.5))
            assert most == 1 and shelf.opened == [3, 2, 4]
            assert models.latest().version == 2
            assert models.status()["canary"] == {"version": "4", "share": 0.5}

    run(scenario)

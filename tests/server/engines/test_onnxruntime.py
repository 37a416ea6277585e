"""The embedded engine: which model it takes, what it refuses, how many threads it starts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from server.core.cpu_limits import cgroup_quota, usable_cores
from server.core.engine import Runner, Signals, Terms, self_test
from server.core.images import ImageInput, PixelArray
from server.core.modes import Mode
from server.engines import onnxruntime
from server.engines.onnxruntime import EmbeddedEngine, _session
from server.engines.repository import Repository
from server.errors import ContractError, EngineUnavailable, ManifestError, ModelNotFound, NotReady, SelfTestFailed
from tests.server.schema_3 import publish_modes, schema_3
from tests.server.tiny import SIZE, contract_of, graph, publish, write


def with_engine(repository: Path, use: Callable[[EmbeddedEngine], Awaitable[Any]], **options: Any) -> Any:
    async def go() -> Any:
        engine = EmbeddedEngine(Repository(repository), **{"threads": 2, **options})
        await engine.start()
        try:
            return await use(engine)
        finally:
            await engine.close()

    return asyncio.run(go())


def file_of(repository: Path, version: str = "1") -> Path:
    return repository / "awnet" / version / "model.onnx"


def test_answers_are_those_of_the_graph(repository: Path) -> None:
    """Batched or alone, in the order of the request."""
    images = np.random.default_rng(3).integers(0, 256, (20, 3, SIZE, SIZE), np.uint8)
    session = ort.InferenceSession(str(file_of(repository)), providers=["CPUExecutionProvider"])
    expected = session.run(["logits", "p_type", "omega"], {"image": images})

    async def use(engine: EmbeddedEngine) -> None:
        runner = await engine.open("awnet", 1)
        await runner.warm()
        together = await runner.infer([PixelArray(image) for image in images])
        one = await runner.infer([PixelArray(images[4])])
        for name, want in zip(("logits", "p_type", "omega"), expected, strict=True):
            np.testing.assert_allclose(getattr(together, name), want, atol=1e-4)
            np.testing.assert_allclose(getattr(one, name), want[4:5], atol=1e-4)
        assert engine.waiting() == 0

    with_engine(repository, use)


def threads_of_this_process() -> set[str]:
    return set(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux lists them")
@pytest.mark.parametrize(("lone_threads", "more"), [(1, 0), (2, 1), (0, 2), (9, 2)])
def test_a_lone_image_starts_no_thread_that_waits_actively_unless_it_is_told_to(
    repository: Path, lone_threads: int, more: int, begun: Callable[[], set[threading.Thread]]
) -> None:
    """A thread that waits between two images holds a core for one client; 0 is as many as there are workers."""

    async def use(engine: EmbeddedEngine) -> None:
        before = threads_of_this_process()
        runner = await engine.open("awnet", 1)
        await runner.warm()
        await self_test(runner)
        # Those that read and loaded may still be there: they are the event loop's own.
        loaded = {str(one.native_id) for one in begun() if one.name.startswith(("asyncio_", "awnet-disk"))}
        assert len(threads_of_this_process() - loaded - before) == more

    with_engine(repository, use, threads=3, lone_threads=lone_threads)


@pytest.mark.skipif(sys.platform != "linux", reason="threads of different niceness are Linux's")
def test_a_version_is_loaded_and_proven_in_the_background_on_one_thread_that_leaves_cores_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step after the other, whatever its modes; workers, and a start, are as nice as ever."""
    steps: list[tuple[str, int, int]] = []  # which, in which thread, how nice that is

    def note(step: str) -> None:
        steps.append((step, threading.get_ident(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))

    class Watched:
        def __init__(self, session: ort.InferenceSession) -> None:
            self.inner, self.get_inputs, self.get_outputs = session, session.get_inputs, session.get_outputs

        def run(self, *given: Any) -> Any:
            note("run")
            return self.inner.run(*given)

    def watched(data: bytes, threads: int) -> Watched:
        note("load")
        return Watched(_session(data, threads))

    monkeypatch.setattr(onnxruntime, "_session", watched)
    publish_modes(tmp_path, "1")
    ours = os.getpriority(os.PRIO_PROCESS, 0)

    async def use(engine: EmbeddedEngine) -> None:
        first = await engine.open("awnet", 1)
        await first.warm()
        assert {nice for _, _, nice in steps} == {ours}
        steps.clear()
        second = await engine.open("awnet", 1, leisure=lambda: True)
        await second.warm()
        await self_test(second, Terms(background=True))
        assert [step for step, _, _ in steps[:4]] == ["load", "load", "load", "run"]
        assert len({thread for _, thread, _ in steps}) == 1
        assert {nice for _, _, nice in steps} == {19}
        steps.clear()
        await second.infer([PixelArray(np.zeros((3, SIZE, SIZE), np.uint8))])
        assert {nice for _, _, nice in steps} == {ours}

    with_engine(tmp_path, use)


@pytest.mark.skipif(sys.platform != "linux", reason="threads of different niceness are Linux's")
def test_once_somebody_waits_for_it_what_is_left_of_opening_a_version_is_done_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that has begun ends as it began."""
    nices: list[int] = []
    load = onnxruntime._session

    def watched(data: bytes, threads: int) -> Any:
        nices.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return load(data, threads)

    monkeypatch.setattr(onnxruntime, "_session", watched)
    publish_modes(tmp_path, "1")
    ours = os.getpriority(os.PRIO_PROCESS, 0)

    async def use(engine: EmbeddedEngine) -> None:
        runner = await engine.open("awnet", 1, leisure=lambda: not nices)
        await runner.warm()
        assert nices == [19, ours, ours]
        await self_test(runner, Terms(background=True))

    with_engine(tmp_path, use)


@pytest.mark.skipif(sys.platform != "linux", reason="threads of different niceness are Linux's")
def test_threads_of_a_session_are_not_less_than_others_for_having_been_made_in_the_background(tmp_path: Path) -> None:
    """They inherit the niceness of their maker, and would run every lone image with it."""
    publish_modes(tmp_path, "1")
    ours = os.getpriority(os.PRIO_PROCESS, 0)

    async def use(engine: EmbeddedEngine) -> None:
        before = set(os.listdir("/proc/self/task"))
        runner = await engine.open("awnet", 1, leisure=lambda: True)
        await runner.warm()
        made = set(os.listdir("/proc/self/task")) - before
        nices = [os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in made]
        assert sorted(nices) == [*[ours] * (len(nices) - 1), 19]  # that of the background itself

    with_engine(tmp_path, use, lone_threads=2)


def test_a_session_keeps_no_second_copy_of_its_model(repository: Path) -> None:
    """The library holds the file's bytes for ever where it is not told that nobody needs them."""
    data = file_of(repository).read_bytes()
    before = sys.getrefcount(data)
    session = _session(data, 1)
    assert sys.getrefcount(data) == before
    assert session.get_modelmeta().custom_metadata_map


def test_the_model_is_named_by_what_was_loaded(repository: Path) -> None:
    """Version and hash are the file's."""

    async def use(engine: EmbeddedEngine) -> None:
        model = (await engine.open("awnet", 1)).model
        sha256 = hashlib.sha256(file_of(repository).read_bytes()).hexdigest()
        assert (model.name, model.version, model.sha256) == ("awnet", 1, sha256)

    with_engine(repository, use)


def test_versions_serve_side_by_side_and_closing_one_leaves_the_other(
    tmp_path: Path, begun: Callable[[], set[threading.Thread]]
) -> None:
    """One pool of threads for all of them, and one bound on what waits."""
    publish(tmp_path)
    publish(tmp_path, "2", seed=1)
    image = np.random.default_rng(3).integers(0, 256, (1, 3, SIZE, SIZE), np.uint8)
    expected = {
        version: ort.InferenceSession(str(file_of(tmp_path, str(version)))).run(["omega"], {"image": image})[0]
        for version in (1, 2)
    }

    async def use(engine: EmbeddedEngine) -> None:
        assert dict(await engine.catalogue()) == {"awnet": (1, 2)}
        old, new = await engine.open("awnet", 1), await engine.open("awnet", 2)
        workers = [thread for thread in begun() if thread.name.startswith("awnet-")]
        assert len(workers) == 2
        asked = [(runner, runner.infer([PixelArray(image[0])])) for runner in (old, new) for _ in range(20)]
        for (runner, _), signals in zip(asked, await asyncio.gather(*(a for _, a in asked)), strict=True):
            np.testing.assert_allclose(signals.omega, expected[runner.model.version], atol=1e-4)
        await old.close()
        np.testing.assert_allclose((await new.infer([PixelArray(image[0])])).omega, expected[2], atol=1e-4)
        with pytest.raises(EngineUnavailable):
            await old.infer([PixelArray(image[0])])
        again = await engine.open("awnet", 1)
        np.testing.assert_allclose((await again.infer([PixelArray(image[0])])).omega, expected[1], atol=1e-4)

    with_engine(tmp_path, use)


def test_an_engine_is_up_between_start_and_close(repository: Path) -> None:
    """Before, nothing can be opened."""

    async def use() -> None:
        engine = EmbeddedEngine(Repository(repository), threads=1)
        assert not engine.up()
        with pytest.raises(NotReady):
            await engine.open("awnet", 1)
        await engine.start()
        assert engine.up()
        await engine.close()
        assert not engine.up()

    asyncio.run(use())


def test_the_fingerprint_changes_with_the_repository(tmp_path: Path) -> None:
    """And only then."""
    publish(tmp_path)

    async def use(engine: EmbeddedEngine) -> None:
        before = await engine.fingerprint()
        assert await engine.fingerprint() == before
        publish(tmp_path, "2")
        assert await engine.fingerprint() != before

    with_engine(tmp_path, use)


def test_a_missing_model_is_named(repository: Path) -> None:
    """Another name, another version; and the engine goes on."""

    async def use(engine: EmbeddedEngine) -> None:
        for name, version in (("other", 1), ("awnet", 7)):
            with pytest.raises(ModelNotFound):
                await engine.open(name, version)
        await self_test(await engine.open("awnet", 1))

    with_engine(repository, use)


def load(repository: Path) -> None:
    async def use(engine: EmbeddedEngine) -> None:
        await engine.open("awnet", 1)

    with_engine(repository, use)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    """Though its manifest is right."""
    data = file_of(publish(tmp_path)).read_bytes()
    write(tmp_path / "awnet/1", data[:200])
    with pytest.raises(ContractError):
        load(tmp_path)


def test_a_file_that_is_not_the_manifest_s_is_refused(tmp_path: Path) -> None:
    """Half a download, for instance."""
    path = file_of(publish(tmp_path))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ManifestError):
        load(tmp_path)


def test_a_model_without_a_contract_is_refused(tmp_path: Path) -> None:
    """Any ONNX file can be put there; only an exported AW-Net says what its numbers mean."""
    write(tmp_path / "awnet/1", graph().SerializeToString())
    with pytest.raises(ContractError, match="export"):
        load(tmp_path)


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.output[1].name = "other"
    model.graph.node[5].output[0] = "other"


def fix_the_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def drop_omega(model: onnx.ModelProto) -> None:
    del model.graph.output[2]


@pytest.mark.parametrize("spoil", [rename_output, fix_the_batch, drop_omega])
def test_a_graph_that_breaks_its_contract_is_refused(tmp_path: Path, spoil: Callable[[onnx.ModelProto], None]) -> None:
    """The contract is compared with the tensors that are really there."""
    model = graph()
    text = json.dumps(contract_of(model))
    spoil(model)
    helper.set_model_props(model, {"awnet.contract": text})
    write(tmp_path / "awnet/1", model.SerializeToString())
    with pytest.raises(ContractError):
        load(tmp_path)


def test_fewer_labels_than_logits_are_refused(tmp_path: Path) -> None:
    """Every class has a name."""

    def change(contract: dict[str, Any]) -> None:
        contract["labels"].pop()

    with pytest.raises(ContractError):
        load(publish(tmp_path, change=change))


def test_a_contract_and_its_graph_have_the_same_modes(tmp_path: Path) -> None:
    """A mode whose output the graph lacks, or an output that is no mode's, is refused like any other tensor."""
    load(publish_modes(tmp_path / "right", "1", "auto", "robust"))
    right = contract_of(graph(branches=["logits_adv"]))
    schema_3("auto", "robust")(right)
    for branches in ([], ["logits_nat"], ["logits_adv", "logits_nat"]):
        with pytest.raises(ContractError):
            load(publish(tmp_path / "wrong", "1", lambda contract: contract.update(right), branches=branches))


class Falsified:
    """A real runner whose answers are changed on the way out."""

    def __init__(self, runner: Runner, change: Callable[[Signals], Signals]) -> None:
        self.model = runner.model
        self._runner, self._change = runner, change

    async def warm(self) -> None:
        await self._runner.warm()

    async def infer(self, images: Sequence[ImageInput], terms: Terms | None = None, mode: Mode = "auto") -> Signals:
        signals = await self._runner.infer(images, terms or Terms(), mode)
        names = ("logits", "p_type", "omega")
        return self._change(signals._replace(**{name: getattr(signals, name).copy() for name in names}))

    async def close(self) -> None:
        await self._runner.close()


def off_by_a_little(signals: Signals) -> Signals:
    signals.p_type[-1, 0] += 0.01
    return signals


def not_a_number(signals: Signals) -> Signals:
    signals.logits[0, 0] = np.nan
    return signals


def empty(signals: Signals) -> Signals:
    return signals._replace(omega=signals.omega[:0])


def only_when_alone(signals: Signals) -> Signals:
    if len(signals.logits) == 1:
        signals.omega[0, 0] += 1
    return signals


@pytest.mark.parametrize("change", [off_by_a_little, not_a_number, empty, only_when_alone])
def test_an_engine_with_wrong_numbers_fails_the_self_test(
    repository: Path, change: Callable[[Signals], Signals]
) -> None:
    """An engine that answers is not yet an engine that is right; one was seen to answer empty tensors."""

    async def use(engine: EmbeddedEngine) -> None:
        runner = await engine.open("awnet", 1)
        await self_test(runner)
        with pytest.raises(SelfTestFailed):
            await self_test(Falsified(runner, change))

    with_engine(repository, use)


def test_quotas_of_both_cgroup_versions_are_read(tmp_path: Path) -> None:
    """The tightest one on the way up counts; 'max' is none."""
    member = tmp_path / "cgroup"
    two = tmp_path / "two"
    (two / "a/b").mkdir(parents=True)
    (two / "a/cpu.max").write_text("150000 100000\n")
    (two / "a/b/cpu.max").write_text("max 100000\n")
    member.write_text("0::/a/b\n")
    assert cgroup_quota(two, member) == 1.5
    (two / "a/b/cpu.max").write_text("50000 100000\n")
    assert cgroup_quota(two, member) == 0.5

    one = tmp_path / "one"
    (one / "cpu,cpuacct/c").mkdir(parents=True)
    (one / "cpu,cpuacct/c/cpu.cfs_quota_us").write_text("300000")
    (one / "cpu,cpuacct/c/cpu.cfs_period_us").write_text("100000")
    member.write_text("4:memory:/c\n3:cpu,cpuacct:/c\n")
    assert cgroup_quota(one, member) == 3
    (one / "cpu,cpuacct/c/cpu.cfs_quota_us").write_text("-1")
    assert cgroup_quota(one, member) is None
    assert cgroup_quota(one, tmp_path / "absent") is None


def test_at_least_one_core_is_used_and_never_more_than_the_affinity_mask() -> None:
    """Inside a container the host's cores are not ours."""
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))

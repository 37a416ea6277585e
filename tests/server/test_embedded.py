"""The embedded engine: which model it takes, what it refuses, how many threads it starts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from server.embedded import EmbeddedEngine, cgroup_quota, find, usable_cores
from server.engine import Model, Signals, self_test
from server.errors import ContractError, ModelNotFound, SelfTestFailed
from server.images import Picture, Pixels
from tests.server.tiny import SIZE, contract_of, graph, publish


def with_engine(repository: Path, use: Callable[[EmbeddedEngine, Model], Awaitable[Any]], **options: Any) -> Any:
    async def go() -> Any:
        engine = EmbeddedEngine(repository, **{"threads": 2, **options})
        model = await engine.start()
        try:
            return await use(engine, model)
        finally:
            await engine.close()

    return asyncio.run(go())


def test_answers_are_those_of_the_graph(repository: Path) -> None:
    """Batched or alone, in the order of the request."""
    images = np.random.default_rng(3).integers(0, 256, (20, 3, SIZE, SIZE), np.uint8)
    session = ort.InferenceSession(str(find(repository, "awnet", "1")), providers=["CPUExecutionProvider"])
    expected = session.run(["logits", "p_type", "omega"], {"image": images})

    async def use(engine: EmbeddedEngine, model: Model) -> None:
        together = await engine.infer([Pixels(image) for image in images])
        one = await engine.infer([Pixels(images[4])])
        for name, want in zip(("logits", "p_type", "omega"), expected, strict=True):
            np.testing.assert_allclose(getattr(together, name), want, atol=1e-4)
            np.testing.assert_allclose(getattr(one, name), want[4:5], atol=1e-4)
        assert engine.waiting() == 0

    with_engine(repository, use)


def test_the_model_is_named_by_what_was_loaded(repository: Path) -> None:
    """Version and hash are the file's."""
    import hashlib

    async def use(engine: EmbeddedEngine, model: Model) -> None:
        data = find(repository, "awnet", "latest").read_bytes()
        assert (model.name, model.version, model.sha256) == ("awnet", "1", hashlib.sha256(data).hexdigest())

    with_engine(repository, use)


def test_the_highest_version_is_the_latest(tmp_path: Path) -> None:
    """By number, not by name; folders that are no version or hold no model do not count."""
    for version in ("2", "10", "9"):
        publish(tmp_path, version)
    (tmp_path / "awnet/11").mkdir()
    (tmp_path / "awnet/12.partial").mkdir()
    assert find(tmp_path, "awnet", "latest").parent.name == "10"
    assert find(tmp_path, "awnet", "2").parent.name == "2"


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    """An empty repository, another name, another version."""
    publish(tmp_path)
    for arguments in ((tmp_path / "none", "awnet", "latest"), (tmp_path, "other", "latest"), (tmp_path, "awnet", "7")):
        with pytest.raises(ModelNotFound):
            find(*arguments)


def load(repository: Path) -> None:
    async def nothing(engine: EmbeddedEngine, model: Model) -> None:
        return None

    with_engine(repository, nothing)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    """Half a download, for instance."""
    path = publish(tmp_path) / "awnet/1/model.onnx"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ContractError):
        load(tmp_path)


def test_a_model_without_a_contract_is_refused(tmp_path: Path) -> None:
    """Any ONNX file can be put there; only an exported AW-Net says what its numbers mean."""
    (tmp_path / "awnet/1").mkdir(parents=True)
    (tmp_path / "awnet/1/model.onnx").write_bytes(graph().SerializeToString())
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
    (tmp_path / "awnet/1").mkdir(parents=True)
    (tmp_path / "awnet/1/model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ContractError):
        load(tmp_path)


def test_fewer_labels_than_logits_are_refused(tmp_path: Path) -> None:
    """Every class has a name."""

    def change(contract: dict[str, Any]) -> None:
        contract["labels"].pop()

    with pytest.raises(ContractError):
        load(publish(tmp_path, change=change))


class Falsified:
    """A real engine whose answers are changed on the way out."""

    def __init__(self, engine: EmbeddedEngine, change: Callable[[Signals], None]) -> None:
        self._engine, self._change = engine, change

    async def start(self) -> Model:
        return await self._engine.start()

    async def infer(self, pictures: list[Picture]) -> Signals:
        signals = await self._engine.infer(pictures)
        for name in ("logits", "p_type", "omega"):
            object.__setattr__(signals, name, getattr(signals, name).copy())
        self._change(signals)
        return signals

    def waiting(self) -> int:
        return self._engine.waiting()

    async def close(self) -> None:
        await self._engine.close()


def off_by_a_little(signals: Signals) -> None:
    signals.p_type[-1, 0] += 0.01


def not_a_number(signals: Signals) -> None:
    signals.logits[0, 0] = np.nan


def empty(signals: Signals) -> None:
    object.__setattr__(signals, "omega", signals.omega[:0])


def only_when_alone(signals: Signals) -> None:
    if len(signals.logits) == 1:
        signals.omega[0, 0] += 1


@pytest.mark.parametrize("change", [off_by_a_little, not_a_number, empty, only_when_alone])
def test_an_engine_with_wrong_numbers_fails_the_self_test(repository: Path, change: Callable[[Signals], None]) -> None:
    """An engine that answers is not yet an engine that is right; one was seen to answer empty tensors."""

    async def use(engine: EmbeddedEngine, model: Model) -> None:
        await self_test(engine, model)
        with pytest.raises(SelfTestFailed):
            await self_test(Falsified(engine, change), model)

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
    import os

    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))

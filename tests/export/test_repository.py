"""The model repository: whole versions, written once, or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.graph import graph
from export.repository.layout import CONFIG_FILE, MANIFEST_FILE, METADATA_KEY, MODEL_FILE, versions
from export.repository.repository import RepositoryError, publish
from server.engines.repository import Repository
from training.networks.awnet import AWNet, AWNetConfig


def make_model(contract: str, width: int = 4, modes: Collection[str] = ()) -> bytes:
    model = graph.build(AWNet(AWNetConfig(width=width)).eval(), modes=modes)
    model.metadata_props.add(key=METADATA_KEY, value=contract)
    return bytes(model.SerializeToString())


AWKWARD = '{"label":"caf\u00e9 \\"quoted\\" back\\\\slash","n":1.5}'


@pytest.fixture(scope="module")
def model() -> bytes:
    return make_model(AWKWARD)


@pytest.fixture(scope="module")
def second() -> bytes:
    return make_model('{"second":true}')


def read_config(home: Path) -> Any:
    """config.pbtxt as Triton's own protobuf reads it."""
    return text_format.Parse((home / CONFIG_FILE).read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_versions_count_up(tmp_path: Path, model: bytes, second: bytes) -> None:
    """Without --version the next number is taken, also after a gap; the file holds exactly what was published."""
    first = publish(model, tmp_path)
    assert first == tmp_path / "awnet" / "1"
    assert (first / MODEL_FILE).read_bytes() == model
    assert publish(second, tmp_path, version=7).name == "7"
    assert publish(second, tmp_path).name == "8"
    assert versions(tmp_path / "awnet") == [1, 7, 8]
    assert sorted(p.name for p in (tmp_path / "awnet").iterdir()) == ["1", "7", "8", CONFIG_FILE]


def test_a_version_is_never_overwritten(tmp_path: Path, model: bytes, second: bytes) -> None:
    """Publishing over an existing version, even an unfinished one, is refused and changes no byte."""
    publish(model, tmp_path)
    (tmp_path / "awnet" / "2").mkdir()
    before = snapshot(tmp_path)
    for version in (1, 2):
        with pytest.raises(RepositoryError, match="never overwritten"):
            publish(second, tmp_path, version=version)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 200])
def test_a_name_cannot_leave_the_repository(tmp_path: Path, model: bytes, name: str) -> None:
    """Only plain names become folders."""
    with pytest.raises(RepositoryError, match="no model name"):
        publish(model, tmp_path / "repository", name=name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_version_stops_no_export(tmp_path: Path, model: bytes) -> None:
    """The server passes over `012` and over digits of other scripts; so does every export after them."""
    publish(model, tmp_path)
    for name in ("012", "\uff11\uff13", "1000000000000000000", "notes"):
        shutil.copytree(tmp_path / "awnet/1", tmp_path / "awnet" / name)
    assert versions(tmp_path / "awnet") == [1]
    assert publish(model, tmp_path).name == "2"


@pytest.mark.parametrize("version", [0, -1, 10**18])
def test_versions_start_at_one(tmp_path: Path, model: bytes, version: int) -> None:
    """Triton and the server read versions as positive numbers."""
    with pytest.raises(RepositoryError, match="from 1 on"):
        publish(model, tmp_path, version=version)


def test_other_tensors_need_another_name(tmp_path: Path, model: bytes) -> None:
    """One config.pbtxt serves all versions, so a model of other shapes is refused with a way out."""
    publish(model, tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(RepositoryError, match=r"version 1 of awnet .* another --name"):
        publish(make_model("{}", width=8), tmp_path)
    assert snapshot(tmp_path) == before


def test_outputs_of_further_modes_are_told_once_every_version_has_them(tmp_path: Path, model: bytes) -> None:
    """Triton loads no version that lacks an output of config.pbtxt, and one config.pbtxt serves them all."""

    def outputs() -> list[str]:
        return [output.name for output in read_config(tmp_path / "awnet").output]

    publish(model, tmp_path)
    publish(make_model("{}", modes=graph.MODES), tmp_path)
    assert outputs() == ["logits", "p_type", "omega"]
    shutil.rmtree(tmp_path / "awnet/1")
    publish(make_model("{}", modes=graph.MODES), tmp_path)
    assert outputs() == ["logits", "p_type", "omega", "logits_adv", "logits_nat"]
    publish(make_model("{}", modes=["natural"]), tmp_path)
    assert outputs() == ["logits", "p_type", "omega", "logits_nat"]


def test_a_model_without_a_contract_is_refused(tmp_path: Path) -> None:
    """A server could not read what it means."""
    bare = graph.build(AWNet(AWNetConfig(width=4)).eval()).SerializeToString()
    with pytest.raises(RepositoryError, match=METADATA_KEY):
        publish(bare, tmp_path)


def test_config_says_what_triton_needs(tmp_path: Path, model: bytes) -> None:
    """Tensors as in the model, one CPU instance, dynamic batches without a wait, warm-up, the two newest versions."""
    publish(model, tmp_path)
    config = read_config(tmp_path / "awnet")
    assert (config.name, config.backend) == ("awnet", "onnxruntime")
    assert config.max_batch_size >= 32
    assert [(t.name, model_config_pb2.DataType.Name(t.data_type), list(t.dims)) for t in config.input] == [
        ("image", "TYPE_UINT8", [3, 32, 32])
    ]
    assert [(t.name, model_config_pb2.DataType.Name(t.data_type), list(t.dims)) for t in config.output] == [
        ("logits", "TYPE_FP32", [10]),
        ("p_type", "TYPE_FP32", [2]),
        ("omega", "TYPE_FP32", [240]),
    ]
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert config.version_policy.latest.num_versions == 2
    assert int(config.parameters["intra_op_thread_count"].string_value) >= 1
    assert [(w.batch_size, w.inputs["image"].random_data) for w in config.model_warmup] == [(1, True), (8, True)]


def test_config_avoids_what_stalls_triton(tmp_path: Path, model: bytes) -> None:
    """No queue policy, no preferred batch sizes, no graph optimisation level (2 means off)."""
    publish(model, tmp_path)
    config = read_config(tmp_path / "awnet")
    assert not config.dynamic_batching.HasField("default_queue_policy")
    assert not config.dynamic_batching.preferred_batch_size
    assert not config.HasField("optimization")


def test_config_carries_contract_and_hash_of_every_version(tmp_path: Path, model: bytes, second: bytes) -> None:
    """What a server reads from Triton is, byte for byte, what is inside each model."""
    publish(model, tmp_path)
    publish(second, tmp_path)
    parameters = read_config(tmp_path / "awnet").parameters
    assert parameters["contract.1"].string_value == AWKWARD
    assert parameters["contract.2"].string_value == '{"second":true}'
    for version, data in (("1", model), ("2", second)):
        assert parameters[f"sha256.{version}"].string_value == hashlib.sha256(data).hexdigest()
        inside = onnx.load_from_string(data).metadata_props
        assert parameters[f"contract.{version}"].string_value == {p.key: p.value for p in inside}[METADATA_KEY]


def test_every_version_has_a_manifest_of_its_own(tmp_path: Path, model: bytes, second: bytes) -> None:
    """Name, number, hash and size: what the server holds the files against before it reads them."""
    publish(model, tmp_path)
    publish(second, tmp_path, name="other", version=7)
    for folder, data in ((tmp_path / "awnet/1", model), (tmp_path / "other/7", second)):
        assert sorted(p.name for p in folder.iterdir()) == [MANIFEST_FILE, MODEL_FILE]
        assert json.loads((folder / MANIFEST_FILE).read_text()) == {
            "schema_version": 1,
            "model": folder.parent.name,
            "version": int(folder.name),
            "files": {MODEL_FILE: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}},
        }


def test_what_is_published_is_what_the_server_reads(tmp_path: Path, model: bytes) -> None:
    """Both packages write down the form of a manifest; neither imports the other."""
    publish(model, tmp_path)
    assert Repository(tmp_path).catalogue() == {"awnet": (1,)}
    assert Repository(tmp_path).read("awnet", 1).data == model


def publish_and_die(model: bytes, repository: Path, step: int) -> bool:
    """Publish in a child process that is killed at its `step`-th touch of the disk; True where it was killed."""
    child = os.fork()
    if child == 0:
        touched = 0

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal touched
            if event in ("open", "os.mkdir", "os.rename", "os.listdir", "os.scandir"):
                touched += 1
                if touched == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            publish(model, repository)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def steps(model: bytes, repository: Path) -> Iterator[int]:
    """1, 2, ... until a publication survives."""
    step = 1
    while publish_and_die(model, repository, step):
        yield step
        step += 1


@pytest.mark.process
def test_a_kill_at_any_step_leaves_the_old_state(tmp_path: Path, model: bytes, second: bytes) -> None:
    """Whenever the exporter dies, version 1 and its description stand, version 2 is absent or whole, and the
    next export puts everything right."""
    home = tmp_path / "awnet"
    publish(model, tmp_path)
    seen = 0
    for step in steps(second, tmp_path):
        seen = step
        assert (home / "1" / MODEL_FILE).read_bytes() == model
        parameters = read_config(home).parameters
        assert parameters["contract.1"].string_value == AWKWARD
        if (home / "2").exists():
            assert (home / "2" / MODEL_FILE).read_bytes() == second
            assert parameters["contract.2"].string_value == '{"second":true}'
            assert json.loads((home / "2" / MANIFEST_FILE).read_text())["version"] == 2
            shutil.rmtree(home / "2")
    assert seen >= 7  # staging folder, model, manifest, config, two renames at least
    assert sorted(p.name for p in home.iterdir()) == ["1", "2", CONFIG_FILE]
    assert (home / "2" / MODEL_FILE).read_bytes() == second


def test_exports_at_the_same_time_get_versions_of_their_own(tmp_path: Path, model: bytes) -> None:
    """Concurrent exporters wait for each other; nothing is lost and every version is described."""
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: publish(model, tmp_path), range(4)))
    assert sorted(folder.name for folder in folders) == ["1", "2", "3", "4"]
    assert {f"sha256.{v}" for v in (1, 2, 3, 4)} <= set(read_config(tmp_path / "awnet").parameters)

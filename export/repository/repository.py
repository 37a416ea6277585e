"""The model repository: finished versions only, each written once.

    <repository>/<name>/config.pbtxt              how Triton serves it; the contract and hash of every version
    <repository>/<name>/<version>/model.onnx
    <repository>/<name>/<version>/manifest.json   name, number and hash of the version; the server reads it first

A publication writes and syncs everything under a temporary name first, then replaces `config.pbtxt`, then renames
the version folder into place. A kill at any moment leaves what was there before, at worst with a `config.pbtxt`
that also describes a version not there yet; the next publication sweeps up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from .layout import CONFIG_FILE, METADATA_KEY, MODEL_FILE, NAME, VERSION, quoted, versions
from .publication import add_version

TRITON_TYPES = {TensorProto.UINT8: "TYPE_UINT8", TensorProto.FLOAT: "TYPE_FP32"}
MAX_BATCH = 64
THREADS = 2


class RepositoryError(RuntimeError):
    """The version cannot be published; nothing was changed."""


@dataclass(frozen=True)
class Published:
    """What `config.pbtxt` says about one version: its contract, its hash, and its tensors (name, type, dims)."""

    contract: str
    sha256: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]


def publish(model: bytes, repository: Path, *, name: str = "awnet", version: int | None = None) -> Path:
    """Write `model` as a new version (the next number where None) and return its folder.

    Raises:
        RepositoryError: a bad name or version, the version exists, or its tensors are not those of the versions
            beside it (one config.pbtxt serves them all).
    """
    check_free(repository, name=name, version=version)
    home = repository / name

    def config(number: int) -> bytes:
        check_free(repository, name=name, version=number)  # again: another exporter may have been here
        described = {v: describe((home / str(v) / MODEL_FILE).read_bytes()) for v in versions(home)}
        return triton_config(name, described | {number: describe(model)}).encode()

    return add_version(model, home, config, version)


def check_free(repository: Path, *, name: str, version: int | None) -> None:
    """RepositoryError where `publish` would refuse this name or version; touches nothing."""
    if not NAME.fullmatch(name):
        raise RepositoryError(f"{name!r} is no model name: letters, digits, '.', '_' and '-' only")
    if version is not None and not VERSION.fullmatch(str(version)):
        raise RepositoryError(f"a version is a number from 1 on, of at most 18 digits, not {version}")
    target = repository / name / str(version)
    if version is not None and target.exists():
        raise RepositoryError(f"{target} exists, and a version is never overwritten: pick another --version")


def describe(model: bytes) -> Published:
    """Read contract, hash and tensors of a serialised model; RepositoryError where it carries no contract."""
    proto = onnx.load_from_string(model)
    contract = {p.key: p.value for p in proto.metadata_props}.get(METADATA_KEY)
    if contract is None:
        raise RepositoryError(f"the model carries no {METADATA_KEY}")
    return Published(
        contract, hashlib.sha256(model).hexdigest(), _tensors(proto.graph.input), _tensors(proto.graph.output)
    )


def triton_config(name: str, described: Mapping[int, Published]) -> str:
    """`config.pbtxt` for Triton's onnxruntime backend; docs/decisions says why each line is as it is.

    Its outputs are those that every version has: Triton loads no version that lacks one of them, and a version with
    more modes answers the others.
    """
    newest = described[max(described)]
    for version, other in described.items():
        of_both = {name for name, _, _ in newest.outputs} & {name for name, _, _ in other.outputs}
        mine, theirs = ({t for t in published.outputs if t[0] in of_both} for published in (newest, other))
        if other.inputs != newest.inputs or mine != theirs:
            raise RepositoryError(
                f"version {version} of {name} has tensors unlike version {max(described)}, and one {CONFIG_FILE} "
                f"serves both: remove the folder of version {version}, or export under another --name"
            )
    outputs = [tensor for tensor in newest.outputs if all(tensor in other.outputs for other in described.values())]
    (image,) = newest.inputs
    lines = [
        "# Written by python -m export.onnx; the next export writes it again.",
        f"name: {quoted(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH}",
        f"input [\n  {_tensor_block(image)}\n]",
        "output [\n  " + ",\n  ".join(_tensor_block(t) for t in outputs) + "\n]",
        "# Batches whatever waits already and never waits for more; no queue policy (any stalls Triton).",
        "dynamic_batching { max_queue_delay_microseconds: 0 }",
        "# One instance (two is Triton's default on a CPU, each with a pool as large as the machine).",
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
        "# Threads of that instance: the cores that Triton may use.",
        f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{THREADS}" }} }}',
        "version_policy { latest { num_versions: 2 } }",
        *(_warmup(image, batch) for batch in (1, 8)),
    ]
    for version, published in sorted(described.items()):
        for key, value in (("contract", published.contract), ("sha256", published.sha256)):
            lines.append(f'parameters {{ key: "{key}.{version}" value {{ string_value: {quoted(value)} }} }}')
    return "\n".join(lines) + "\n"


def _tensors(infos: object) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """(name, Triton type, dims without the batch) of graph inputs or outputs."""
    found = []
    for info in infos:  # type: ignore[attr-defined]
        kind = info.type.tensor_type
        dims = tuple(dim.dim_value for dim in kind.shape.dim[1:])
        if kind.elem_type not in TRITON_TYPES or 0 in dims or kind.shape.dim[0].dim_value:
            raise RepositoryError(f"tensor {info.name} needs a known type, fixed dims and a free batch axis")
        found.append((info.name, TRITON_TYPES[kind.elem_type], dims))
    return tuple(found)


def _tensor_block(tensor: tuple[str, str, tuple[int, ...]]) -> str:
    name, kind, dims = tensor
    return f"{{ name: {quoted(name)} data_type: {kind} dims: {list(dims)} }}"


def _warmup(image: tuple[str, str, tuple[int, ...]], batch: int) -> str:
    name, kind, dims = image
    return (
        f'model_warmup [ {{ name: "batch of {batch}" batch_size: {batch} inputs {{ key: {quoted(name)} '
        f"value {{ data_type: {kind} dims: {list(dims)} random_data: true }} }} }} ]"
    )

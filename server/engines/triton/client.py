"""gRPC calls to one Triton, and what its answers and errors mean.

Triton alone loads and unloads models: the model-control calls are never used, and may be forbidden there.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from ...core import contract
from ...core.contract import Contract
from ...core.engine import Model, Outputs, outputs_of
from ...core.modes import LOGITS, Mode
from ...core.version import parse_version
from ...errors import ContractError, DeadlineExceeded, EngineFault, EngineUnavailable, ModelNotFound
from .balancer import Key
from .runner import NOTHING, Description

ASK_SECONDS = 2.0  # longest wait for an answer about models

# In the order in which they are tried: gRPC's status, a part of its text, and what it means. Nothing was executed
# where Triton refuses or nobody listens; after any other end of a connection nobody knows.
Meaning = Literal["unreachable", "absent", "stopping", "busy", "late", "broken", "failed"]
_MEANINGS: tuple[tuple[str, str, Meaning], ...] = (
    ("UNAVAILABLE", "failed to connect to all addresses", "unreachable"),
    ("NOT_FOUND", "is not found", "absent"),
    ("UNAVAILABLE", "is not found", "absent"),
    ("UNAVAILABLE", "not at ready state", "absent"),
    ("UNAVAILABLE", "is not ready", "absent"),
    ("UNAVAILABLE", "no available versions", "absent"),
    ("UNAVAILABLE", "server is stopping", "stopping"),
    ("UNAVAILABLE", "maximum queue size", "busy"),
    ("DEADLINE_EXCEEDED", "", "late"),
    ("UNAVAILABLE", "", "broken"),
)


class Ready(NamedTuple):
    """A version that a Triton has ready."""

    name: str
    version: int


class CallError(Exception):
    """An error of gRPC or Triton, classified by `meaning`."""

    def __init__(self, error: InferenceServerException) -> None:
        # The status is written 'StatusCode.UNAVAILABLE'.
        code, text = str(error.status() or "UNKNOWN").rpartition(".")[2], str(error.message())
        super().__init__(f"{code.lower()}: {text}")
        found = (meaning for status, part, meaning in _MEANINGS if status == code and part in text)
        self.meaning: Meaning = next(found, "failed")


class TritonClient:
    """Calls to one Triton.

    Args:
        url: `host:port` of its gRPC service.
        tls: speak TLS; `ca` is a PEM file of the authority to trust, gRPC's own list where None.
        metadata: sent with every call.
    """

    def __init__(self, url: str, *, tls: bool, ca: Path | None, metadata: Mapping[str, str]) -> None:
        self._url, self._tls, self._ca = url, tls, ca
        self._metadata = dict(metadata)
        self._parse = functools.lru_cache(8)(contract.parse)  # 90 kB of JSON, read again at every proof

    @functools.cached_property
    def _client(self) -> InferenceServerClient:
        """The channel, made by the first call: it belongs to the event loop that runs then."""
        return InferenceServerClient(
            self._url,
            ssl=self._tls,
            root_certificates=str(self._ca) if self._ca else None,
            channel_args=[
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
                # A Triton that comes back is found at the next probe: gRPC alone would wait for up to two minutes.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 1000),
                ("grpc.max_reconnect_backoff_ms", 500),
                ("grpc.use_local_subchannel_pool", 1),
                # Addresses are settings; nothing else in the environment may lead these calls elsewhere.
                ("grpc.enable_http_proxy", 0),
            ],
        )

    async def close(self) -> None:
        """Close the channel, if there is one."""
        if "_client" in self.__dict__:
            await self._client.close()

    async def live(self, seconds: float) -> None:
        """A sign of life. Raises CallError."""
        await self._ask("is_server_live", seconds=seconds)

    async def ready(self) -> set[Ready]:
        """Versions that can be asked. Raises CallError.

        Read from the statistics, which list what is ready; the repository index is a model-control call.
        """
        statistics = await self._ask("get_inference_statistics")
        found = ((model.name, parse_version(model.version)) for model in statistics.model_stats)
        return {Ready(name, version) for name, version in found if version is not None}

    async def sha256(self, ready: Ready) -> str:
        """The hash that the configuration names for a version; '' where it is no AW-Net. Raises CallError."""
        answer = await self._ask("get_model_config", ready.name, str(ready.version))
        return _promises(answer.config, ready)[1]

    async def describe(self, ready: Ready) -> Description:
        """Contract, hash and limits of one version, its tensors compared with the contract.

        Raises:
            ModelNotFound, ContractError.
            EngineUnavailable, DeadlineExceeded: no answer.
        """
        named = (ready.name, str(ready.version))
        try:
            config = (await self._ask("get_model_config", *named)).config
            tensors = await self._ask("get_model_metadata", *named)
        except CallError as failed:
            if failed.meaning == "absent":
                raise ModelNotFound(f"Triton has no version {ready.version} of {ready.name} ready") from None
            if failed.meaning == "late":
                raise DeadlineExceeded("Triton did not answer in time") from None
            raise EngineUnavailable(f"Triton answered {failed}") from None
        text, sha256 = _promises(config, ready)
        key = Key(*ready, sha256)
        if not sha256:
            raise ContractError(f"Triton's configuration of {key} lacks contract or hash: export.onnx writes both")
        promise = await asyncio.to_thread(self._parse, text)
        if config.max_batch_size < 1:
            raise ContractError(f"Triton's configuration of {key} allows no batches")
        found = {t.name: (t.datatype, list(t.shape)) for t in (*tensors.inputs, *tensors.outputs)}
        # One configuration is of all versions: it leaves out what one of them lacks, and with it the mode.
        offered = tuple(mode for mode in promise.modes if mode == "auto" or LOGITS[mode] in found)
        promise = replace(promise, modes=offered)
        size = promise.preprocessing.size
        wanted = {
            "image": ("UINT8", [-1, 3, size, size]),
            **{name: ("FP32", [-1, columns]) for name, columns in promise.outputs.items()},
        }
        if found != wanted:
            raise ContractError(f"Triton's tensors of {key} are {found}; the contract asks for {wanted}")
        return Description(key, Model(key.name, key.version, sha256, promise), config.max_batch_size)

    async def infer(
        self, model: Model, mode: Mode, images: NDArray[np.uint8], seconds: float, metadata: Mapping[str, str] = NOTHING
    ) -> Outputs:
        """Outputs of images [N,3,S,S], asked for with `metadata` beside that of every call.

        Raises CallError; EngineFault where the answer is not whole.
        """
        image = InferInput("image", list(images.shape), "UINT8")
        image.set_data_from_numpy(images)
        answer = await self._ask(
            "infer",
            model.name,
            [image],
            model_version=str(model.version),
            outputs=[InferRequestedOutput(name) for name in outputs_of(mode)],
            seconds=seconds,
            metadata=metadata,
        )
        return _outputs(answer, len(images), model.contract, outputs_of(mode))

    async def on_connection_lost(self, lost: Callable[[], None]) -> None:
        """Call `lost` whenever the connection goes, for ever: what answers after that may be another process."""
        channel = self._client._channel  # the client library offers no other way
        state = channel.get_state(try_to_connect=True)
        while True:
            await channel.wait_for_state_change(state)
            before, state = state, channel.get_state()
            if before is grpc.ChannelConnectivity.READY:
                lost()

    async def _ask(
        self,
        call: str,
        *arguments: object,
        seconds: float = ASK_SECONDS,
        metadata: Mapping[str, str] = NOTHING,
        **options: object,
    ) -> Any:
        headers = {**metadata, **self._metadata} if metadata else self._metadata
        try:
            return await getattr(self._client, call)(
                *arguments, headers=headers, client_timeout=max(seconds, 0.001), **options
            )
        except InferenceServerException as error:
            raise CallError(error) from None


def _outputs(answer: Any, rows: int, promise: Contract, names: Sequence[str]) -> Outputs:
    """The three tensors, their shapes and types checked: Triton can answer 'OK' with empty ones. Raises EngineFault."""
    found = []
    for name in names:
        try:
            array = answer.as_numpy(name)
        except ValueError:  # data that does not fill its shape
            array = None
        if array is None or array.shape != (rows, promise.outputs[name]) or array.dtype != np.float32:
            raise EngineFault(f"the engine answered without a whole {name}")
        found.append(array)
    logits, p_type, omega = found
    return logits, p_type, omega


def _promises(config: Any, ready: Ready) -> tuple[str, str]:
    """Contract and hash of a version in Triton's model configuration; two empty texts where one is missing."""
    found = [config.parameters[f"{what}.{ready.version}"].string_value for what in ("contract", "sha256")]
    return (found[0], found[1]) if all(found) else ("", "")

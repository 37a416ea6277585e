"""The Open Inference Protocol v2 on tensors: metadata, and inference requests to responses.

`rest` translates it to JSON over HTTP, `grpc_front` to protobuf over gRPC. Everything that is accepted, refused or
computed is decided here, so that the two cannot differ.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import __version__, errors
from ..access.caller import Caller
from ..core.engine import Model, Terms
from ..core.images import EncodedImage, ImageInput, PixelArray
from ..core.version import parse_version
from ..errors import (
    AWNetError,
    ImageError,
    ImageRejected,
    ImageTooLarge,
    InvalidTensor,
    NotReady,
    RequestError,
    TooManyImages,
    UnknownModel,
    UnsupportedMedia,
)
from ..service.outcome import Outcome
from ..service.service import Service
from .outputs import MAPPED, ON_REQUEST, SIGNALS, check, is_told, maps_scores, output_of, specifications, unnamed
from .tensors import Output, Scalar, Tensor, elements, pixels, quoted

NAME = "awnet-server"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "schedule_policy")
PLATFORM = "onnxruntime_onnx"

IMAGE, IMAGE_BYTES = "image", "image_bytes"
MAX_TENSORS = 16  # inputs or outputs that a request may name; more is an attempt to keep the parser busy
INLINE_BYTES = 64 << 10  # a larger message is read on another thread than the event loop's
BASE64 = "base64"  # the value of an input's parameter `content_type`

# Parameters that ask for extensions which are not served: to ignore one would give another answer than was asked for.
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
_SHARED_MEMORY = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One requested output."""

    name: str
    parameters: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InferRequest:
    """An inference request, not yet checked. Without `version` the server chooses; no `outputs` means `unnamed`.

    `large`: its tensors are read on another thread than the event loop's.
    """

    model: str
    version: int | None
    inputs: Sequence[Tensor]
    outputs: Sequence[Wanted] = ()
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    large: bool = False


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """What came out: `outputs` in the order of the request."""

    model: Model
    outputs: list[Output]
    parameters: dict[str, Scalar]


async def infer(service: Service, request: InferRequest, max_seconds: float = math.inf) -> InferAnswer:
    """Answer one request.

    Args:
        service: see `server.service`.
        request: what is asked.
        max_seconds: the client stops waiting after this long, as the transport says (the deadline of a gRPC call).

    Raises:
        Unauthorized, Forbidden: an output is none for this caller.
        UnknownModel, NotReady: no such model or version, or not yet.
        UnknownMode: the version has no such mode.
        InvalidTensor, TooManyImages, ImageTooLarge: the request cannot be answered as it is.
        ImageRejected: a policy withholds one of its images; the detail names all that it withholds.
        Unavailable: as `engine.Runner.infer`.
    """
    terms = _terms(service, request.parameters, max_seconds)
    mode = request.parameters.get("mode")
    if mode is not None and not isinstance(mode, str):
        raise InvalidTensor("parameter 'mode' must be a text")
    names = _wanted(request.outputs) or unnamed(service.caller)
    check(names, service.caller)
    with service.lease(request.model, request.version, mode) as lease:
        mapped = [name for name in names if name in MAPPED]
        if mapped and not maps_scores(lease.model):
            raise InvalidTensor(f"{quoted(lease.model.name)} has no output {mapped[0]!r}: its contract maps no scores")
        given = (service, request.inputs, lease.model.contract.preprocessing.size)
        images = await asyncio.to_thread(_images, *given) if request.large else _images(*given)
        try:
            outcome = await service.run(lease, images, terms)
        except (ImageError, UnsupportedMedia) as error:
            raise _blamed(error) from error
    rejected = outcome.withheld("reject")
    if rejected:
        raise _rejection(outcome, rejected, request.inputs[0].name)
    parameters = _about(outcome, service.settings.prior, service.caller)
    return InferAnswer(outcome.model, [output_of(name, outcome) for name in names], parameters)


def most_values(service: Service) -> int:
    """Numbers that the images of a request can need, of the model that takes the largest. Raises NotReady."""
    open_versions = service.models.loaded().values()
    sizes = [model.contract.preprocessing.size for versions in open_versions for model in versions.values()]
    if not sizes:
        raise NotReady("the model is not ready")
    return service.settings.max_images * 3 * max(sizes) ** 2


def status_of(error: AWNetError) -> int:
    """The HTTP status of `error` in this protocol: what cannot be answered is a bad request, and 422 is a rejection."""
    status = errors.status_of(error)
    return 400 if status == 422 and not isinstance(error, ImageRejected) else status


def server_metadata() -> dict[str, Any]:
    """Name, version and the extensions that are served."""
    return {"name": NAME, "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(service: Service, name: str, version: int | None) -> dict[str, Any]:
    """What a model takes and gives. Of the two inputs a request has exactly one. Raises UnknownModel, NotReady."""
    model = find(service, name, version)
    return {
        "name": name,
        "versions": [str(number) for number in sorted(service.models.loaded()[name])],
        "platform": PLATFORM,
        "inputs": [{"name": n, "datatype": datatype, "shape": shape} for n, datatype, shape in _inputs(model)],
        "outputs": [
            {"name": n, "datatype": datatype, "shape": shape}
            for n, datatype, shape in specifications(model, service.caller)
        ],
    }


def model_config(service: Service, name: str, version: int | None) -> dict[str, Any]:
    """The same as Triton's model configuration. `max_batch_size` 0: shapes are whole. Raises UnknownModel, NotReady."""
    model = find(service, name, version)

    def kind(datatype: str) -> str:
        return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"

    return {
        "name": name,
        "platform": PLATFORM,
        "max_batch_size": 0,
        "input": [
            {"name": n, "data_type": kind(datatype), "dims": shape, "optional": True}
            for n, datatype, shape in _inputs(model)
        ],
        "output": [
            {"name": n, "data_type": kind(datatype), "dims": shape}
            for n, datatype, shape in specifications(model, service.caller)
        ],
    }


def model_ready(service: Service, name: str, version: int | None) -> bool:
    """Whether a request to it would be answered, and the server is not leaving. Raises UnknownModel."""
    try:
        find(service, name, version)
    except NotReady:
        return False
    return service.ready


def version_of(text: str | None, name: str) -> int | None:
    """The version that a path or a message names; None where it names none. Raises UnknownModel for what is none."""
    if not text:
        return None
    version = parse_version(text)
    if version is None:
        raise UnknownModel(f"there is no version {quoted(text)} of {quoted(name)} here")
    return version


def find(service: Service, name: str, version: int | None) -> Model:
    """The loaded model that `version`, or None, means; takes no part in a canary. Raises UnknownModel, NotReady."""
    versions = service.models.loaded().get(name)
    if versions is None:
        raise UnknownModel(f"there is no model {quoted(name)} here")
    if version is None or not versions:
        return service.models.latest(name)
    if version not in versions:
        raise UnknownModel(f"there is no version {quoted(version)} of {quoted(name)} here")
    return versions[version]


def _inputs(model: Model) -> list[tuple[str, str, list[int]]]:
    """(name, datatype, shape) of the inputs; -1 is the number of images."""
    size = model.contract.preprocessing.size
    return [(IMAGE, "UINT8", [-1, 3, size, size]), (IMAGE_BYTES, "BYTES", [-1])]


def _terms(service: Service, parameters: Mapping[str, Scalar], max_seconds: float) -> Terms:
    for name in _SEQUENCE:
        if parameters.get(name):
            raise InvalidTensor(f"parameter {name!r}: the sequence extension is not served here")
    microseconds = _unsigned(parameters, "timeout")
    seconds = min(max_seconds, microseconds / 1e6 if microseconds else math.inf)
    return service.terms(seconds, "low" if _unsigned(parameters, "priority") >= 2 else "normal")


def _unsigned(parameters: Mapping[str, Scalar], name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or value < 0:
        raise InvalidTensor(f"parameter {name!r} must be an integer of at least 0")
    return value


def _wanted(outputs: Sequence[Wanted]) -> tuple[str, ...]:
    known = SIGNALS + ON_REQUEST
    names: list[str] = []
    for output in outputs:
        if output.name not in known:
            raise InvalidTensor(f"there is no output {quoted(output.name)}; there are {', '.join(known)}")
        if output.name in names:
            raise InvalidTensor(f"the output {output.name!r} is requested twice")
        if output.parameters.get("classification"):
            raise InvalidTensor(
                f"output {output.name!r}: the classification extension is not served here; ask for the output 'label'"
            )
        _no_shared_memory(f"output {output.name!r}", output.parameters)
        names.append(output.name)
    return tuple(names)


def _no_shared_memory(where: str, parameters: Mapping[str, Scalar]) -> None:
    if any(name in parameters for name in _SHARED_MEMORY):
        raise InvalidTensor(f"{where}: the shared memory extensions are not served here")


def _images(service: Service, inputs: Sequence[Tensor], size: int) -> Sequence[ImageInput]:
    """The images of a request."""
    if len(inputs) != 1:
        raise InvalidTensor(f"{len(inputs)} inputs; a request has exactly one of {IMAGE!r} and {IMAGE_BYTES!r}")
    tensor = inputs[0]
    _no_shared_memory(f"input {quoted(tensor.name)}", tensor.parameters)
    if tensor.name == IMAGE:
        _check(tensor, "UINT8", (3, size, size), service.settings.max_images)
        return [PixelArray(image) for image in pixels(tensor)]
    if tensor.name == IMAGE_BYTES:
        _check(tensor, "BYTES", (), service.settings.max_images)
        return [EncodedImage(file, service.limits, index) for index, file in enumerate(_files(tensor))]
    raise InvalidTensor(f"there is no input {quoted(tensor.name)}; there are {IMAGE!r} and {IMAGE_BYTES!r}")


def _check(tensor: Tensor, datatype: str, inner: tuple[int, ...], max_images: int) -> None:
    """Refuse another datatype, another shape, no image, too many images; before the data is looked at."""
    if tensor.datatype != datatype:
        raise InvalidTensor(f"input {tensor.name!r} has datatype {quoted(tensor.datatype)}, expected {datatype!r}")
    count = tensor.shape[0] if tensor.shape else 0
    if tensor.shape[1:] != inner or count < 1:
        expected = ", ".join(["N", *map(str, inner)])
        given = quoted("[" + ", ".join(map(str, tensor.shape[:8])) + ("]" if len(tensor.shape) <= 8 else ", ...]"))
        raise InvalidTensor(f"input {tensor.name!r} has shape {given}, expected [{expected}] with N at least 1")
    if count > max_images:
        raise TooManyImages(f"more than {max_images} images in one request")


def _files(tensor: Tensor) -> list[bytes]:
    encoded = tensor.parameters.get("content_type") == BASE64
    files: list[bytes] = []
    for index, element in enumerate(elements(tensor)):
        if encoded:
            try:
                files.append(base64.b64decode(element, validate=True))
            except (binascii.Error, ValueError):
                raise InvalidTensor(f"input {tensor.name!r}, element {index}: not base64") from None
        elif isinstance(element, str):
            raise InvalidTensor(
                f"input {tensor.name!r}: an image is not text. Send binary tensor data, "
                f"or base64 with the input's parameter content_type={BASE64!r}"
            )
        else:
            files.append(element)
    return files


def _blamed(error: RequestError) -> AWNetError:
    """`error` of one image as a fault of the tensor that it is in."""
    detail = error.detail if error.image is None else f"input {IMAGE_BYTES!r}, element {error.image}: {error.detail}"
    kind = ImageTooLarge if isinstance(error, ImageTooLarge) else InvalidTensor
    return kind(detail, image=error.image)


def _rejection(outcome: Outcome, rejected: Sequence[int], name: str) -> ImageRejected:
    elements = f"element{'s'[: len(rejected) > 1]} {', '.join(map(str, rejected))}"
    return ImageRejected(f"input {name!r}, {elements}: rejected, {outcome.reasons(rejected)}", image=rejected[0])


def _about(outcome: Outcome, prior: float, caller: Caller) -> dict[str, Scalar]:
    """The response parameters: what the verdicts were measured by, and which file gave them in which mode.

    A parameter holds for all images, so the thresholds are left out where images were measured by different ones; also
    for a caller who is not told them.
    """
    judgements = outcome.judgements
    thresholds = judgements[0].applied.thresholds
    found: dict[str, Scalar] = {}
    if is_told("thresholds", caller):
        if all(judged.applied.thresholds == thresholds for judged in judgements):
            found["threshold_suspicious"] = thresholds.suspicious.score
            found["threshold_adversarial"] = thresholds.adversarial.score
        found["target_fpr_suspicious"] = thresholds.suspicious.fpr
        found["target_fpr_adversarial"] = thresholds.adversarial.fpr
        if maps_scores(outcome.model):
            found["prior"] = prior
    found["calibrated"] = all(judged.calibrated for judged in judgements)
    if outcome.repeats is not None:
        found["similar_queries"] = max(repeats.similar for repeats in outcome.repeats)
        found["repeated"] = any(repeats.repeated for repeats in outcome.repeats)
    if outcome.signals.cached:
        found["cached"] = True
    found["mode"] = outcome.mode
    found["sha256"] = outcome.model.sha256
    return found

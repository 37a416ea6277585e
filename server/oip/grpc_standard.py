"""gRPC's own services as messages: health (grpc.health.v1) and reflection (v1 and v1alpha).

Their packages need another major version of protobuf than tritonclient, so the few messages are written here, after the
.proto files of github.com/grpc/grpc-proto.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tritonclient.grpc import service_pb2

HEALTH = "grpc.health.v1.Health"
REFLECTIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
INFERENCE = "inference.GRPCInferenceService"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
NOT_FOUND, UNIMPLEMENTED = 5, 12  # codes of an ErrorResponse

_Field = descriptor_pb2.FieldDescriptorProto
_TEXT, _BYTES, _NUMBER, _ENUM, _MESSAGE = (
    _Field.TYPE_STRING,
    _Field.TYPE_BYTES,
    _Field.TYPE_INT32,
    _Field.TYPE_ENUM,
    _Field.TYPE_MESSAGE,
)


def _message(file: Any, name: str, *fields: tuple[Any, ...], choice: str | None = None) -> None:
    """Add a message; a field is (name, number, type, type's name, whether it is repeated), the last two if need be.

    `choice`: the oneof that fields from number 3 on belong to.
    """
    added = file.message_type.add(name=name)
    if choice is not None:
        added.oneof_decl.add(name=choice)
    for given in fields:
        field, number, kind, of, repeated = (*given, None, False)[:5]
        made = added.field.add(name=field, number=number, type=kind)
        made.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
        if of is not None:
            made.type_name = f".{file.package}.{of}"
        if choice is not None and number >= 3:
            made.oneof_index = 0


def _method(file: Any, service: str, name: str, given: str, answered: str, streams: tuple[bool, bool]) -> None:
    found = next((one for one in file.service if one.name == service), None)
    method = (found or file.service.add(name=service)).method.add(name=name)
    method.input_type, method.output_type = f".{file.package}.{given}", f".{file.package}.{answered}"
    method.client_streaming, method.server_streaming = streams


def _health() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="grpc/health/v1/health.proto", package="grpc.health.v1", syntax="proto3"
    )
    _message(file, "HealthCheckRequest", ("service", 1, _TEXT))
    _message(file, "HealthCheckResponse", ("status", 1, _ENUM, "HealthCheckResponse.ServingStatus"))
    status = file.message_type[1].enum_type.add(name="ServingStatus")
    for number, name in enumerate(("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")):
        status.value.add(name=name, number=number)
    for name, streams in (("Check", False), ("Watch", True)):
        _method(file, "Health", name, "HealthCheckRequest", "HealthCheckResponse", (False, streams))
    return file


def _reflection(version: str) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name=f"grpc/reflection/{version}/reflection.proto", package=f"grpc.reflection.{version}", syntax="proto3"
    )
    _message(file, "ExtensionRequest", ("containing_type", 1, _TEXT), ("extension_number", 2, _NUMBER))
    _message(file, "FileDescriptorResponse", ("file_descriptor_proto", 1, _BYTES, None, True))
    numbers = ("extension_number", 2, _NUMBER, None, True)
    _message(file, "ExtensionNumberResponse", ("base_type_name", 1, _TEXT), numbers)
    _message(file, "ServiceResponse", ("name", 1, _TEXT))
    _message(file, "ListServiceResponse", ("service", 1, _MESSAGE, "ServiceResponse", True))
    _message(file, "ErrorResponse", ("error_code", 1, _NUMBER), ("error_message", 2, _TEXT))
    _message(
        file,
        "ServerReflectionRequest",
        ("host", 1, _TEXT),
        ("file_by_filename", 3, _TEXT),
        ("file_containing_symbol", 4, _TEXT),
        ("file_containing_extension", 5, _MESSAGE, "ExtensionRequest"),
        ("all_extension_numbers_of_type", 6, _TEXT),
        ("list_services", 7, _TEXT),
        choice="message_request",
    )
    _message(
        file,
        "ServerReflectionResponse",
        ("valid_host", 1, _TEXT),
        ("original_request", 2, _MESSAGE, "ServerReflectionRequest"),
        ("file_descriptor_response", 4, _MESSAGE, "FileDescriptorResponse"),
        ("all_extension_numbers_response", 5, _MESSAGE, "ExtensionNumberResponse"),
        ("list_services_response", 6, _MESSAGE, "ListServiceResponse"),
        ("error_response", 7, _MESSAGE, "ErrorResponse"),
        choice="message_response",
    )
    request, response = "ServerReflectionRequest", "ServerReflectionResponse"
    _method(file, "ServerReflection", "ServerReflectionInfo", request, response, (True, True))
    return file


def _inference() -> list[descriptor_pb2.FileDescriptorProto]:
    """The protocol's file and what it imports, the imported first."""
    found: list[descriptor_pb2.FileDescriptorProto] = []

    def add(file: Any) -> None:
        for imported in file.dependencies:
            add(imported)
        copy = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(copy)
        if copy.name not in (other.name for other in found):
            found.append(copy)

    add(service_pb2.DESCRIPTOR)
    return found


FILES = {file.name: file for file in (*_inference(), _health(), _reflection("v1"), _reflection("v1alpha"))}
_POOL = descriptor_pool.DescriptorPool()  # of its own: a process may have the packages' files as well
for _file in FILES.values():
    _POOL.Add(_file)


def message_class(name: str) -> Any:
    """The class of a message of these services, by its full name."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


HealthCheckRequest = message_class("grpc.health.v1.HealthCheckRequest")
HealthCheckResponse = message_class("grpc.health.v1.HealthCheckResponse")


def reflect(request: Any) -> Any:
    """The answer to a ServerReflectionRequest of either version: services, or the files that define a name."""
    package = request.DESCRIPTOR.file.package
    answer = message_class(f"{package}.ServerReflectionResponse")(valid_host=request.host, original_request=request)
    asked = request.WhichOneof("message_request")
    if asked == "list_services":
        for served in (INFERENCE, HEALTH, *REFLECTIONS):
            answer.list_services_response.service.add(name=served)
        return answer
    name: str | None = None
    if asked == "file_by_filename":
        name = request.file_by_filename
    elif asked == "file_containing_symbol":
        name = _file_of(request.file_containing_symbol)
    if name is None:
        answer.error_response.error_code = UNIMPLEMENTED
        answer.error_response.error_message = "there are no extensions here"
    elif name not in FILES:
        answer.error_response.error_code = NOT_FOUND
        answer.error_response.error_message = "there is no such name here"
    else:
        answer.file_descriptor_response.file_descriptor_proto.extend(_with_imports(name))
    return answer


def _file_of(symbol: str) -> str:
    """The file that defines a message, an enum, a service or one of its methods; empty where none does."""
    try:
        return str(_POOL.FindFileContainingSymbol(symbol).name)
    except KeyError:
        pass
    service, _, method = symbol.rpartition(".")
    try:
        found = _POOL.FindServiceByName(service)
    except KeyError:
        return ""
    return str(found.file.name) if method in found.methods_by_name else ""


def _with_imports(name: str) -> list[bytes]:
    """The file and those that it imports, serialized."""
    wanted, found = [name], {}
    while wanted:
        file = FILES[wanted.pop()]
        if file.name not in found:
            found[file.name] = file.SerializeToString()
            wanted += file.dependency
    return list(found.values())

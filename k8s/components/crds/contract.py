"""Messages of the contracts as parts of a schema: names and values as `troupe_orchestrator.custom_resources.messages` reads
and writes them, descriptions from the comments of the .proto files.
"""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc
from troupe_orchestrator.custom_resources.messages import TIMESTAMP, enum_words, is_map

PROTO: Final = Path(__file__).parents[3] / "proto"
Schema = dict[str, Any]
_UNSIGNED: Final = {FieldDescriptor.CPPTYPE_UINT32: 2**32 - 1, FieldDescriptor.CPPTYPE_UINT64: None}
_INTEGERS: Final = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64, *_UNSIGNED}
_FLOATS: Final = {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}
# Of FileDescriptorProto and DescriptorProto: which field a number in a path is.
_MESSAGES, _FIELDS = 4, 2


def fields_schema(
    message: Descriptor,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    more: Mapping[str, Schema] | None = None,
) -> dict[str, Schema]:
    """Properties for the fields of a message.

    Args:
        only: names of the fields that are wanted; None is all.
        without: names of fields that are not.
        more: what is said of a field besides, by its full JSON path: samples, sampling.temperature.
    """
    return dict(_properties(message, only, frozenset(without), more or {}, ""))


def _properties(
    message: Descriptor, only: Collection[str] | None, without: Collection[str], more: Mapping[str, Schema], path: str
) -> Iterator[tuple[str, Schema]]:
    for field in message.fields:
        if (only is None or field.name in only) and field.name not in without:
            place = f"{path}.{field.json_name}".lstrip(".")
            comment = comments().get(field.full_name, "")
            schema = {"description": comment} if comment else {}
            yield field.json_name, schema | _field(field, more, place) | more.get(place, {})


def _field(field: FieldDescriptor, more: Mapping[str, Schema], path: str) -> Schema:
    if is_map(field):
        return {
            "type": "object",
            "additionalProperties": _single(field.message_type.fields_by_name["value"], more, path),
        }
    single = _single(field, more, path)
    return {"type": "array", "items": single} if field.is_repeated else single


def _single(field: FieldDescriptor, more: Mapping[str, Schema], path: str) -> Schema:
    if field.message_type is not None:
        return _message(field.message_type, more, path)
    if field.enum_type is not None:
        return {"type": "string", "enum": list(enum_words(field.enum_type))}
    if field.cpp_type in _INTEGERS:
        bounds = {"minimum": 0} if field.cpp_type in _UNSIGNED else {}
        most = _UNSIGNED.get(field.cpp_type)
        return {"type": "integer", "format": "int64", **bounds, **({} if most is None else {"maximum": most})}
    if field.cpp_type in _FLOATS:
        return {"type": "number"}
    return {"type": "boolean" if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL else "string"}


def _message(message: Descriptor, more: Mapping[str, Schema], path: str) -> Schema:
    if message.full_name == TIMESTAMP:
        return {"type": "string", "format": "date-time"}
    schema: Schema = {"type": "object"}
    properties = dict(_properties(message, None, (), more, path))
    if properties:
        schema["properties"] = properties
    choices = [
        {
            "rule": f"[{', '.join(f'has(self.{field.json_name})' for field in oneof.fields)}].filter(x, x).size() == 1",
            "message": f"needs one of {', '.join(field.json_name for field in oneof.fields)}",
        }
        for oneof in message.oneofs
        # A scalar that may be unset is a choice of one.
        if len(oneof.fields) > 1
    ]
    return {**schema, **({"x-kubernetes-validations": choices} if choices else {})}


@cache
def comments() -> Mapping[str, str]:
    """Full name of each field to what stands above it in the contracts."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "contracts.binpb"
        files = [f"troupe/v1/{each.name}" for each in sorted((PROTO / "troupe" / "v1").glob("*.proto"))]
        status = protoc.main(["", f"-I{PROTO}", f"-I{_wellknown()}", "--include_source_info", f"-o{out}", *files])
        if status:
            raise RuntimeError("protoc could not read the contracts")
        described = FileDescriptorSet.FromString(out.read_bytes())
    return {name: text for file in described.file for name, text in _of_file(file)}


def _of_file(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    for location in file.source_code_info.location:
        path, text = list(location.path), " ".join(location.leading_comments.split())
        if text and len(path) == 4 and (path[0], path[2]) == (_MESSAGES, _FIELDS):
            message = file.message_type[path[1]]
            yield f"{file.package}.{message.name}.{message.field[path[3]].name}", text


def _wellknown() -> Path:
    return Path(protoc.__file__).parent / "_proto"

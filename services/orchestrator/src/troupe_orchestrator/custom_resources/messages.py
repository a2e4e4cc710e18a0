"""Specs as messages of the contracts, and messages as parts of a status. Pure.

One rule for both ways, which the schema of the objects is made by as well (`k8s/components/crds/generate.py`): a field has
its JSON name, a value of an enum is a word without the enum's own name (EVAL_MODE_SINGLE_AGENT is SingleAgent), an integer
is a number whatever its width, a time is RFC 3339.
"""

import math
import re
from collections.abc import Collection, Mapping
from datetime import UTC
from typing import Any, TypeVar

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from troupe_contracts.errors import InvalidArgument

Parsed = TypeVar("Parsed", bound=Message)
Descriptor = Any
"""Of a message, a field or an enum: which classes these are depends on the implementation of protobuf."""

_WORD_START = re.compile(r"(?<!^)(?=[A-Z])")
TIMESTAMP = Timestamp.DESCRIPTOR.full_name


def enum_words(enum: Descriptor) -> dict[str, str]:
    """Word to full name of each value but the unspecified one."""
    prefix = f"{_WORD_START.sub('_', enum.name).upper()}_"
    return {
        "".join(part.capitalize() for part in value.name.removeprefix(prefix).split("_")): value.name
        for value in enum.values
        if value.number
    }


def message_of(value: Mapping[str, Any], message: Parsed) -> Parsed:
    """Fill a message from a part of a spec.

    Raises:
        InvalidArgument: a field is unknown or has no such value.
    """
    try:
        ParseDict(_named(value, message.DESCRIPTOR), message)
    except ParseError as error:
        raise InvalidArgument("spec", str(error)) from error
    return message


def fields_of(message: Message, names: Collection[str] | None = None) -> dict[str, Any]:
    """A message as a part of a status.

    Args:
        names: of the fields that are wanted; None is all. Scalars are there whatever they are, others where they are set.
    """
    wanted = message.DESCRIPTOR.fields if names is None else [message.DESCRIPTOR.fields_by_name[name] for name in names]
    found: dict[str, Any] = {}
    for field in wanted:
        value = getattr(message, field.name)
        if is_map(field):
            if value:
                found[field.json_name] = {str(key): _single(field, each) for key, each in value.items()}
        elif field.is_repeated:
            if value:
                found[field.json_name] = [_single(field, each) for each in value]
        elif field.has_presence and not message.HasField(field.name):
            continue
        else:
            found[field.json_name] = _single(field, value)
    # JSON has no number for what is none.
    return {name: value for name, value in found.items() if not isinstance(value, float) or math.isfinite(value)}


def is_map(field: Descriptor) -> bool:
    """Whether a field is a map, which looks like a repeated message."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def rfc3339(time: Timestamp) -> str:
    """To the second, as Kubernetes writes it."""
    return time.ToDatetime(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _single(field: Descriptor, value: Any) -> Any:
    if isinstance(value, Timestamp):
        return rfc3339(value)
    if isinstance(value, Message):
        return fields_of(value)
    if field.enum_type is not None:
        names = {name: word for word, name in enum_words(field.enum_type).items()}
        return names.get(field.enum_type.values_by_number[value].name, "")
    return value


def _named(value: Mapping[str, Any], descriptor: Descriptor) -> dict[str, Any]:
    """The same with the contract's names for words."""
    named: dict[str, Any] = {}
    fields = {field.json_name: field for field in descriptor.fields}
    for key, given in value.items():
        field = fields.get(key)
        if field is not None and field.enum_type is not None:
            words = enum_words(field.enum_type)
            if given not in words:
                raise InvalidArgument(key, f"{given!r} is none of {', '.join(words)}")
            named[key] = words[given]
        elif field is not None and field.message_type is not None and isinstance(given, Mapping) and not is_map(field):
            named[key] = _named(given, field.message_type)
        else:
            named[key] = given
    return named

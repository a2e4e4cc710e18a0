"""Requests from descriptors: valid, nearly valid, nonsense, and bytes that are no message. Pure, and the same for a seed.

Half of them begin as a good request, of which a few fields are changed; every other one of these keeps what says whom and
what it is for, so it comes past the first checks. The others are made from nothing. One in eight is then damaged as bytes.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_DEPTH = 4
_ADDRESS = frozenset(
    {"fence", "policy_id", "replica_id", "update_id", "run_id", "parent_run_id", "execution_id", "job_id"}
)
_HUGE = 2**20
_TEXTS = (
    *(
        "",
        "a",
        "run",
        "start",
        "p1",
        "0",
        "-1",
        "null",
        "{}",
        "[]",
        "\0",
        "a\0b",
        "\x1b[2J",
        "\ufeff",
        "日本語 🙂",
        "' or 1=1 --",
    ),
    *("../../etc/passwd", "/dev/null", "file:///etc/passwd", "127.0.0.1:1", "no-such-host.invalid:50051", "http://x"),
    *("<|im_end|>", "<code>", "%s%n{0}{x}", "\\boxed{", "print(1)", "import os", "def f(:", "1/0", "x" * 300, "\u202e"),
    *("[" * 5_000, "steps: 1\nstages: [{train: both, steps: 1}]\ndataset: {train: nowhere.jsonl}\n", "a: &a [*a, *a]"),
)
_BYTES = (
    *(
        b"",
        b"\0",
        b"\xff\xfe",
        b'{"question": "1+1?", "answer": "#### 2"}\n',
        b"not json\n",
        b"\x1f\x8b\x08torn",
        b"[" * 5_000,
    ),
    b'{"id": "a", "task_type": "math", "question": "q", "answer": "1"}\n',
)
_FLOATS = (0.0, 1.0, -1.0, 0.5, 1e-320, 1e308, 3.4e38, float("nan"), float("inf"), float("-inf"))
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def payload(chance: random.Random, kind: Descriptor, good: Sequence[Message]) -> bytes:
    """One request as bytes; `good` are requests of that kind to begin with."""
    if good and chance.random() < 0.5:
        message: Any = type(good[0])()
        begun = chance.choice(good)
        message.CopyFrom(begun)
        for _ in range(chance.randint(1, 3)):
            _change(chance, message)
        if chance.random() < 0.5:
            _address(message, begun)
    else:
        message = GetMessageClass(kind)()
        _fill(chance, message, 0)
    written: bytes = message.SerializePartialToString()
    return chance.choice(_DAMAGES)(chance, written) if chance.random() < 0.125 else written


def _address(message: Any, begun: Any) -> None:
    """Whom and what a request is for, as in the good one."""
    for field in begun.DESCRIPTOR.fields:
        if field.name in _ADDRESS:
            message.ClearField(field.name)
            message.MergeFrom(type(begun)(**{field.name: getattr(begun, field.name)}))
        elif field.message_type is not None and not field.is_repeated and message.HasField(field.name):
            _address(getattr(message, field.name), getattr(begun, field.name))


def _change(chance: random.Random, message: Any) -> None:
    """Another value, or none, for one field somewhere in a message."""
    field = chance.choice(message.DESCRIPTOR.fields) if message.DESCRIPTOR.fields else None
    if field is None:
        return
    deeper = field.message_type is not None and not field.is_repeated and message.HasField(field.name)
    if deeper and chance.random() < 0.8:
        _change(chance, getattr(message, field.name))
    elif (
        field.message_type is not None and field.is_repeated and getattr(message, field.name) and chance.random() < 0.7
    ):
        _change_element(chance, getattr(message, field.name))
    elif chance.random() < 0.3:
        message.ClearField(field.name)
    else:
        message.ClearField(field.name)
        _set(chance, message, field, 0)


def _change_element(chance: random.Random, elements: Any) -> None:
    element = chance.choice(list(elements.values()) if hasattr(elements, "values") else list(elements))
    if isinstance(element, Message):
        _change(chance, element)


def _fill(chance: random.Random, message: Any, depth: int) -> None:
    density = chance.choice((0.1, 0.5, 0.9))
    for field in message.DESCRIPTOR.fields:
        if chance.random() < density and not (field.message_type is not None and depth >= _DEPTH):
            _set(chance, message, field, depth)


def _set(chance: random.Random, message: Any, field: FieldDescriptor, depth: int) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entries = getattr(message, field.name)
        value = field.message_type.fields_by_name["value"]
        for _ in range(chance.randint(0, 3)):
            key = _scalar(chance, field.message_type.fields_by_name["key"])
            if value.message_type is None:
                entries[key] = _scalar(chance, value)
            else:
                _fill(chance, entries[key], depth + 1)
    elif field.is_repeated:
        elements = getattr(message, field.name)
        many = chance.random() < 0.02 and field.message_type is None
        for _ in range(2_000 if many else chance.choice((0, 1, 1, 2, 5))):
            if field.message_type is not None:
                _fill(chance, elements.add(), depth + 1)
            else:
                elements.append(_scalar(chance, field, small=many))
    elif field.message_type is not None:
        getattr(message, field.name).SetInParent()
        _fill(chance, getattr(message, field.name), depth + 1)
    else:
        setattr(message, field.name, _scalar(chance, field))


def _scalar(chance: random.Random, field: FieldDescriptor, small: bool = False) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            huge = chance.random() < 0.005 and not small
            return chance.randbytes(_HUGE) if huge else chance.choice((*_BYTES, chance.randbytes(32)))
        case FieldDescriptor.CPPTYPE_STRING:
            huge = chance.random() < 0.005 and not small
            return (
                "x" * _HUGE if huge else chance.choice((*_TEXTS[:8], f"id{chance.randint(0, 9)}") if small else _TEXTS)
            )
        case FieldDescriptor.CPPTYPE_BOOL:
            return chance.random() < 0.5
        case FieldDescriptor.CPPTYPE_ENUM:
            known = [value.number for value in field.enum_type.values]
            return chance.choice((*known, *known, 999, -1, 2**31 - 1))
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return chance.choice((*_FLOATS[:-3], chance.uniform(-2, 2)) if small else (*_FLOATS, chance.uniform(-2, 2)))
        case kind:
            low, high = _RANGES[kind]
            return chance.choice((0, 1, 2, 3, max(low, -1), low, high, high - 1, high // 2, chance.randint(0, 1000)))


def _cut(chance: random.Random, written: bytes) -> bytes:
    return written[: chance.randint(0, len(written))]


def _flipped(chance: random.Random, written: bytes) -> bytes:
    damaged = bytearray(written)
    for _ in range(chance.randint(1, 8)):
        if damaged:
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    return bytes(damaged)


def _not_utf8(chance: random.Random, written: bytes) -> bytes:
    """A text of bytes that are none, in one of the first fields."""
    return written + bytes([chance.randint(1, 9) << 3 | 2, 3]) + b"\xff\xfe\xfd"


def _unknown_field(chance: random.Random, written: bytes) -> bytes:
    return written + b"\xfa\xff\x01" + bytes([4]) + chance.randbytes(4)


def _too_long(chance: random.Random, written: bytes) -> bytes:
    """A length that goes far beyond the end."""
    return written + bytes([chance.randint(1, 9) << 3 | 2]) + b"\xff\xff\xff\xff\x07"


def _deep(chance: random.Random, written: bytes) -> bytes:
    """The same field within itself, a hundred times and more."""
    inner = b""
    for _ in range(chance.choice((90, 200, 1_000))):
        length = len(inner)
        head = bytes([length]) if length < 128 else bytes([length & 0x7F | 0x80, length >> 7 & 0x7F])
        inner = bytes([chance.choice((1, 2, 3)) << 3 | 2]) + head + inner if length < 2**14 else inner
    return written + inner


def _groups(chance: random.Random, written: bytes) -> bytes:
    return written + b"\x0b" * chance.randint(1, 200)


def _noise(chance: random.Random, written: bytes) -> bytes:
    return chance.randbytes(chance.randint(0, 200)) + struct.pack("<Q", chance.getrandbits(64))


_DAMAGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _cut,
    _flipped,
    _not_utf8,
    _unknown_field,
    _too_long,
    _deep,
    _groups,
    _noise,
)

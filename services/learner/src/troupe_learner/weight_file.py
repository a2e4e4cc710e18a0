"""Named tensors in one safetensors file, written and read as a stream, without torch.

The writer holds one tensor at a time, so a model that is gathered bucket by bucket is never whole in memory; the front
uses the reader for manifests and chunks. Layout (safetensors 0.4): u64 little-endian header size, JSON header, bytes.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BYTES_PER_VALUE: Final[Mapping[str, int]] = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "U8": 1}
_LENGTH: Final = struct.Struct("<Q")
# The format's own limit on headers; a larger number means that this is no such file.
_MAX_HEADER_BYTES: Final = 100_000_000
_READ_BYTES: Final = 1 << 20


class BadWeightFile(ValueError):
    """The file is not safetensors, or what is written differs from what was declared."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and safetensors type of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def byte_size(self) -> int:
        return math.prod(self.shape) * BYTES_PER_VALUE[self.dtype]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, at `start` bytes from the beginning of the file."""

    spec: TensorSpec
    start: int


def write_tensors(path: Path, specs: Sequence[TensorSpec], tensors: Iterable[tuple[str, memoryview]]) -> None:
    """Writes and fsyncs the file; `tensors` yields the bytes of each spec, in that order.

    Raises:
        BadWeightFile: another name, order or size than declared.
        OSError: disk full, and the like; the caller removes what was begun.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        end = offset + spec.byte_size
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(_LENGTH.pack(len(text)) + text)
        written = 0
        for spec, (name, view) in zip(specs, tensors, strict=True):
            if name != spec.name or view.nbytes != spec.byte_size:
                raise BadWeightFile(f"{name} has {view.nbytes} bytes where {spec} was declared")
            file.write(view)
            written += view.nbytes
        if written != offset:
            raise BadWeightFile(f"{written} bytes written, {offset} declared")
        file.flush()
        os.fsync(file.fileno())


def stored_tensors(path: Path) -> list[StoredTensor]:
    """What the file holds, in file order.

    Raises:
        BadWeightFile: it is not a safetensors file.
    """
    with path.open("rb") as file:
        prefix = file.read(_LENGTH.size)
        size = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else 0
        if not 2 <= size <= _MAX_HEADER_BYTES:
            raise BadWeightFile(f"{path} is not a safetensors file: its header would have {size} bytes")
        try:
            header = json.loads(file.read(size))
        except ValueError as error:
            raise BadWeightFile(f"{path} is not a safetensors file: {error}") from error
    begin = _LENGTH.size + size
    found = [
        StoredTensor(TensorSpec(name, tuple(entry["shape"]), entry["dtype"]), begin + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    return sorted(found, key=lambda each: each.start)


def sha256_of(path: Path, start: int = 0, size: int | None = None) -> bytes:
    """SHA-256 of `size` bytes from `start`, or of the rest of the file."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        left = path.stat().st_size - start if size is None else size
        while left > 0 and (piece := file.read(min(_READ_BYTES, left))):
            hasher.update(piece)
            left -= len(piece)
    return hasher.digest()

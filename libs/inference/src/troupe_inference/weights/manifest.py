"""What a set of weights consists of, checked against the model that is loaded before anything is pulled."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from troupe.v1 import policy_pb2
from troupe_contracts.errors import InvalidArgument

from troupe_inference import wire
from troupe_inference.engines.tensors import DTYPES
from troupe_inference.model_folder import TensorShape
from troupe_inference.transcript import Version

_SHA256_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class ManifestTensor:
    """One tensor as it is announced."""

    name: str
    spec: TensorShape
    sha256: bytes
    byte_size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked manifest: the tensors are exactly those of the model that is loaded."""

    version: Version
    tensors: tuple[ManifestTensor, ...]

    @property
    def byte_size(self) -> int:
        return sum(tensor.byte_size for tensor in self.tensors)


def read_manifest(
    manifest: policy_pb2.WeightManifest,
    *,
    policy_id: str,
    shapes: Mapping[str, tuple[int, ...]],
    tied_embeddings: bool,
) -> Manifest:
    """The manifest, if it fits the model.

    Args:
        shapes: of the tensors of the model that is loaded, by name.

    Raises:
        InvalidArgument: it is malformed, or describes another model.
    """
    if manifest.policy_id != policy_id:
        raise InvalidArgument(
            "manifest.policy_id", f"is {manifest.policy_id!r}, this replica serves policy {policy_id!r}"
        )
    if manifest.tied_embeddings != tied_embeddings:
        ours, theirs = ("tied" if flag else "untied" for flag in (tied_embeddings, manifest.tied_embeddings))
        raise InvalidArgument(
            "manifest.tied_embeddings", f"says {theirs}, the embeddings of the model that is loaded are {ours}"
        )
    tensors = tuple(_tensor(tensor, f"manifest.tensors[{index}]") for index, tensor in enumerate(manifest.tensors))
    _check_names([tensor.name for tensor in tensors], shapes)
    for tensor in tensors:
        if tensor.spec.shape != shapes[tensor.name]:
            raise InvalidArgument(
                "manifest.tensors",
                f"{tensor.name} has shape {list(tensor.spec.shape)}, the model that is loaded has "
                f"{list(shapes[tensor.name])}",
            )
    return Manifest(wire.version_from_proto(manifest.version, "manifest.version"), tensors)


def _tensor(tensor: policy_pb2.TensorSpec, field: str) -> ManifestTensor:
    if tensor.dtype not in DTYPES:
        raise InvalidArgument(f"{field}.dtype", f"is {tensor.dtype!r}; known: {', '.join(DTYPES)}")
    if len(tensor.sha256) != _SHA256_BYTES:
        raise InvalidArgument(f"{field}.sha256", f"has {len(tensor.sha256)} bytes, a SHA-256 has {_SHA256_BYTES}")
    shape = tuple(tensor.shape)
    byte_size = math.prod(shape) * DTYPES[tensor.dtype][0]
    if tensor.byte_size != byte_size:
        raise InvalidArgument(
            f"{field}.byte_size",
            f"is {tensor.byte_size}, {tensor.name} of shape {list(shape)} in {tensor.dtype} has {byte_size}",
        )
    return ManifestTensor(tensor.name, TensorShape(shape, tensor.dtype), tensor.sha256, byte_size)


def _check_names(names: list[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    missing = sorted(shapes.keys() - set(names))
    unknown = sorted(set(names) - shapes.keys())
    for what, found in (("lists twice", twice), ("lacks", missing), ("has unknown", unknown)):
        if found:
            raise InvalidArgument(
                "manifest.tensors",
                f"{what} {', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}: "
                "it must list the tensors of the model that is loaded, each once",
            )

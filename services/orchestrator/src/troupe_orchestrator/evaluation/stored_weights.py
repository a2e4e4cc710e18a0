"""Weights in a folder, as an update of engines needs them: names, shapes and the SHA-256 of every tensor.

The orchestrator reads the bytes once to name them, off the event loop; the replicas pull them from the folder themselves
and check them against these names.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import fsspec
from troupe.v1 import common_pb2, policy_pb2

_PIECE_BYTES = 1 << 22
_MAX_HEADER_BYTES = 100 << 20
"""As in safetensors itself; of a model's config too."""
_OUTPUT_PROJECTION = "lm_head.weight"


class StoredWeightsError(RuntimeError):
    """A folder whose weights cannot be used."""


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """What a folder holds, and where replicas find it."""

    manifest: policy_pb2.WeightManifest
    source: policy_pb2.WeightSource


def read_stored_weights(uri: str, policy_id: str, version: common_pb2.PolicyVersion | None) -> StoredWeights:
    """The weights of a checkpoint's or a model's folder. Slow: reads all of them.

    Args:
        uri: the folder, as an fsspec URI; a learner's checkpoint keeps its model in `model/`.
        version: that the weights are known by; None names them after their content.

    Raises:
        StoredWeightsError: it is no such folder, or cannot be read.
    """
    try:
        system, folder = fsspec.core.url_to_fs(uri)
        folder = folder.rstrip("/")
        inner = f"{folder}/model"
        folder, uri = (inner, f"{uri.rstrip('/')}/model") if system.isdir(inner) else (folder, uri)
        files = sorted(system.glob(f"{folder}/*.safetensors"))
        if not files:
            raise StoredWeightsError(f"{uri} holds no *.safetensors: name the folder of a checkpoint or a model")
        config = _config(system, f"{folder}/config.json")
        tied = bool(config.get("tie_word_embeddings", False))
        tensors = [tensor for file in files for tensor in _tensors(system, file)]
    except (OSError, ImportError, ValueError, KeyError, TypeError) as error:
        raise StoredWeightsError(f"the weights in {uri} cannot be read: {type(error).__name__}: {error}") from error
    tensors = [tensor for tensor in tensors if not (tied and tensor.name == _OUTPUT_PROJECTION)]
    manifest = policy_pb2.WeightManifest(
        policy_id=policy_id,
        version=version or _named_by_content(tensors),
        tensors=tensors,
        tied_embeddings=tied,
    )
    return StoredWeights(manifest, policy_pb2.WeightSource(store_uri=uri))


def _config(system: Any, path: str) -> Any:
    size = _checked_size(system, path)
    if size is not None and size > _MAX_HEADER_BYTES:
        raise ValueError(f"{path} has {size} bytes, the maximum is {_MAX_HEADER_BYTES}: it is no model's config")
    return json.loads(system.cat_file(path))


def _checked_size(system: Any, path: str) -> int | None:
    """Bytes of a file, where its store tells. A pipe or a device, which may have no end, is refused before it is opened."""
    found: dict[str, Any] = system.info(path)
    if found["type"] != "file":
        raise ValueError(f"{path} is no regular file")
    size: int | None = found["size"]
    return size


def _tensors(system: Any, path: str) -> Iterator[policy_pb2.TensorSpec]:
    """The tensors of one file. The format: a length, a JSON header, the bytes."""
    _checked_size(system, path)
    with system.open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _MAX_HEADER_BYTES:
            raise ValueError(f"{path} has a header of {length} bytes: it is no safetensors file")
        header: dict[str, Any] = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            yield policy_pb2.TensorSpec(
                name=name,
                shape=entry["shape"],
                dtype=entry["dtype"],
                sha256=_sha256(file, 8 + length + begin, end - begin),
                byte_size=end - begin,
            )


def _sha256(file: BinaryIO, start: int, size: int) -> bytes:
    digest = hashlib.sha256()
    file.seek(start)
    while size:
        piece = file.read(min(size, _PIECE_BYTES))
        if not piece:
            raise ValueError("the file ends before its last tensor")
        digest.update(piece)
        size -= len(piece)
    return digest.digest()


def _named_by_content(tensors: list[policy_pb2.TensorSpec]) -> common_pb2.PolicyVersion:
    """A version that no other weights have."""
    digest = hashlib.sha256()
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        digest.update(tensor.SerializeToString(deterministic=True))
    return common_pb2.PolicyVersion(lineage=f"weights-{digest.hexdigest()[:16]}", number=0)

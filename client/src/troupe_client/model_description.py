"""What a profile's models are, read off their folders: for a plan before any service runs.

Only headers are read: names, shapes and types of the tensors. A model that is no folder here (a hub id) is left out.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from troupe.v1 import training_pb2

from troupe_client.profile import Learner, Policy, Profile


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    byte_size: int


def describe_profile(profile: Profile) -> list[training_pb2.PolicyDescription]:
    """The policies that a profile would train."""
    if profile.learner is None:
        return []
    if profile.designer.engine == "remote":
        found = [_describe(profile.executor, profile.learner, ("designer", "executor"))]
    else:
        found = [_describe(profile.executor, profile.learner, ("executor",))]
        if profile.designer_learner is not None:
            found.append(_describe(profile.designer, profile.designer_learner, ("designer",)))
    return [each for each in found if each is not None]


def _describe(policy: Policy, learner: Learner, roles: tuple[str, ...]) -> training_pb2.PolicyDescription | None:
    folder = Path(policy.model or "")
    files = sorted(folder.glob("*.safetensors")) if policy.model else []
    if not files:
        return None
    tensors = [tensor for file in files for tensor in _tensors(file)]
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return training_pb2.PolicyDescription(
        policy_id=policy.policy_id,
        roles=roles,
        parameters=sum(prod(tensor.shape) for tensor in tensors),
        weight_bytes=sum(tensor.byte_size for tensor in tensors),
        kv_bytes_per_token=sum(
            tensor.byte_size // tensor.shape[1]
            for tensor in tensors
            if tensor.name.endswith(("k_proj.weight", "v_proj.weight"))
        ),
        context_length=policy.context_length or config.get("max_position_embeddings", 0),
        learner_ranks=learner.ranks,
    )


def _tensors(file: Path) -> Iterator[_Tensor]:
    """The header of a safetensors file: its length in 8 bytes, then JSON."""
    with file.open("rb") as content:
        (length,) = struct.unpack("<Q", content.read(8))
        header: dict[str, Any] = json.loads(content.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield _Tensor(name, tuple(entry["shape"]), end - begin)

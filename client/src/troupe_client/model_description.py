"""What a profile's models are, read off their folders: for a plan before any service runs.

Only headers are read: names, shapes and types of the tensors. A model that cannot be read here is left out, by name.
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


@dataclass(frozen=True, slots=True)
class ProfileModels:
    """The policies that a profile would train."""

    policies: tuple[training_pb2.PolicyDescription, ...]
    left_out: tuple[str, ...]
    """For each that cannot be described: what a plan leaves out, why, and the remedy."""


def describe_profile(profile: Profile) -> ProfileModels:
    """Describe the policies that a profile would train."""
    if profile.learner is None:
        return ProfileModels((), ())
    trained: list[tuple[Policy, Learner, tuple[str, ...]]]
    if profile.designer.engine == "remote":
        trained = [(profile.executor, profile.learner, ("designer", "executor"))]
    else:
        trained = [(profile.executor, profile.learner, ("executor",))]
        if profile.designer_learner is not None:
            trained.append((profile.designer, profile.designer_learner, ("designer",)))
    readable = [each for each in trained if not _why_unreadable(each[0])]
    what = "memory and checkpoint bytes" if readable else "memory, checkpoint and batch bytes"
    return ProfileModels(
        tuple(_describe(policy, learner, roles) for policy, learner, roles in readable),
        tuple(
            f"left out: {what} of policy {policy.policy_id}: {why}, or plan while `troupe up` serves it"
            for policy, _, _ in trained
            if (why := _why_unreadable(policy))
        ),
    )


def _why_unreadable(policy: Policy) -> str:
    """Why a policy cannot be described, and the remedy; empty if it can."""
    if not policy.model:
        return "its profile names no model; name a folder"
    folder = Path(policy.model)
    if not folder.is_dir():
        return f"{policy.model!r} is no folder here; download the model and name its folder"
    if not list(folder.glob("*.safetensors")):
        return f"{folder} holds no *.safetensors; save the model as safetensors there"
    if not (folder / "config.json").is_file():
        return f"{folder} holds no config.json; copy the model's there"
    return ""


def _describe(policy: Policy, learner: Learner, roles: tuple[str, ...]) -> training_pb2.PolicyDescription:
    folder = Path(policy.model or "")
    tensors = [tensor for file in sorted(folder.glob("*.safetensors")) for tensor in _tensors(file)]
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

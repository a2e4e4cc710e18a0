"""What a profile needs of the machine: estimates from the models that it names. No model is loaded."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from troupe_client.profile import FORWARDING, Profile

# Services at rest: five interpreters, of which engine and learner import torch.
_BASE_MEMORY: Final = 3 * 2**30
# Of the engine: weights. Of the learner: weights, gradients, two moments. Four bytes each.
_ENGINE_BYTES, _LEARNER_BYTES = 4, 16
# A checkpoint holds weights and two moments; two are kept while a third is written.
_CHECKPOINT_BYTES: Final = 12
_CHECKPOINTS: Final = 3
_BASE_DISK: Final = 2**30
SHARED_MEMORY_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Needs:
    """Estimates in bytes, and the models that could not be looked at."""

    memory: int
    disk: int
    missing_models: tuple[str, ...] = ()
    hub_models: tuple[str, ...] = ()


def needs(profile: Profile | None) -> Needs:
    """What the services of a profile need; without one, what they need without models."""
    memory, disk = _BASE_MEMORY, _BASE_DISK
    missing: list[str] = []
    hub: list[str] = []
    if profile is None:
        return Needs(memory, disk)
    learners = {"executor": profile.learner, "designer": profile.designer_learner}
    for role, policy in (("executor", profile.executor), ("designer", profile.designer)):
        if policy.engine in FORWARDING or policy.model is None:
            continue
        folder = Path(policy.model)
        if not folder.is_dir():
            (missing if folder.is_absolute() else hub).append(f"{role}.model {policy.model}")
            continue
        parameters = count_parameters(folder)
        memory += _ENGINE_BYTES * parameters
        if learners[role] is not None:
            memory += _LEARNER_BYTES * parameters
            disk += _CHECKPOINTS * _CHECKPOINT_BYTES * parameters
    return Needs(memory, disk, tuple(missing), tuple(hub))


def count_parameters(folder: Path) -> int:
    """Parameters of all tensors in a model folder, by the headers of its files; a torn file counts nothing."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            try:
                (length,) = struct.unpack("<Q", opened.read(8))
                header = json.loads(opened.read(min(length, 2**26)))
                total += sum(math.prod(its["shape"]) for name, its in header.items() if name != "__metadata__")
            except (struct.error, ValueError, KeyError, TypeError, AttributeError):
                continue
    return total

"""What the members of a gang must have in common, and in what one that joins differs. No torch.

Ranks of different builds, settings or initial weights would train something that no checkpoint could tell of.
"""

import hashlib
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final

from troupe_learner.model_folder import ModelFolder
from troupe_learner.settings import LearnerSettings

BUILD: Final = "build"
MODEL: Final = "TROUPE_MODEL"
# The others are the front's alone (stall_seconds, lineage), or of each machine (model, work_dir, addresses, credentials).
_SHARED: Final = (
    *("policy_id", "engine", "nodes", "ranks", "zero_stage", "dtype", "threads", "tokens_per_microbatch"),
    *("old_log_probs", "adam_beta1", "adam_beta2", "adam_eps", "weight_decay"),
)
_PACKAGES: Final = ("torch", "deepspeed", "transformers", "safetensors", "numpy", "grpcio")
_SHORT: Final = 16


def in_common(settings: LearnerSettings, model: ModelFolder) -> Mapping[str, str]:
    """By name, what all members must have."""
    values = {f"TROUPE_{name.upper()}": str(getattr(settings, name)) for name in _SHARED}
    return values | {MODEL: f"files with SHA-256 {model.weights_digest[:_SHORT]}", BUILD: build()}


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """What a member has that is not ours, a phrase for each."""
    return [
        f"{name} is {theirs.get(name, 'not known')} there and {ours.get(name, 'not known')} here"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def build() -> str:
    """Names this program and what decides how it computes: equal where ranks can work together."""
    sources = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        sources.update(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    packages = [f"{name} {version(name)}" for name in _PACKAGES]
    python = ".".join(map(str, sys.version_info[:2]))
    return ", ".join([f"learner {sources.hexdigest()[:_SHORT]}", *packages, f"Python {python}"])

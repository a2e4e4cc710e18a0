"""The cold start: from nothing to a policy that writes mostly valid scripts and plays agents in the right
format.

A function of its seed and settings, on one machine. It trains, rehearses, and where a guard is not met
trains on for a bounded number of rounds; then it writes the model folder, whole or not at all.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain, repeat
from pathlib import Path
from random import Random
from time import monotonic

import torch
from troupe_inference.renderers import get_renderer
from troupe_inference.transcript import Role

from troupe_starter import checkpoint, guards
from troupe_starter import tokenizer as tokenizers
from troupe_starter.demonstrations import Demonstrator, Noise
from troupe_starter.guards import Floors, Measured
from troupe_starter.model import Policy, Shape
from troupe_starter.prompts import designer_system
from troupe_starter.rehearsal import Stage
from troupe_starter.sequences import pack, tokenise
from troupe_starter.training import Recipe, fit

# Conversations that the tokenizer is trained on.
TOKENIZER_CONVERSATIONS = 4_000

# Called at every step: what is done, what is planned (it grows when a guard is not met), and the phase.
Progress = Callable[[int, int, str], None]
TRAINING, REHEARSING = "cold start", "cold start: rehearsal"


class ColdStartFailed(RuntimeError):
    """The guards were not met after all rounds."""


@dataclass(frozen=True)
class Settings:
    """What a cold start depends on, besides its seed."""

    shape: Shape = field(default_factory=Shape)
    noise: Noise = field(default_factory=Noise)
    recipe: Recipe = field(default_factory=Recipe)
    floors: Floors = field(default_factory=Floors)
    # Training tasks that the guards are measured on.
    rehearsal_tasks: int = 180
    # Rounds of further training where a guard is not met, and the steps of each.
    extra_rounds: int = 3
    extra_steps: int = 300


@dataclass(frozen=True)
class Outcome:
    """What a cold start gave."""

    seed: int
    steps: int
    seconds: float
    measured: Measured


def run(folder: Path, seed: int, settings: Settings, progress: Progress) -> Outcome:
    """Trains a policy and writes it to `folder`.

    Raises:
        FileExistsError: the folder is there already.
        ColdStartFailed: the guards were not met.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it, or write the cold start to another folder")
    began = monotonic()
    demonstrator = Demonstrator(designer_system(), settings.noise)
    progress(0, settings.recipe.steps, TRAINING)
    tokenizer = tokenizers.train(texts(demonstrator), settings.shape.vocabulary)
    backend = tokenizer.backend_tokenizer
    renderer = get_renderer("qwen3", backend)
    random = Random(seed)
    batches = pack(
        (tokenise(demonstrator.draw(random), renderer, backend) for _ in repeat(None)),
        settings.recipe.rows,
        settings.recipe.row_length,
    )
    policy = Policy(settings.shape)
    policy.initialise(seed)
    stage = Stage(policy, renderer, backend, torch.Generator().manual_seed(seed))
    steps = 0
    for more in chain((settings.recipe.steps,), repeat(settings.extra_steps, settings.extra_rounds)):
        fit(policy, batches, more, settings.recipe, _step_counter(progress, steps, steps + more))
        steps += more
        progress(0, 1, REHEARSING)
        measured = guards.measure(stage, demonstrator.designer_system, settings.rehearsal_tasks, seed)
        progress(1, 1, REHEARSING)
        if not measured.shortfalls(settings.floors):
            break
    else:
        raise ColdStartFailed(
            f"after {steps} steps the cold start with seed {seed} still has "
            f"{'; '.join(measured.shortfalls(settings.floors))}: try another --seed, or more steps"
        )
    outcome = Outcome(seed, steps, monotonic() - began, measured)
    checkpoint.write(policy, tokenizer, json.dumps(asdict(outcome), indent=1), folder)
    return outcome


def texts(demonstrator: Demonstrator) -> Iterator[str]:
    """What the tokenizer is trained on: the text between the control tokens of demonstrations."""
    random = Random(0)
    for _ in range(TOKENIZER_CONVERSATIONS):
        for message in demonstrator.draw(random):
            spoken = message.role is Role.ASSISTANT
            yield message.content if spoken else f"{message.role.value}\n{message.content}"
        yield "assistant\n"
        yield "\n\n"


def _step_counter(progress: Progress, done: int, total: int) -> Callable[[], None]:
    steps = iter(range(done + 1, total + 1))
    return lambda: progress(next(steps), total, TRAINING)

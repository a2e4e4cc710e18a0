"""Each command tells of its progress piece by piece: the front takes ranks that tell of nothing for hanging."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
from troupe.v1 import learner_pb2
from troupe_learner.batch_file import write_batch, write_sequences
from troupe_learner.batches import as_arrays
from troupe_learner.channel import Message
from troupe_learner.checkpoint_layout import MODEL, STATE
from troupe_learner.optimization import Optimization
from troupe_learner.rank.commands import COMMANDS, Rank
from troupe_learner.rank.engine import AdamW
from troupe_learner.rank.model import load_model, tensor_specs
from troupe_learner.rank.scorer import TokenScorer
from troupe_learner.rank.torch_engine import TorchEngine


@pytest.mark.parametrize("recompute", [False, True])
def test_every_command_that_works_for_long_tells_of_each_piece(
    recompute: bool,
    tiny_model: Callable[[bool], Path],
    sequences: Callable[..., list[learner_pb2.Sequence]],
    tmp_path: Path,
) -> None:
    told: list[float] = []
    load = partial(load_model, str(tiny_model(False)), torch.float32)
    model = load()
    engine = TorchEngine(TokenScorer(model), AdamW(0.9, 0.95, 1e-8, 0.0), torch.float32, 0, 1)
    specs = tensor_specs(model, torch.float32)
    rank = Rank(engine, load, torch.get_rng_state(), specs, False, 100, recompute, told.append)
    batch = sequences(12)
    write_batch(tmp_path / "batch.npz", as_arrays(batch))
    write_sequences(tmp_path / "tokens.npz", [list(each.token_ids) for each in batch])
    for part in (MODEL, STATE):
        (tmp_path / "checkpoint" / part).mkdir(parents=True)
    optimization = asdict(Optimization(1e-3, 2, 0.2, 0.28, 1.0, 0.0, False, True))
    commands: list[Message] = [
        {"command": "train", "step": 1, "batch": str(tmp_path / "batch.npz"), "optimization": optimization},
        {"command": "score", "sequences": str(tmp_path / "tokens.npz"), "scores": str(tmp_path / "scores.npz")},
        {"command": "export", "weights": str(tmp_path / "weights.safetensors")},
        {"command": "save", "folder": str(tmp_path / "checkpoint")},
    ]
    for command in commands:
        told.clear()
        COMMANDS[command["command"]](rank, command)
        assert len(told) > 3, command["command"]
        assert told == sorted(told), command["command"]
        assert told[-1] == 1.0, command["command"]

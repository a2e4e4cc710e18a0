"""What a learner is at its start, and what stops it from starting."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from learning.client import Client
from learning.process import Learner, launch
from troupe.v1 import learner_pb2
from troupe_learner.model_folder import open_model

Sequences = list[learner_pb2.Sequence]
MakeSequences = Callable[..., Sequences]
CODE = grpc.StatusCode


async def test_a_learner_says_what_it_is(learner: Client) -> None:
    state = await learner.get()
    tied = json.loads((Path(state.model) / "config.json").read_text())["tie_word_embeddings"]
    assert state.state == learner_pb2.GANG_STATE_READY
    assert state.ranks == 1
    assert state.tied_embeddings == tied
    assert "torch" in state.engine
    assert "1 rank(s) x 1 thread(s)" in state.engine
    assert state.weights_digest == open_model(state.model).weights_digest


async def test_digests_are_those_that_the_policy_service_computes(learner: Client) -> None:
    from troupe_inference import model_folder as theirs

    state = await learner.get()
    model = theirs.open_model(state.model)
    shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    assert state.tokenizer_digest == theirs.tokenizer_digest(model)
    assert state.chat_template_digest == theirs.chat_template_digest(model)
    assert model.chat_template
    assert state.architecture_digest == theirs.architecture_digest(shapes, model.tied_embeddings)


def test_initial_weights_are_known_by_their_content(tiny_model: Any, tmp_path: Path) -> None:
    same, other = (shutil.copytree(tiny_model(False), tmp_path / name) for name in ("same", "other"))
    file = other / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    digests = [open_model(str(folder)).weights_digest for folder in (tiny_model(False), same, other)]
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 64


def test_the_front_has_no_torch_and_its_rank_has(running: Learner) -> None:
    (rank,) = running.rank_pids()
    assert "libtorch" not in Path(f"/proc/{running.process.pid}/maps").read_text()
    assert "libtorch" in Path(f"/proc/{rank}/maps").read_text()


async def test_an_idle_learner_uses_no_processor_time(learner: Client, running: Learner) -> None:
    await learner.ready()
    processes = [psutil.Process(pid) for pid in (running.process.pid, *running.rank_pids())]

    def used() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    await asyncio.sleep(0.3)
    before = used()
    await asyncio.sleep(1.5)
    assert used() - before <= 0.06


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"model": "/nowhere"}, "neither a folder nor a hub id"),
        ({"zero_stage": 2}, "TROUPE_ZERO_STAGE=2 has no meaning for TROUPE_ENGINE=torch"),
        ({"engine": "jax"}, "TROUPE_ENGINE"),
        ({"optimizer": "muon"}, "TROUPE_OPTIMIZER is not known"),
        ({"threads": 0}, "TROUPE_THREADS"),
    ],
    ids=["model", "zero", "engine", "unknown", "threads"],
)
def test_a_setting_that_cannot_be_honoured_stops_the_start_and_is_named(
    settings: dict[str, object], text: str, tiny_model: Any, tmp_path: Path
) -> None:
    process: subprocess.Popen[bytes] = launch(tmp_path, **({"model": tiny_model(False)} | settings))
    assert process.wait(60) != 0
    assert text in (tmp_path / "log").read_text()


def test_two_learners_cannot_share_a_work_folder(running: Learner, tiny_model: Any, tmp_path: Path) -> None:
    process = launch(tmp_path, tiny_model(False), work_dir=running.work_dir)
    assert process.wait(60) == 1
    assert "held by another learner" in (tmp_path / "log").read_text()

"""Checkpoints: published whole, checked whole, and the same training after them."""

from collections.abc import Callable
from pathlib import Path

import grpc
from learning.client import Client, failed, next_step
from safetensors.numpy import load_file
from troupe.v1 import learner_pb2

Sequences = list[learner_pb2.Sequence]
MakeSequences = Callable[..., Sequences]
CODE = grpc.StatusCode


def entries(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


async def test_a_step_after_a_restore_is_bit_for_bit_the_step_without(
    learner: Client, sequences: MakeSequences, tmp_path: Path
) -> None:
    step = await next_step(learner)
    await learner.train(step, sequences(8, seed=1))
    await learner.train(step + 1, sequences(8, seed=2))
    saved = (await learner.save(f"file://{tmp_path}/checkpoint")).checkpoint
    state = await learner.get()
    assert (saved.step, saved.digest, saved.version) == (
        step + 1,
        state.applied_digest,
        state.version,
    )
    result = await learner.train(step + 2, sequences(8, seed=3))
    expected = (await learner.weights())[1]
    restored = await learner.restore(saved.uri)
    assert not restored.HasField("error"), restored.error
    back = await learner.get()
    assert (back.applied_step, back.applied_digest) == (step + 1, state.applied_digest)
    assert back.version.lineage != state.version.lineage, "version n+1 of the old lineage exists already"
    again = await learner.train(step + 2, sequences(8, seed=3))
    assert (await learner.weights())[1] == expected
    assert again.version != result.version
    timed = dict.fromkeys(("seconds",), 0.0)
    assert dict(again.metrics) | timed == dict(result.metrics) | timed


async def test_a_checkpoint_opens_as_a_model_and_is_written_once(
    learner: Client, sequences: MakeSequences, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = tmp_path / "deep" / "er" / "checkpoint"
    first = (await learner.save(str(place))).checkpoint
    weights = (await learner.weights())[1]
    stored = load_file(place / "model" / "model.safetensors")
    assert {name: value.tobytes() for name, value in stored.items()} == weights
    AutoModelForCausalLM.from_pretrained(place / "model")
    AutoTokenizer.from_pretrained(place / "model")
    assert first.byte_size == sum(each.stat().st_size for each in place.rglob("*") if each.is_file())
    assert (await learner.save(str(place))).checkpoint == first
    await learner.train(await next_step(learner), sequences(3, seed=9))
    other = await learner.save(str(place))
    failed(other, CODE.FAILED_PRECONDITION, "choose another place")
    assert sorted(each.name for each in place.parent.iterdir()) == ["checkpoint"]


async def test_a_damaged_checkpoint_is_refused_whole(learner: Client, tmp_path: Path) -> None:
    await learner.save(str(tmp_path / "good"))
    state, weights = await learner.get(), (await learner.weights())[1]
    rank_file = tmp_path / "good" / "state" / "rank-0.safetensors"
    content = bytearray(rank_file.read_bytes())
    content[-1] ^= 1
    rank_file.write_bytes(content)
    done = await learner.restore(str(tmp_path / "good"))
    failed(done, CODE.DATA_LOSS, "rank-0.safetensors")
    (tmp_path / "good" / "checkpoint.json").write_text("{")
    done = await learner.restore(str(tmp_path / "good"))
    assert done.error.code == CODE.DATA_LOSS.value[0]
    assert (await learner.get()).version == state.version
    assert (await learner.weights())[1] == weights


async def test_a_checkpoint_without_a_place_leaves_nothing_behind(learner: Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = await learner.save(str(tmp_path / "file" / "checkpoint"))
    failed(done, CODE.FAILED_PRECONDITION, "cannot be written")
    assert entries(tmp_path) == ["file"]

"""Checkpoints: published whole, checked whole, and the same training after them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from learning.client import Client, failed, next_step
from learning.models import BOTH_MODELS
from safetensors.numpy import load_file
from troupe.v1 import learner_pb2

Sequences = list[learner_pb2.Sequence]
MakeSequences = Callable[..., Sequences]
CODE = grpc.StatusCode

pytestmark = BOTH_MODELS


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
    for bent in ({"run_id": "other"}, {"step": 99}):
        meant = await learner.save(str(tmp_path / "none"), **bent)
        failed(meant, CODE.FAILED_PRECONDITION, "is not what is current")
    await learner.train(await next_step(learner), sequences(3, seed=9))
    other = await learner.save(str(place))
    failed(other, CODE.FAILED_PRECONDITION, "choose another place")
    assert sorted(each.name for each in place.parent.iterdir()) == ["checkpoint"]


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    # The last digit of the record: its text stays JSON, and says something else.
    place = max(index for index, each in enumerate(content) if chr(each).isdigit()) if path.suffix == ".json" else -1
    content[place] ^= 1
    path.write_bytes(content)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flipped, truncated, Path.unlink], ids=["flipped", "truncated", "missing"])
async def test_a_checkpoint_with_any_file_damaged_is_refused_whole_naming_the_file(
    learner: Client, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    await learner.save(str(tmp_path / "good"))
    files = [path.relative_to(tmp_path / "good") for path in sorted((tmp_path / "good").rglob("*")) if path.is_file()]
    assert {"checkpoint.json", "model/model.safetensors", "state/rank-0.safetensors"} <= {str(each) for each in files}
    state, weights = await learner.get(), await learner.digests()
    for number, file in enumerate(files):
        place = tmp_path / f"copy-{number}"
        shutil.copytree(tmp_path / "good", place)
        damage(place / file)
        code = CODE.DATA_LOSS
        if str(file) == "checkpoint.json" and damage is Path.unlink:
            code = CODE.NOT_FOUND
        named = str(place / file) if code == CODE.DATA_LOSS else str(place)
        failed(await learner.restore(str(place)), code, named)
        failed(await learner.bind("next", str(place)), code, named)
    assert await learner.get() == state
    assert await learner.digests() == weights
    assert not (await learner.restore(str(tmp_path / "good"))).HasField("error")


async def test_a_checkpoint_without_a_place_leaves_nothing_behind(learner: Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = await learner.save(str(tmp_path / "file" / "checkpoint"))
    failed(done, CODE.FAILED_PRECONDITION, "cannot be written")
    assert entries(tmp_path) == ["file"]

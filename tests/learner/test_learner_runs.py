"""One learner, several runs: who has it, and what a run that begins starts from."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from learning.client import Client, failed, refused
from learning.process import Learner, kill_rank
from troupe.v1 import common_pb2, learner_pb2

MakeSequences = Callable[..., list[learner_pb2.Sequence]]
CODE = grpc.StatusCode


@pytest.fixture(scope="module", params=["torch", pytest.param("deepspeed", marks=pytest.mark.long)])
def running(request: pytest.FixtureRequest, start_learner: Any, tiny_model: Any) -> Learner:
    """One learner for all tests of this module, for each engine. Each test begins runs of its own."""
    zero = {"zero_stage": 2} if request.param == "deepspeed" else {}
    return start_learner(tiny_model(True), lineage="first", engine=request.param, **zero)


async def trained(learner: Client, sequences: MakeSequences, *seeds: int) -> dict[str, bytes]:
    """The weights after one step for each seed, the next ones of the run."""
    for seed in seeds:
        await learner.train((await learner.get()).applied_step + 1, sequences(8, seed=seed))
    return (await learner.weights())[1]


async def test_a_run_at_the_initial_weights_keeps_their_name_until_they_were_trained(
    learner: Client, sequences: MakeSequences
) -> None:
    initial = (await learner.weights())[1]
    assert (await learner.get()).run_id == ""
    # Of a run that began elsewhere, for all that it knows.
    with refused(CODE.FAILED_PRECONDITION, "no run", "give it to run run with BindRun"):
        await learner.submit(1, sequences(3))
    with refused(CODE.FAILED_PRECONDITION, "no run", "give it to run run with BindRun"):
        await learner.start_step(1, sequences(3))
    done = (await learner.bind("one")).checkpoint
    assert (done.uri, done.step, done.digest, done.byte_size) == ("", 0, b"", 0)
    state = await learner.get()
    assert (state.run_id, state.version.lineage, state.version.number) == ("one", "first", 0)
    assert done.version == state.version
    expected = await trained(learner, sequences, 1, 2)

    assert not (await learner.bind("two")).HasField("error")
    state = await learner.get()
    assert (state.run_id, state.applied_step, state.version.number) == ("two", 0, 0)
    assert state.version.lineage != "first"
    assert not state.applied_steps
    assert (await learner.weights())[1] == initial
    assert await trained(learner, sequences, 1, 2) == expected, "as after a fresh start"


async def test_a_run_begins_with_weights_and_moments_of_another_runs_checkpoint(
    learner: Client, sequences: MakeSequences, tmp_path: Path
) -> None:
    await learner.bind("parent")
    await trained(learner, sequences, 1, 2)
    saved = (await learner.save(str(tmp_path / "checkpoint"))).checkpoint
    expected = await trained(learner, sequences, 3)
    first = (await learner.bind("child", saved.uri)).checkpoint
    assert (first.uri, first.step, first.version.number) == (saved.uri, 0, 0)
    assert first.byte_size == saved.byte_size
    assert (await learner.get()).applied_step == 0
    assert await trained(learner, sequences, 3) == expected
    second = (await learner.bind("grandchild", saved.uri)).checkpoint
    assert len({each.version.lineage for each in (saved, first, second)}) == 3

    restored = await learner.restore(saved.uri)
    assert not restored.HasField("error"), restored.error
    state = await learner.get()
    assert (state.run_id, state.applied_step) == ("parent", 2), "its own run gets it back with its steps"


async def test_a_repeated_request_changes_nothing_until_the_run_has_steps(
    learner: Client, sequences: MakeSequences, tmp_path: Path
) -> None:
    await learner.bind("earlier")
    await trained(learner, sequences, 1)
    saved = (await learner.save(str(tmp_path / "checkpoint"))).checkpoint
    both = await asyncio.gather(*(learner.start_binding("again", saved.uri) for _ in range(2)))
    assert both[0].name == both[1].name, "a reply that was lost: the second call finds the first one's operation"
    done = await learner.finished(both[0])
    assert await learner.bind("again", saved.uri) != done, "an operation of its own"
    assert (await learner.bind("again", saved.uri)).checkpoint == done.checkpoint
    other = (await learner.bind("again")).checkpoint
    assert other.version != done.checkpoint.version, "from elsewhere: another request"
    await trained(learner, sequences, 1)
    with refused(CODE.FAILED_PRECONDITION, "run again", "has 1 applied steps", "go on with step 2"):
        await learner.start_binding("again")


async def test_a_batch_of_another_run_is_refused_with_the_remedy(learner: Client, sequences: MakeSequences) -> None:
    await learner.bind("holder")
    learner.run_id = "other"
    with refused(CODE.FAILED_PRECONDITION, "run holder", "give it to run other with BindRun"):
        await learner.submit(1, sequences(3))
    with refused(CODE.FAILED_PRECONDITION, "run holder", "give it to run other with BindRun"):
        await learner.start_step(1, sequences(3))


async def test_what_cannot_be_bound_leaves_the_run_that_has_it(
    learner: Client, sequences: MakeSequences, tmp_path: Path
) -> None:
    await learner.bind("holder")
    weights = await trained(learner, sequences, 1)
    before = await learner.get()
    assert "no checkpoint" in (await learner.bind("next", "/nowhere")).error.message
    await learner.save(str(tmp_path / "checkpoint"))
    part = tmp_path / "checkpoint" / "state" / "rank-0.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    failed(await learner.bind("next", str(tmp_path / "checkpoint")), CODE.DATA_LOSS, "rank-0.safetensors")
    for bent, code, texts in (
        ({"run_id": ""}, CODE.INVALID_ARGUMENT, ("run_id",)),
        ({"uri": "s3://bucket/x"}, CODE.INVALID_ARGUMENT, ("uri",)),
        ({"policy_id": "nobody"}, CODE.NOT_FOUND, ("nobody",)),
        ({"fence": None}, CODE.INVALID_ARGUMENT, ("fence",)),
    ):
        with refused(code, *texts):
            await learner.start_binding(**{"run_id": "next"} | bent)
    assert await learner.get() == before
    assert (await learner.weights())[1] == weights


async def test_another_change_under_way_is_named(learner: Client, sequences: MakeSequences) -> None:
    await learner.bind("busy")
    batch = sequences(60, seed=4)
    await learner.submit(1, batch)
    operation = await learner.start_step(1, batch, mini_batches=30)
    with refused(CODE.FAILED_PRECONDITION, operation.name, "is under way"):
        await learner.start_binding("next")
    await learner.finished(operation)


async def test_a_lost_gang_starts_from_what_the_run_began_with(
    learner: Client, running: Learner, sequences: MakeSequences, tmp_path: Path
) -> None:
    await learner.bind("parent")
    await trained(learner, sequences, 1)
    saved = (await learner.save(str(tmp_path / "checkpoint"))).checkpoint
    await learner.bind("child", saved.uri)
    base = (await learner.weights())[1]
    expected = await trained(learner, sequences, 2)
    await kill_rank(running, learner)
    state = await learner.ready()
    assert (state.run_id, state.applied_step) == ("child", 0)
    assert (await learner.weights())[1] == base
    assert await trained(learner, sequences, 2) == expected


async def test_a_run_whose_beginning_is_gone_loses_the_learner_rather_than_start_elsewhere(
    learner: Client, running: Learner, sequences: MakeSequences, tmp_path: Path
) -> None:
    await learner.bind("parent")
    await trained(learner, sequences, 1)
    saved = (await learner.save(str(tmp_path / "checkpoint"))).checkpoint
    await learner.bind("child", saved.uri)
    (Path(saved.uri) / "model" / "model.safetensors").unlink()
    await kill_rank(running, learner)
    state = await learner.ready()
    assert (state.run_id, state.applied_step) == ("", 0)
    assert "model.safetensors is missing" in state.detail
    with refused(CODE.FAILED_PRECONDITION, "run child began at", "BindRun"):
        await learner.submit(1, sequences(3))
    assert not (await learner.bind("child")).HasField("error")
    await trained(learner, sequences, 2)


async def test_a_stale_fence_binds_nothing(learner: Client) -> None:
    learner.token = 7
    await learner.bind("fenced")
    with refused(CODE.FAILED_PRECONDITION, "stale"):
        await learner.start_binding("late", fence=common_pb2.Fence(store_id="store", token=6))

"""Applying batches: once each, in order, whole or not at all, watched from anywhere."""

from collections.abc import Callable

import grpc
import numpy as np
from learning.client import Client, failed, next_step, refused
from troupe.v1 import common_pb2, learner_pb2
from troupe_contracts import batch as contract

Sequences = list[learner_pb2.Sequence]
MakeSequences = Callable[..., Sequences]
CODE = grpc.StatusCode


async def test_a_trained_step_is_stored_and_given_again_without_training(
    learner: Client, sequences: MakeSequences
) -> None:
    batch = sequences(10)
    step = await next_step(learner)
    first = await learner.train(step, batch)
    weights = (await learner.weights())[1]
    again = await learner.start_step(step, batch)
    assert again.done
    assert again.train_step == first
    assert (await learner.weights())[1] == weights
    assert (first.step, first.version.number) == (step, step)
    assert first.digest == contract.digest(batch)
    for name in ("loss", "grad_norm", "ratio_max", "clip_fraction", "mismatch_kl", "entropy", "seconds"):
        assert np.isfinite(first.metrics[name]), name
    assert first.metrics["tokens"] == sum(len(each.token_ids) for each in batch)
    state = await learner.get()
    assert (state.run_id, state.applied_step) == ("run", step)
    assert [(each.step, each.digest) for each in state.applied_steps][-1] == (step, first.digest)


async def test_steps_out_of_order_are_refused_by_name(learner: Client, sequences: MakeSequences) -> None:
    step = await next_step(learner)
    batch = sequences(3, seed=step)
    await learner.train(step, batch)
    other = sequences(3, seed=100)
    with refused(CODE.ABORTED, f"step {step} was applied with batch"):
        await learner.start_step(step, other)
    with refused(CODE.FAILED_PRECONDITION, f"replay from {step + 1}"):
        await learner.start_step(step + 2, other)
    with refused(CODE.FAILED_PRECONDITION, contract.digest(other).hex(), "call SubmitBatch"):
        await learner.start_step(step + 1, other)
    with refused(CODE.INVALID_ARGUMENT, "steps count from 1"):
        await learner.start_step(0, other)
    with refused(CODE.FAILED_PRECONDITION, "run run", "cannot train on it"):
        await learner.start_step(step + 1, other, run_id="another")


async def test_a_stale_fence_is_refused_on_every_change(learner: Client, sequences: MakeSequences) -> None:
    batch = sequences(3)
    step = await next_step(learner)
    await learner.submit(step, batch)
    stale = common_pb2.Fence(store_id="store", token=6)
    with refused(CODE.FAILED_PRECONDITION, "stale"):
        await learner.submit(step, batch, fence=stale)
    with refused(CODE.FAILED_PRECONDITION, "stale"):
        await learner.start_step(step, batch, fence=stale)
    learner.token = 6
    with refused(CODE.FAILED_PRECONDITION, "stale"):
        await learner.save("/nowhere")
    with refused(CODE.FAILED_PRECONDITION, "stale"):
        await learner.restore("/nowhere")


async def test_a_watch_goes_on_from_an_event(learner: Client, sequences: MakeSequences) -> None:
    step = await next_step(learner)
    await learner.submit(step, sequences(6, seed=step))
    operation = await learner.start_step(step, sequences(6, seed=step), mini_batches=3)
    await learner.finished(operation)

    async def watch(after: int) -> list[learner_pb2.OperationEvent]:
        request = learner_pb2.WatchOperationRequest(name=operation.name, after_event_id=after)
        return [event async for event in learner.stub.WatchOperation(request)]

    events = await watch(0)
    assert [event.event_id for event in events] == list(range(1, len(events) + 1))
    assert [event.operation.done for event in events] == [False] * (len(events) - 1) + [True]
    assert [event.progress for event in events] == sorted(event.progress for event in events)
    assert await watch(2) == events[2:]


async def test_a_step_that_is_not_finite_fails_and_changes_nothing(learner: Client, sequences: MakeSequences) -> None:
    step = await next_step(learner)
    before = (await learner.weights())[1]
    bad = sequences(6)
    bad[-1].advantages[:] = [3e38] * len(bad[-1].advantages)
    bad[-1].weights[:] = [100 * weight for weight in bad[-1].weights]
    await learner.submit(step, bad)
    done = await learner.finished(await learner.start_step(step, bad))
    failed(done, CODE.OUT_OF_RANGE, "conversation-5")
    assert (await learner.weights())[1] == before
    assert (await learner.get()).applied_step == step - 1
    await learner.train(step, sequences(6))

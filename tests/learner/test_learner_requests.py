"""Bad input: refused before it costs anything, naming what is wrong with which field."""

from collections.abc import AsyncIterator, Callable

import grpc
from learning.client import Client, next_step, refused
from troupe.v1 import learner_pb2
from troupe_learner.optimization import LARGEST

Sequences = list[learner_pb2.Sequence]
MakeSequences = Callable[..., Sequences]
CODE = grpc.StatusCode


async def test_bad_batches_are_refused_naming_sequence_and_field(learner: Client, sequences: MakeSequences) -> None:
    step = await next_step(learner)

    async def submit(change: Callable[[Sequences], None], **bent: object) -> None:
        batch = sequences(4)
        change(batch)
        await learner.submit(step, batch, **bent)

    def keep(batch: Sequences) -> None:
        return None

    def unknown_token(batch: Sequences) -> None:
        batch[2].token_ids[1] = 1_000_000

    def unequal(batch: Sequences) -> None:
        batch[1].weights.append(1)

    def infinite(batch: Sequences) -> None:
        batch[3].advantages[2] = float("inf")

    def impossible(batch: Sequences) -> None:
        batch[1].behaviour_log_probs[3] = float("-inf")

    def too_long(batch: Sequences) -> None:
        batch[0].CopyFrom(sequences(1, longest=9)[0])
        for field in (batch[0].token_ids, batch[0].weights, batch[0].advantages, batch[0].behaviour_log_probs):
            field.extend([0] * 2000)

    def unweighted(batch: Sequences) -> None:
        for each in batch:
            each.weights[:] = [0] * len(each.weights)

    def empty_sequence(batch: Sequences) -> None:
        batch[1].CopyFrom(learner_pb2.Sequence(id="none"))

    for change, texts in (
        (unknown_token, ("sequences[2]", "conversation-2", "token_ids", "1000000")),
        (unequal, ("sequences[1].weights", "one per token")),
        (infinite, ("sequences[3].advantages", "position 2", "finite")),
        (impossible, ("sequences[1].behaviour_log_probs", "position 3", "finite")),
        (too_long, ("sequences[0]", "context is 1024")),
        (unweighted, ("no token with a weight",)),
        (empty_sequence, ("sequences[1].token_ids",)),
    ):
        with refused(CODE.INVALID_ARGUMENT, *texts):
            await submit(change)
    with refused(CODE.INVALID_ARGUMENT, "header.digest", "hash to"):
        await submit(keep, digest=bytes(32))
    with refused(CODE.INVALID_ARGUMENT, "header.digest", "3 bytes"):
        await submit(keep, digest=b"abc")
    with refused(CODE.INVALID_ARGUMENT, "header.sequence_count"):
        await submit(keep, sequence_count=3)
    with refused(CODE.INVALID_ARGUMENT, "header.sequence_count"):
        await submit(keep, sequence_count=0)
    with refused(CODE.NOT_FOUND, "'nobody'", "this learner trains 'policy'"):
        await submit(keep, policy_id="nobody")
    with refused(CODE.INVALID_ARGUMENT, "fence"):
        await submit(keep, fence=None)
    with refused(CODE.INVALID_ARGUMENT, "run_id"):
        await submit(keep, run_id="")

    async def chunk_first() -> AsyncIterator[learner_pb2.SubmitBatchRequest]:
        yield learner_pb2.SubmitBatchRequest(chunk=learner_pb2.SequenceChunk())

    async def nothing() -> AsyncIterator[learner_pb2.SubmitBatchRequest]:
        for message in ():
            yield message

    with refused(CODE.INVALID_ARGUMENT, "must be the first message"):
        await learner.stub.SubmitBatch(chunk_first())
    with refused(CODE.INVALID_ARGUMENT, "the stream was empty"):
        await learner.stub.SubmitBatch(nothing())


async def test_bad_optimizations_are_refused_naming_every_field(learner: Client, sequences: MakeSequences) -> None:
    step = await next_step(learner)
    with refused(CODE.INVALID_ARGUMENT, "learning_rate", "mini_batches", "clip_low", "max_grad_norm"):
        await learner.start_step(
            step, sequences(2), learning_rate=0, mini_batches=0, clip_low=-1, max_grad_norm=float("nan")
        )
    too_large = {"learning_rate": 1e31, "clip_high": 1e39, "max_grad_norm": 1e308, "importance_cap": 1e308}
    with refused(CODE.INVALID_ARGUMENT, *too_large, "send at most 1e+30"):
        await learner.start_step(step, sequences(2), **too_large)


async def test_the_largest_optimization_that_is_taken_ends_no_rank(learner: Client, sequences: MakeSequences) -> None:
    step = await next_step(learner)
    before = await learner.get()
    await learner.submit(step, sequences(2))
    largest = dict.fromkeys(("clip_high", "max_grad_norm", "importance_cap"), LARGEST)
    operation = await learner.start_step(step, sequences(2), **largest)
    assert not (await learner.finished(operation)).HasField("error")
    assert (await learner.get()).generation == before.generation


async def test_bad_names_and_empty_requests_are_refused(learner: Client) -> None:
    with refused(CODE.NOT_FOUND, "operations/none", "GetLearner"):
        await learner.finished(learner_pb2.Operation(name="operations/none"))
    with refused(CODE.INVALID_ARGUMENT, "sequences"):
        await learner.stub.Score(learner_pb2.ScoreRequest(policy_id="policy"))
    for tokens in ([], [1, 1_000_000], [1] * 5000):
        wrong = learner_pb2.ScoreSequence(token_ids=tokens)
        with refused(CODE.INVALID_ARGUMENT, "sequences[0].token_ids"):
            await learner.stub.Score(learner_pb2.ScoreRequest(policy_id="policy", sequences=[wrong]))
    for uri in ("relative", "s3://bucket/x", ""):
        with refused(CODE.INVALID_ARGUMENT, "uri"):
            await learner.save(uri)
    assert "no checkpoint" in (await learner.restore("/nowhere")).error.message
    with refused(CODE.NOT_FOUND, "policy"):
        await learner.stub.GetLearner(learner_pb2.GetLearnerRequest(policy_id="nobody"))

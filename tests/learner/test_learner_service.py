"""The learner as a process, over gRPC: each call, bad input, checkpoints, and deaths."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file
from troupe.v1 import common_pb2, learner_pb2
from troupe_contracts import batch as contract

Sequences = list[learner_pb2.Sequence]
MakeSequences = Callable[..., Sequences]
CODE = grpc.StatusCode


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def running(request: pytest.FixtureRequest, start_learner: Any, tiny_model: Any) -> Any:
    """One learner for all tests of this module, for each kind of model. Tests go on where the last one stopped."""
    learner = start_learner(tiny_model(request.param), lineage="first")
    yield learner
    learner.stop()


@pytest.fixture
async def learner(running: Any, client_of: Any) -> AsyncIterator[Any]:
    async with running.client() as channel:
        yield client_of(channel)


@contextlib.contextmanager
def refused(code: grpc.StatusCode, *texts: str) -> Iterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() == code, caught.value.details()
    for text in texts:
        assert text in (caught.value.details() or "")


def entries(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


async def next_step(learner: Any) -> int:
    return int((await learner.ready()).applied_step) + 1


async def test_a_new_learner_says_what_it_is(learner: Any, running: Any, tiny_model: Any) -> None:
    state = await learner.get()
    tied = json.loads((Path(state.model) / "config.json").read_text())["tie_word_embeddings"]
    assert state.state == learner_pb2.GANG_STATE_READY
    assert (state.version.lineage, state.version.number) == ("first", 0)
    assert (state.run_id, state.applied_step, state.ranks) == ("", 0, 1)
    assert state.tied_embeddings == tied
    assert "torch" in state.engine
    assert "1 rank(s) x 1 thread(s)" in state.engine


async def test_digests_are_those_that_the_policy_service_computes(learner: Any) -> None:
    from troupe_inference import model_folder as theirs

    state = await learner.get()
    model = theirs.open_model(state.model)
    shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    assert state.tokenizer_digest == theirs.tokenizer_digest(model)
    assert state.architecture_digest == theirs.architecture_digest(shapes, model.tied_embeddings)


def test_the_front_has_no_torch_and_its_rank_has(running: Any) -> None:
    (rank,) = running.rank_pids()
    assert "libtorch" not in Path(f"/proc/{running.process.pid}/maps").read_text()
    assert "libtorch" in Path(f"/proc/{rank}/maps").read_text()


async def test_a_trained_step_is_stored_and_given_again_without_training(
    learner: Any, sequences: MakeSequences
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


async def test_steps_out_of_order_are_refused_by_name(learner: Any, sequences: MakeSequences) -> None:
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


async def test_a_stale_fence_is_refused_on_every_change(learner: Any, sequences: MakeSequences) -> None:
    batch = sequences(3)
    step = await next_step(learner)
    learner.token = 7
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


async def test_bad_batches_are_refused_naming_sequence_and_field(learner: Any, sequences: MakeSequences) -> None:
    learner.token = 7
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


async def test_bad_optimizations_are_refused_naming_every_field(learner: Any, sequences: MakeSequences) -> None:
    learner.token = 7
    step = await next_step(learner)
    with refused(CODE.INVALID_ARGUMENT, "learning_rate", "mini_batches", "clip_low", "max_grad_norm"):
        await learner.start_step(
            step, sequences(2), learning_rate=0, mini_batches=0, clip_low=-1, max_grad_norm=float("nan")
        )


async def test_bad_names_and_empty_requests_are_refused(learner: Any) -> None:
    learner.token = 7
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


async def test_a_watch_goes_on_from_an_event(learner: Any, sequences: MakeSequences) -> None:
    learner.token = 7
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


async def test_a_step_that_is_not_finite_fails_and_changes_nothing(learner: Any, sequences: MakeSequences) -> None:
    learner.token = 7
    step = await next_step(learner)
    before = (await learner.weights())[1]
    bad = sequences(6)
    bad[-1].advantages[:] = [3e38] * len(bad[-1].advantages)
    bad[-1].weights[:] = [100 * weight for weight in bad[-1].weights]
    await learner.submit(step, bad)
    done = await learner.finished(await learner.start_step(step, bad))
    assert done.error.code == CODE.OUT_OF_RANGE.value[0]
    assert "conversation-5" in done.error.message
    assert (await learner.weights())[1] == before
    assert (await learner.get()).applied_step == step - 1
    await learner.train(step, sequences(6))


async def test_an_export_is_the_manifest_and_then_exactly_those_bytes(learner: Any) -> None:
    state = await learner.get()
    manifest, found = await learner.weights()
    assert list(found) == [tensor.name for tensor in manifest.tensors]
    for tensor in manifest.tensors:
        assert hashlib.sha256(found[tensor.name]).digest() == tensor.sha256
        assert len(found[tensor.name]) == tensor.byte_size == 4 * np.prod(tensor.shape)
        assert tensor.dtype == "F32"
    stored = load_file(Path(state.model) / "model.safetensors")
    assert {tensor.name: tuple(tensor.shape) for tensor in manifest.tensors} == {
        name: value.shape for name, value in stored.items()
    }
    assert manifest.version == state.version
    assert manifest.tied_embeddings == state.tied_embeddings == ("lm_head.weight" not in found)
    request = learner_pb2.ExportWeightsRequest(
        policy_id="policy", version=common_pb2.PolicyVersion(lineage="other", number=1)
    )
    with refused(CODE.FAILED_PRECONDITION, "other/1", "is not current"):
        async for _ in learner.stub.ExportWeights(request):
            pass
    only = learner_pb2.ExportWeightsRequest(policy_id="policy", manifest_only=True, version=state.version)
    assert [each.WhichOneof("message") async for each in learner.stub.ExportWeights(only)] == ["manifest"]


async def test_scores_are_those_of_the_exported_weights(learner: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    state = await learner.get()
    rows = [[5, 6, 7, 8, 9], [1], list(range(40))]
    request = learner_pb2.ScoreRequest(
        policy_id="policy", sequences=[learner_pb2.ScoreSequence(token_ids=row) for row in rows]
    )
    response = await learner.stub.Score(request)
    manifest, found = await learner.weights()
    model = AutoModelForCausalLM.from_pretrained(state.model, dtype=torch.float32)
    weights = {
        tensor.name: torch.frombuffer(bytearray(found[tensor.name]), dtype=torch.float32).reshape(tuple(tensor.shape))
        for tensor in manifest.tensors
    }
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    assert response.version == state.version == manifest.version
    for row, scored in zip(rows, response.scores, strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            distribution = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
        expected = distribution.gather(1, ids[0, 1:, None]).squeeze(1)
        assert np.allclose(scored.log_probs, expected, atol=2e-5)
        assert np.allclose(scored.entropies, -(distribution.exp() * distribution).sum(-1), atol=2e-5)


async def test_a_step_after_a_restore_is_bit_for_bit_the_step_without(
    learner: Any, sequences: MakeSequences, tmp_path: Path
) -> None:
    learner.token = 7
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
    learner: Any, sequences: MakeSequences, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    learner.token = 7
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
    assert other.error.code == CODE.FAILED_PRECONDITION.value[0]
    assert "choose another place" in other.error.message
    assert sorted(each.name for each in place.parent.iterdir()) == ["checkpoint"]


async def test_a_damaged_checkpoint_is_refused_whole(learner: Any, tmp_path: Path) -> None:
    learner.token = 7
    await learner.save(str(tmp_path / "good"))
    state, weights = await learner.get(), (await learner.weights())[1]
    rank_file = tmp_path / "good" / "state" / "rank-0.safetensors"
    content = bytearray(rank_file.read_bytes())
    content[-1] ^= 1
    rank_file.write_bytes(content)
    done = await learner.restore(str(tmp_path / "good"))
    assert done.error.code == CODE.DATA_LOSS.value[0]
    assert "rank-0.safetensors" in done.error.message
    (tmp_path / "good" / "checkpoint.json").write_text("{")
    done = await learner.restore(str(tmp_path / "good"))
    assert done.error.code == CODE.DATA_LOSS.value[0]
    assert (await learner.get()).version == state.version
    assert (await learner.weights())[1] == weights


async def test_a_checkpoint_without_a_place_leaves_nothing_behind(learner: Any, tmp_path: Path) -> None:
    learner.token = 7
    (tmp_path / "file").write_text("")
    done = await learner.save(str(tmp_path / "file" / "checkpoint"))
    assert done.error.code == CODE.FAILED_PRECONDITION.value[0]
    assert "cannot be written" in done.error.message
    assert entries(tmp_path) == ["file"]


async def test_a_full_disk_is_a_clear_error_and_leaves_nothing_behind(
    learner: Any, running: Any, tmp_path: Path
) -> None:
    """The rank's limit on file size stands in for the disk's end: the write fails in the same way."""
    learner.token = 7
    (rank,) = (psutil.Process(pid) for pid in running.rank_pids())
    soft, hard = rank.rlimit(psutil.RLIMIT_FSIZE)
    rank.rlimit(psutil.RLIMIT_FSIZE, (100_000, hard))
    try:
        done = await learner.save(str(tmp_path / "checkpoint"))
    finally:
        rank.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))
    assert done.error.code == CODE.RESOURCE_EXHAUSTED.value[0]
    assert "make room" in done.error.message
    assert entries(tmp_path) == []
    assert not (await learner.save(str(tmp_path / "checkpoint"))).HasField("error")


async def test_an_idle_learner_uses_no_processor_time(learner: Any, running: Any) -> None:
    await learner.ready()
    processes = [psutil.Process(pid) for pid in (running.process.pid, *running.rank_pids())]

    def used() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    await asyncio.sleep(0.3)
    before = used()
    await asyncio.sleep(1.5)
    assert used() - before <= 0.06


async def test_a_rank_killed_in_a_step_fails_it_and_replay_gives_the_same_weights(
    learner: Any, running: Any, sequences: MakeSequences, tmp_path: Path
) -> None:
    learner.token = 7
    step = await next_step(learner)
    await learner.save(str(tmp_path / "checkpoint"))
    before = await learner.get()
    batches = [sequences(8, seed=20), sequences(60, seed=21)]
    await learner.train(step, batches[0])
    await learner.train(step + 1, batches[1], mini_batches=30)
    expected = (await learner.weights())[1]
    await learner.restore(str(tmp_path / "checkpoint"))
    await learner.train(step, batches[0])

    await learner.submit(step + 1, batches[1])
    operation = await learner.start_step(step + 1, batches[1], mini_batches=30)
    (rank,) = running.rank_pids()
    os.kill(rank, signal.SIGKILL)
    killed = time.monotonic()
    done = await learner.finished(operation)
    assert time.monotonic() - killed < 2
    assert done.error.code == CODE.UNAVAILABLE.value[0]
    assert "killed by SIGKILL" in done.error.message
    assert "replay" in done.error.message
    lost = await learner.get()
    assert lost.state == learner_pb2.GANG_STATE_RESTARTING
    assert "SIGKILL" in lost.detail
    with refused(CODE.UNAVAILABLE, "wait for READY"):
        await learner.weights()

    back = await learner.ready()
    assert (back.applied_step, back.applied_digest) == (step - 1, before.applied_digest)
    assert back.run_id == "run"
    with refused(CODE.FAILED_PRECONDITION, f"replay from {step}"):
        await learner.start_step(step + 1, batches[1])
    await learner.train(step, batches[0])
    await learner.train(step + 1, batches[1], mini_batches=30)
    assert (await learner.weights())[1] == expected
    assert (await learner.get()).applied_step == step + 1


def test_a_front_that_is_killed_takes_its_ranks_along(tiny_model: Any, launch_learner: Any, tmp_path: Path) -> None:
    """Killed while the rank still starts: the worst moment."""
    front = launch_learner(tmp_path, tiny_model(False))
    children = Path(f"/proc/{front.pid}/task/{front.pid}/children")
    give_up = time.monotonic() + 60
    while not (ranks := children.read_text().split()):
        assert time.monotonic() < give_up
        time.sleep(0.01)
    while b"troupe_learner.rank" not in Path(f"/proc/{ranks[0]}/cmdline").read_bytes():
        time.sleep(0.005)
    front.kill()
    front.wait(10)
    give_up = time.monotonic() + 30
    while any(psutil.pid_exists(int(rank)) for rank in ranks):
        assert time.monotonic() < give_up
        time.sleep(0.01)


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
    settings: dict[str, object], text: str, tiny_model: Any, launch_learner: Any, tmp_path: Path
) -> None:
    process: subprocess.Popen[bytes] = launch_learner(tmp_path, **({"model": tiny_model(False)} | settings))
    assert process.wait(60) != 0
    assert text in (tmp_path / "log").read_text()


def test_two_learners_cannot_share_a_work_folder(
    running: Any, tiny_model: Any, launch_learner: Any, tmp_path: Path
) -> None:
    process = launch_learner(tmp_path, tiny_model(False), work_dir=running.work_dir)
    assert process.wait(60) == 1
    assert "held by another learner" in (tmp_path / "log").read_text()

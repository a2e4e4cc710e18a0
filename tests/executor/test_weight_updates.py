"""Weight updates of real executors, tied and untied, pulled from a stub of the learner."""

import asyncio
import itertools

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from troupe.v1 import common_pb2, policy_pb2
from troupe_contracts.channel import connect

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROBE = [(index * 37) % 300 for index in range(60)]
FENCE = common_pb2.Fence(store_id="store", token=1)
numbers = itertools.count(1)


class Update:
    """The calls of one update, from a stub learner to an executor."""

    def __init__(self, executor, learner, folder, *, corrupted: str = "", fence=FENCE):
        self.executor, self.learner, self.fence = executor, learner, fence
        number = next(numbers)
        self.update_id = f"update-{number}"
        self.version = common_pb2.PolicyVersion(lineage="run", number=number)
        learner.folder, learner.corrupted, learner.version = folder, corrupted, self.version

    def begin_request(self) -> policy_pb2.BeginUpdateRequest:
        return policy_pb2.BeginUpdateRequest(
            fence=self.fence,
            update_id=self.update_id,
            replica_id=f"executor-{self.executor.tied}",
            manifest=self.learner.manifest(self.executor.tied),
            source=policy_pb2.WeightSource(learner_target=self.learner.target),
        )

    async def begin(self):
        return await self.executor.stub.BeginUpdate(self.begin_request())

    async def stage(self):
        return await self.executor.stub.StageWeights(
            policy_pb2.StageWeightsRequest(fence=self.fence, update_id=self.update_id)
        )

    async def commit(self, log_probs=None, bound=1e-4):
        probes = [policy_pb2.Probe(token_ids=PROBE, log_probs=log_probs)] if log_probs else []
        return await self.executor.stub.CommitUpdate(
            policy_pb2.CommitUpdateRequest(fence=self.fence, update_id=self.update_id, probes=probes, probe_bound=bound)
        )

    async def abort(self):
        return await self.executor.stub.AbortUpdate(
            policy_pb2.AbortUpdateRequest(fence=self.fence, update_id=self.update_id)
        )

    async def run(self, log_probs):
        await self.begin()
        await self.stage()
        return await self.commit(log_probs)


async def info_of(executor) -> policy_pb2.PolicyInfo:
    return await executor.stub.GetPolicy(policy_pb2.GetPolicyRequest())


async def health_of(executor) -> int:
    async with connect(executor.target) as channel:
        response = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="troupe.v1.Policy")
        )
    return response.status


async def reply_of(executor, seed=3) -> policy_pb2.GenerateResponse:
    request = policy_pb2.GenerateRequest(
        messages=[common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_USER, content="the sum of 3 and 4")],
        sampling=common_pb2.Sampling(temperature=1.0, max_tokens=24, seed=seed, training=True),
    )
    return await executor.stub.Generate(request)


async def refusal(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def generated(response) -> tuple[list[int], list[float]]:
    run = response.appended.runs[1]
    start = response.appended.runs[0].length
    return list(response.appended.token_ids[start : start + run.length]), list(run.log_probs)


async def test_after_a_commit_the_executor_generates_with_the_new_weights(
    executor, learner, tiny_model, reference_log_probs
):
    new = tiny_model(executor.tied, 8)
    wanted = reference_log_probs(new, PROBE)
    update = Update(executor, learner, new)
    await update.begin()
    assert (await info_of(executor)).state == policy_pb2.UPDATE_STATE_BEGUN
    staged = await update.stage()
    assert staged.staged_bytes == sum(tensor.byte_size for tensor in learner.manifest(executor.tied).tensors)
    info = await info_of(executor)
    assert info.state == policy_pb2.UPDATE_STATE_STAGED
    assert info.version != update.version
    committed = await update.commit(wanted)
    assert committed.version == update.version
    assert committed.probe_mean_error < 1e-4
    assert committed.probe_max_error < 1e-3
    assert await update.commit(wanted) == committed

    response = await reply_of(executor)
    assert response.version == update.version
    sampled, log_probs = generated(response)
    prompt = list(response.appended.token_ids[: response.prompt_tokens])
    expected = reference_log_probs(new, prompt + sampled)[len(prompt) - 1 :]
    assert log_probs == pytest.approx(expected, abs=1e-4)


async def test_a_second_update_takes_back_what_the_first_changed(executor, learner, tiny_model, reference_log_probs):
    old, new = tiny_model(executor.tied, 7), tiny_model(executor.tied, 8)
    await Update(executor, learner, old).run(reference_log_probs(old, PROBE))
    before = generated(await reply_of(executor))
    await Update(executor, learner, new).run(reference_log_probs(new, PROBE))
    between = generated(await reply_of(executor))
    await Update(executor, learner, old).run(reference_log_probs(old, PROBE))
    after = generated(await reply_of(executor))
    assert between != before
    assert after[0] == before[0]
    assert after[1] == pytest.approx(before[1], abs=1e-6)


async def test_a_corrupted_tensor_is_data_loss_and_the_version_before_goes_on(executor, learner, tiny_model):
    before = await info_of(executor)
    update = Update(executor, learner, tiny_model(executor.tied, 8), corrupted="model.layers.1.mlp.down_proj.weight")
    await update.begin()
    error = await refusal(update.stage())
    assert error.code() == grpc.StatusCode.DATA_LOSS
    assert "model.layers.1.mlp.down_proj.weight" in error.details()
    assert (await reply_of(executor)).version == before.version
    assert await health_of(executor) == health_pb2.HealthCheckResponse.SERVING
    error = await refusal(update.commit())
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    learner.corrupted = ""
    assert (await update.stage()).staged_bytes > 0
    await update.abort()
    info = await info_of(executor)
    assert info.state == policy_pb2.UPDATE_STATE_SERVING
    assert info.version == before.version


async def test_a_failed_probe_breaks_the_replica_and_the_next_update_mends_it(
    executor, learner, tiny_model, reference_log_probs
):
    old, new = tiny_model(executor.tied, 7), tiny_model(executor.tied, 8)
    wrong = Update(executor, learner, new)
    await wrong.begin()
    await wrong.stage()
    error = await refusal(wrong.commit(reference_log_probs(old, PROBE)))
    assert error.code() == grpc.StatusCode.DATA_LOSS
    assert "nats" in error.details()
    info = await info_of(executor)
    assert info.state == policy_pb2.UPDATE_STATE_BROKEN
    assert not info.HasField("version")
    assert await health_of(executor) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert (await refusal(reply_of(executor))).code() == grpc.StatusCode.UNAVAILABLE

    right = Update(executor, learner, new)
    await right.run(reference_log_probs(new, PROBE))
    assert (await info_of(executor)).state == policy_pb2.UPDATE_STATE_SERVING
    assert await health_of(executor) == health_pb2.HealthCheckResponse.SERVING
    assert (await reply_of(executor)).version == right.version


async def test_weights_are_pulled_from_a_store_too(untied_executor, learner, tiny_model, reference_log_probs):
    new = tiny_model(False, 8)
    update = Update(untied_executor, learner, new)
    request = update.begin_request()
    request.source.store_uri = f"file://{new}"
    await untied_executor.stub.BeginUpdate(request)
    await update.stage()
    assert (await update.commit(reference_log_probs(new, PROBE))).version == update.version


async def test_generations_under_way_end_before_new_weights_are_loaded(
    untied_executor, learner, tiny_model, reference_log_probs
):
    new = tiny_model(False, 8)
    await Update(untied_executor, learner, new).run(reference_log_probs(new, PROBE))
    update = Update(untied_executor, learner, new)
    await update.begin()
    await update.stage()
    before = (await info_of(untied_executor)).version
    running = [asyncio.ensure_future(reply_of(untied_executor, seed)) for seed in range(12)]
    await asyncio.sleep(0.02)
    committed = await update.commit(reference_log_probs(new, PROBE))
    results = await asyncio.gather(*running, return_exceptions=True)
    for result in results:
        if isinstance(result, grpc.aio.AioRpcError):
            assert result.code() == grpc.StatusCode.FAILED_PRECONDITION
            continue
        assert result.version in (before, committed.version)
        sampled, log_probs = generated(result)
        prompt = list(result.appended.token_ids[: result.prompt_tokens])
        expected = reference_log_probs(new, prompt + sampled)[len(prompt) - 1 :]
        assert log_probs == pytest.approx(expected, abs=1e-4)


async def test_one_update_is_open_at_a_time_unless_the_lease_is_newer(untied_executor, learner, tiny_model):
    first = Update(untied_executor, learner, tiny_model(False, 7))
    await first.begin()
    await first.begin()
    second = Update(untied_executor, learner, tiny_model(False, 7))
    error = await refusal(second.begin())
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert first.update_id in error.details()

    lease = common_pb2.Fence(store_id="other store", token=5)
    third = Update(untied_executor, learner, tiny_model(False, 7), fence=lease)
    assert (await refusal(third.begin())).code() == grpc.StatusCode.FAILED_PRECONDITION
    await first.abort()
    await first.abort()
    await third.begin()
    newer = common_pb2.Fence(store_id="other store", token=6)
    fourth = Update(untied_executor, learner, tiny_model(False, 7), fence=newer)
    await fourth.begin()
    assert (await refusal(third.stage())).code() == grpc.StatusCode.FAILED_PRECONDITION
    await fourth.abort()


async def test_unknown_updates_and_other_replicas_are_refused(untied_executor, learner, tiny_model):
    update = Update(untied_executor, learner, tiny_model(False, 7))
    for call in (update.stage(), update.commit(), update.abort()):
        assert (await refusal(call)).code() == grpc.StatusCode.NOT_FOUND
    request = update.begin_request()
    request.replica_id = "executor-elsewhere"
    error = await refusal(untied_executor.stub.BeginUpdate(request))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "executor-elsewhere" in error.details()


async def test_a_source_that_is_down_is_told_and_changes_nothing(untied_executor, learner, tiny_model):
    update = Update(untied_executor, learner, tiny_model(False, 7))
    for source in (
        policy_pb2.WeightSource(learner_target="127.0.0.1:1"),
        policy_pb2.WeightSource(store_uri="file:///nowhere"),
    ):
        request = update.begin_request()
        request.source.CopyFrom(source)
        await untied_executor.stub.BeginUpdate(request)
        error = await refusal(update.stage())
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND)
        await update.abort()
        update.update_id += "x"
    assert (await reply_of(untied_executor)).generated_tokens > 0


async def test_a_manifest_of_another_model_is_refused_by_name(untied_executor, learner, tiny_model):
    update = Update(untied_executor, learner, tiny_model(False, 7))

    async def details(change) -> str:
        request = update.begin_request()
        change(request.manifest)
        error = await refusal(untied_executor.stub.BeginUpdate(request))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        return error.details()

    def other_shape(manifest):
        manifest.tensors[0].shape[0] += 1
        manifest.tensors[0].byte_size += 4 * manifest.tensors[0].shape[1]

    assert "lm_head.weight" in await details(other_shape)
    assert "lacks" in await details(lambda manifest: manifest.tensors.pop())
    assert "has unknown" in await details(lambda manifest: manifest.tensors.add().CopyFrom(renamed(manifest)))
    assert "tied" in await details(lambda manifest: setattr(manifest, "tied_embeddings", True))
    assert "policy" in await details(lambda manifest: setattr(manifest, "policy_id", "another"))
    assert "sha256" in await details(lambda manifest: setattr(manifest.tensors[0], "sha256", b"short"))
    assert "dtype" in await details(lambda manifest: setattr(manifest.tensors[0], "dtype", "I3"))
    assert (await info_of(untied_executor)).state == policy_pb2.UPDATE_STATE_SERVING


def renamed(manifest: policy_pb2.WeightManifest) -> policy_pb2.TensorSpec:
    copy = policy_pb2.TensorSpec()
    copy.CopyFrom(manifest.tensors[0])
    copy.name = "model.extra"
    return copy


async def test_probes_are_checked_before_anything_is_loaded(untied_executor, learner, tiny_model):
    update = Update(untied_executor, learner, tiny_model(False, 7))
    await update.begin()
    await update.stage()
    before = (await info_of(untied_executor)).version
    for probe, bound in (
        (policy_pb2.Probe(token_ids=[1], log_probs=[]), 1.0),
        (policy_pb2.Probe(token_ids=[1, 2], log_probs=[0.0, 0.0]), 1.0),
        (policy_pb2.Probe(token_ids=[1, 2], log_probs=[float("nan")]), 1.0),
        (policy_pb2.Probe(token_ids=[1, 10**6], log_probs=[0.0]), 1.0),
        (policy_pb2.Probe(token_ids=[1] * 256, log_probs=[0.0] * 255), 1.0),
        (policy_pb2.Probe(token_ids=[1, 2], log_probs=[0.0]), 0.0),
    ):
        request = policy_pb2.CommitUpdateRequest(
            fence=FENCE, update_id=update.update_id, probes=[probe], probe_bound=bound
        )
        error = await refusal(untied_executor.stub.CommitUpdate(request))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    info = await info_of(untied_executor)
    assert info.state == policy_pb2.UPDATE_STATE_STAGED
    assert info.version == before
    await update.abort()

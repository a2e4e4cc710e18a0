"""An engine that fails, or never should have started: told, and out of rotation."""

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from troupe.v1 import common_pb2, policy_pb2, policy_pb2_grpc
from troupe_contracts.channel import connect

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Of the trial at start.
TRIAL_GENERATIONS = 32


def settings(model: Path) -> dict[str, str]:
    return {
        "TROUPE_MODEL": str(model),
        "TROUPE_LINEAGE": "start",
        "TROUPE_REPLICA_ID": "executor-0",
        "TROUPE_CONTEXT_LENGTH": "256",
        "TROUPE_KV_CACHE_GIB": "0.05",
    }


async def test_a_failed_engine_answers_unavailable_and_is_not_serving(tiny_model, start_service, tmp_path):
    script = str(Path(__file__).parent / "recording_executor.py")
    arguments = [script, str(tmp_path / "record"), str(TRIAL_GENERATIONS + 3)]
    service = await asyncio.to_thread(start_service("executor", arguments, settings(tiny_model(False))))
    request = policy_pb2.GenerateRequest(
        messages=[common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_USER, content="hello")],
        sampling=common_pb2.Sampling(temperature=1.0, max_tokens=200, seed=1, training=True),
    )
    async with connect(service.target) as channel:
        stub = policy_pb2_grpc.PolicyStub(channel)
        results = await asyncio.gather(*(stub.Generate(request, timeout=60) for _ in range(4)), return_exceptions=True)
        assert [result.code() for result in results] == [grpc.StatusCode.UNAVAILABLE] * 4
        assert "a kernel failed" in results[0].details()
        with pytest.raises(grpc.aio.AioRpcError, match="restart the service"):
            await stub.Generate(request, timeout=60)
        status = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert status.status == health_pb2.HealthCheckResponse.NOT_SERVING
        info = await stub.GetPolicy(policy_pb2.GetPolicyRequest())
        assert info.state == policy_pb2.UPDATE_STATE_BROKEN


@pytest.mark.long
async def test_an_engine_below_the_floor_does_not_start(tiny_model, start_service):
    too_much = settings(tiny_model(False)) | {"TROUPE_MIN_TOKENS_PER_SECOND": "1e9"}
    waiting = start_service("executor", ["-m", "troupe_executor"], too_much)
    with pytest.raises(pytest.fail.Exception, match=r"(?s)status 1.*the floor is 1e\+09") as caught:
        await asyncio.to_thread(waiting)
    assert "Traceback" not in str(caught.value)

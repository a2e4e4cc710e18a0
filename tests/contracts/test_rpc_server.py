"""One real server and one real channel in this process: what every service gets from the contracts."""

import asyncio
import json
import re
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from troupe.v1 import policy_pb2, policy_pb2_grpc, training_pb2, training_pb2_grpc
from troupe_contracts import errors, log
from troupe_contracts.calls import CallLimits
from troupe_contracts.channel import connect
from troupe_contracts.health import Health
from troupe_contracts.server import ListenError, Running, start
from troupe_contracts.settings import ServiceSettings

SERVICES = ("troupe.v1.Policy", "troupe.v1.Training")
RAISED: dict[str, Exception] = {
    "invalid": errors.InvalidArgument("sampling.temperature", "is 0.5: send 1 where training is true"),
    "several": errors.InvalidArgument.every([("a", "is wrong"), ("b", "is worse")]),
    "missing": errors.NotFound("run", "r-7", "list them with ListRuns"),
    "wrong moment": errors.FailedPrecondition("policy starter", "run r-1 holds it; cancel that run"),
    "full": errors.Exhausted("all 8 slots are taken", 1.5),
    "away": errors.Unavailable("no engine"),
    "contradicts": errors.Aborted("step 4 was applied with another digest"),
    "corrupt": errors.DataLoss("tensor w has another digest"),
    "long": errors.Unavailable("é" * 100_000),
    "defect": KeyError("a secret of the server"),
}


class Policy(policy_pb2_grpc.PolicyServicer):  # the rest stays unimplemented
    """Raises what the conversation id names; otherwise echoes the ids that it was called with."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def Generate(self, request: policy_pb2.GenerateRequest, context: Any) -> policy_pb2.GenerateResponse:
        if request.conversation_id in RAISED:
            raise RAISED[request.conversation_id]
        if request.conversation_id == "sleep":
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if request.conversation_id == "abort":
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "by hand")
        if request.conversation_id == "ids":
            return policy_pb2.GenerateResponse(text=json.dumps(structlog.contextvars.get_contextvars()))
        return policy_pb2.GenerateResponse(text=request.messages[0].content)


class Training(training_pb2_grpc.TrainingServicer):
    async def WatchRun(
        self, request: training_pb2.WatchRunRequest, context: Any
    ) -> AsyncIterator[training_pb2.RunEvent]:
        for event_id in range(3):
            yield training_pb2.RunEvent(event_id=event_id)
        if request.run_id == "idle":
            await asyncio.sleep(30)
        raise errors.NotFound("run", request.run_id)


class Served:
    def __init__(self, running: Running, channel: grpc.aio.Channel, policy: Policy) -> None:
        self.running, self.channel, self.servicer = running, channel, policy
        self.policy: Any = policy_pb2_grpc.PolicyStub(channel)
        self.training: Any = training_pb2_grpc.TrainingStub(channel)

    async def health(self, service: str = "") -> Any:
        request = health_pb2.HealthCheckRequest(service=service)
        return (await health_pb2_grpc.HealthStub(self.channel).Check(request)).status

    async def metrics(self) -> str:
        def read() -> str:
            with urllib.request.urlopen(f"http://{self.running.metrics}/metrics") as answer:
                return str(answer.read().decode())

        return await asyncio.to_thread(read)


@pytest_asyncio.fixture
async def served() -> AsyncIterator[Served]:
    policy = Policy()  # type: ignore[abstract]

    def register(server: grpc.aio.Server) -> None:
        policy_pb2_grpc.add_PolicyServicer_to_server(policy, server)
        training_pb2_grpc.add_TrainingServicer_to_server(Training(), server)  # type: ignore[abstract]

    running = await start(ServiceSettings(), register, SERVICES, limits=CallLimits(unary=0.3, idle=0.3))
    async with connect(running.target, default_deadline=20) as channel:
        yield Served(running, channel, policy)
    await running.drain(0)


async def failure(served: Served, conversation_id: str, **options: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.policy.Generate(policy_pb2.GenerateRequest(conversation_id=conversation_id), **options)
    return caught.value


@pytest.mark.parametrize(
    ("raised", "described", "infrastructure"),
    [
        ("invalid", "INVALID_ARGUMENT: sampling.temperature: is 0.5: send 1 where training is true", False),
        ("several", "INVALID_ARGUMENT: a: is wrong; b: is worse", False),
        ("missing", "NOT_FOUND: there is no run 'r-7'; list them with ListRuns", False),
        ("wrong moment", "FAILED_PRECONDITION: policy starter: run r-1 holds it; cancel that run", False),
        ("full", "RESOURCE_EXHAUSTED: all 8 slots are taken; retry in 1.5 s", True),
        ("away", "UNAVAILABLE: no engine", True),
        ("contradicts", "ABORTED: step 4 was applied with another digest", True),
        ("corrupt", "DATA_LOSS: tensor w has another digest", True),
        ("abort", "OUT_OF_RANGE: by hand", False),
    ],
)
async def test_each_typed_error_arrives_as_one_readable_line(
    served: Served, raised: str, described: str, infrastructure: bool
) -> None:
    error = await failure(served, raised)
    assert errors.describe(error) == described
    assert errors.is_infrastructure(error) is infrastructure


async def test_overload_carries_its_delay_as_detail_and_as_pushback(served: Served) -> None:
    error = await failure(served, "full")
    assert errors.retry_delay(error) == 1.5
    assert dict(error.trailing_metadata())[errors.PUSHBACK_KEY] == "1500"


async def test_an_unexpected_exception_gives_an_id_to_the_client_and_the_traceback_to_the_log(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure(service="policy")
    error = await failure(served, "defect")
    text = errors.describe(error)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in text
    found = re.search(r"error_id (\w+)", text)
    assert found is not None
    line = next(json.loads(line) for line in capsys.readouterr().err.splitlines() if found[1] in line)
    assert "a secret of the server" in line["exception"]
    assert line["service"] == "policy"


async def test_an_error_with_a_long_text_is_cut_and_still_typed(served: Served) -> None:
    error = await failure(served, "long")
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "(100000 characters)" in errors.describe(error)


async def test_a_relayed_error_keeps_code_details_and_delay(served: Served) -> None:
    relayed = errors.Relayed(await failure(served, "full"), "executor at 127.0.0.1:1")
    assert relayed.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert relayed.message == "executor at 127.0.0.1:1: all 8 slots are taken"
    assert relayed.retry_after_seconds == 1.5


async def test_messages_larger_than_grpcs_default_pass_both_ways(served: Served) -> None:
    text = "x" * (20 * 2**20)
    message = {"role": "MESSAGE_ROLE_USER", "content": text}
    request = policy_pb2.GenerateRequest(messages=[message])  # type: ignore[list-item]
    assert (await served.policy.Generate(request)).text == text


async def test_a_message_above_the_limit_is_refused_and_the_connection_survives(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.policy.Generate(policy_pb2.GenerateRequest(conversation_id="x" * (65 * 2**20)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await failure(served, "away")).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_burst_of_calls_loses_none(served: Served) -> None:
    request = policy_pb2.GenerateRequest(messages=[{"content": "x"}])  # type: ignore[list-item]
    answers = await asyncio.gather(*(served.policy.Generate(request) for _ in range(2500)))
    assert len(answers) == 2500


async def test_a_clients_deadline_cancels_the_servers_work(served: Served) -> None:
    error = await failure(served, "sleep", timeout=0.1)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(5):
        await served.servicer.cancelled.wait()


async def test_a_unary_call_without_a_deadline_gets_the_servers(served: Served) -> None:
    async with grpc.aio.insecure_channel(served.running.target) as bare:
        stub: Any = policy_pb2_grpc.PolicyStub(bare)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(policy_pb2.GenerateRequest(conversation_id="sleep"))
    assert "0.3 s, the limit of a call without a deadline" in errors.describe(caught.value)


async def test_the_channels_default_deadline_ends_a_unary_call(served: Served) -> None:
    async with connect(served.running.target, default_deadline=0.1) as hasty:
        stub: Any = policy_pb2_grpc.PolicyStub(hasty)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(policy_pb2.GenerateRequest(conversation_id="sleep"))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_stream_keeps_its_messages_when_it_ends_in_an_error(served: Served) -> None:
    call = served.training.WatchRun(training_pb2.WatchRunRequest(run_id="r"))
    assert [(await call.read()).event_id for _ in range(3)] == [0, 1, 2]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_stream_on_which_nothing_moves_is_ended(served: Served) -> None:
    call = served.training.WatchRun(training_pb2.WatchRunRequest(run_id="idle"))
    for _ in range(3):
        await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert "no message on the stream WatchRun for 0.3 s" in errors.describe(caught.value)


async def test_bound_ids_reach_the_servers_log_context_and_no_other_call(served: Served) -> None:
    request = policy_pb2.GenerateRequest(conversation_id="ids")
    with log.bound(run="läuft 1", step=3, private="stays here"):
        inside = json.loads((await served.policy.Generate(request)).text)
    outside = json.loads((await served.policy.Generate(request)).text)
    assert inside == {"run": "läuft 1", "step": "3", "trace": inside["trace"]}
    assert outside == {"trace": outside["trace"]}


async def test_a_trace_goes_on_in_the_calls_of_a_call_and_begins_in_one_that_comes_from_outside(served: Served) -> None:
    request = policy_pb2.GenerateRequest(conversation_id="ids")

    async def seen(**metadata: str) -> str:
        text = (await served.policy.Generate(request, metadata=tuple(metadata.items()))).text
        return str(json.loads(text)["trace"])

    trace = log.new_trace()
    with log.bound(trace=trace):
        assert await seen() == trace
    assert await seen(traceparent=f"00-{trace}-00f067aa0ba902b7-01") == trace
    begun = {await seen(), await seen(), await seen(traceparent="00-short-1-00"), await seen(traceparent=trace)}
    begun.add(await seen(traceparent=f"00-{'0' * 32}-00f067aa0ba902b7-01"))
    assert len(begun) == 5
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in begun)
    assert trace not in begun


async def test_a_method_that_is_not_served_is_unimplemented(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.policy.AbortUpdate(policy_pb2.AbortUpdateRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_calls_are_counted_and_timed_by_method_and_code(served: Served) -> None:
    await failure(served, "missing")
    text = await served.metrics()
    labels = 'code="NOT_FOUND",method="Generate",service="troupe.v1.Policy"'
    assert f"troupe_rpc_calls_total{{{labels}}}" in text
    assert f"troupe_rpc_seconds_count{{{labels}}}" in text


async def test_health_is_told_per_service_and_for_the_whole(served: Served) -> None:
    for service in ("", *SERVICES):
        assert await served.health(service) == health_pb2.HealthCheckResponse.SERVING
    await served.running.health.set_serving(False)
    for service in ("", *SERVICES):
        assert await served.health(service) == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.health("troupe.v1.Nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services(served: Served) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    await call.done_writing()
    names = {service.name for service in (await call.read()).list_services_response.service}
    assert names >= {*SERVICES, "grpc.health.v1.Health"}


async def test_a_taken_port_is_an_error_that_names_it(served: Served) -> None:
    for field in ("listen", "metrics"):
        taken = served.running.target if field == "listen" else served.running.metrics
        settings = ServiceSettings.model_validate({field: taken})
        with pytest.raises(ListenError, match=taken):
            await start(settings, lambda _server: None, ())


async def test_a_service_that_starts_out_of_rotation_is_not_serving_until_it_says_so() -> None:
    health = Health(serving=False)
    running = await start(ServiceSettings(), lambda _server: None, SERVICES, health=health)
    async with connect(running.target) as channel:
        served = Served(running, channel, Policy())  # type: ignore[abstract]
        assert await served.health(SERVICES[0]) == health_pb2.HealthCheckResponse.NOT_SERVING
        await health.set_serving(True)
        assert await served.health(SERVICES[0]) == health_pb2.HealthCheckResponse.SERVING
    await running.drain(0)


async def test_bytes_that_are_no_message_are_an_invalid_argument(served: Served) -> None:
    generate = served.channel.unary_unary("/troupe.v1.Policy/Generate", request_serializer=bytes)
    watch = served.channel.unary_stream("/troupe.v1.Training/WatchRun", request_serializer=bytes)
    for call in (generate(b"\xff\xff"), watch(b"\xff\xff").read()):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert errors.describe(caught.value).startswith("INVALID_ARGUMENT: request: is not the message")


async def test_a_call_that_ends_without_its_message_is_an_invalid_argument(served: Served) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        for each in ():
            yield each

    generate = served.channel.stream_unary("/troupe.v1.Policy/Generate", request_serializer=bytes)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(nothing())
    assert errors.describe(caught.value) == "INVALID_ARGUMENT: request: is missing: the call ended without one"

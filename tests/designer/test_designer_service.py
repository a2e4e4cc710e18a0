"""Designers as real processes: one that forwards to an executor, one with an engine of its own."""

import asyncio
import urllib.request

import grpc
import pytest
import pytest_asyncio
from troupe.v1 import (
    common_pb2,
    designer_pb2,
    designer_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    transcript_pb2,
)
from troupe_contracts.channel import connect

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Served:
    """Stubs for a running designer, and the target it forwards to."""

    def __init__(self, channel, metrics, owner=""):
        self.designer = designer_pb2_grpc.DesignerStub(channel)
        self.policy = policy_pb2_grpc.PolicyStub(channel)
        self.metrics = metrics
        self.owner = owner

    def exported(self) -> dict[str, float]:
        """What it exports, by name with labels."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(number) for name, _, number in (line.rpartition(" ") for line in lines) if name[:1] != "#"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def designers(tiny_model, start_service, tmp_path_factory):
    """(forwarder to an executor, designer with its own engine); both engines hold the same weights."""
    prompt = tmp_path_factory.mktemp("prompt")
    (prompt / "system.txt").write_text("Design.")
    (prompt / "user.txt").write_text("{question}")
    engine = {
        "TROUPE_MODEL": str(tiny_model(False)),
        "TROUPE_LINEAGE": "start",
        "TROUPE_CONTEXT_LENGTH": "256",
        "TROUPE_KV_CACHE_GIB": "0.05",
    }
    own = start_service(
        "designer",
        ["-m", "troupe_designer"],
        engine | {"TROUPE_ENGINE": "vllm", "TROUPE_REPLICA_ID": "designer-own", "TROUPE_PROMPT": str(prompt)},
    )
    executor = await asyncio.to_thread(
        start_service("executor", ["-m", "troupe_executor"], engine | {"TROUPE_REPLICA_ID": "executor-0"})
    )
    forwarder = await asyncio.to_thread(
        start_service(
            "designer",
            ["-m", "troupe_designer"],
            {
                "TROUPE_REMOTE_TARGET": executor.target,
                "TROUPE_REPLICA_ID": "designer-0",
                "TROUPE_PROMPT": str(prompt),
            },
        )
    )
    own_service = await asyncio.to_thread(own)
    async with connect(forwarder.target) as forwarding, connect(own_service.target) as owning:
        yield Served(forwarding, forwarder.metrics, executor.target), Served(owning, own_service.metrics)


@pytest.fixture(params=[0, 1], ids=["forwarder", "own engine"])
def designer(request, designers) -> Served:
    return designers[request.param]


@pytest.fixture
def forwarder(designers) -> Served:
    return designers[0]


def request_for(*ids: str, **changes) -> designer_pb2.ProposeDesignsRequest:
    fields = {
        "task_id": "t",
        "question": "What is 2 + 2?",
        "task_type": common_pb2.TASK_TYPE_MATH,
        "design_ids": ids,
        "sampling": common_pb2.Sampling(temperature=1.0, max_tokens=32, seed=100, training=True),
    }
    return designer_pb2.ProposeDesignsRequest(**(fields | changes))


async def propose(served: Served, request) -> dict[str, designer_pb2.Design]:
    return {response.design.design_id: response.design async for response in served.designer.ProposeDesigns(request)}


async def test_each_design_asked_for_is_streamed_once_with_its_transcript(designer):
    ids = [f"d{index}" for index in range(6)]
    responses = [response.design async for response in designer.designer.ProposeDesigns(request_for(*ids))]
    assert sorted(design.design_id for design in responses) == ids
    for design in responses:
        kinds = [run.kind for run in design.transcript.runs]
        assert kinds[:2] == [
            transcript_pb2.TOKEN_RUN_KIND_INSERTED,
            transcript_pb2.TOKEN_RUN_KIND_GENERATED,
        ]
        assert [message.content for message in design.transcript.messages] == [
            "Design.",
            "What is 2 + 2?",
            design.text,
        ]
        # A random policy writes no script: that is a design all the same.
        assert [problem.kind for problem in design.problems] == [designer_pb2.SCRIPT_PROBLEM_KIND_NO_SCRIPT]


async def test_designs_are_counted_by_the_designer_and_tokens_where_they_are_sampled(designers):
    counted = 'troupe_designer_designs_total{script="rejected"}'
    for served in designers:
        before = served.exported().get(counted, 0)
        designs = await propose(served, request_for("a", "b"))
        assert served.exported()[counted] == before + 2
    forwarder, own = (served.exported() for served in designers)
    assert not [name for name in forwarder if name.startswith("troupe_policy_")]
    sampled = sum(design.transcript.runs[1].length for design in designs.values())
    (policy,) = [name for name in own if name.startswith("troupe_policy_version{")]
    assert 'lineage="start"' in policy
    assert own['troupe_policy_generated_tokens_total{policy="policy"}'] >= sampled > 0
    assert own['troupe_policy_in_flight{policy="policy"}'] == 0


async def test_two_engines_with_the_same_weights_sample_the_same_designs(designers):
    ids = ["a", "b", "c"]
    shared, own = [await propose(served, request_for(*ids)) for served in designers]
    assert {key: list(design.transcript.token_ids) for key, design in shared.items()} == {
        key: list(design.transcript.token_ids) for key, design in own.items()
    }
    assert len({tuple(design.transcript.token_ids) for design in shared.values()}) == len(ids)


async def test_seeds_follow_the_order_of_the_ids(forwarder):
    together = await propose(forwarder, request_for("a", "b"))
    later = request_for("b", sampling=common_pb2.Sampling(temperature=1.0, max_tokens=32, seed=101, training=True))
    alone = await propose(forwarder, later)
    assert alone["b"] == together["b"]


async def test_a_question_that_does_not_fit_is_a_design_with_that_problem(designer):
    (design,) = (await propose(designer, request_for("d", question="word " * 400))).values()
    assert [problem.kind for problem in design.problems] == [designer_pb2.SCRIPT_PROBLEM_KIND_CONTEXT_OVERFLOW]
    assert design.stop_reason == transcript_pb2.STOP_REASON_CONTEXT_OVERFLOW
    assert not design.transcript.token_ids


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"question": " "}, "question"),
        ({"task_type": common_pb2.TASK_TYPE_UNSPECIFIED}, "task_type"),
        ({"design_ids": []}, "design_ids"),
        ({"design_ids": ["a", "a"]}, "design_ids"),
        ({"design_ids": [""]}, "design_ids"),
        ({"design_ids": [str(index) for index in range(257)]}, "design_ids"),
        ({"sampling": None}, "sampling"),
        ({"sampling": common_pb2.Sampling(temperature=0.5, training=True)}, "sampling.temperature"),
        ({"version": common_pb2.PolicyVersion(number=1)}, "version.lineage"),
    ],
)
async def test_a_bad_field_is_named(designer, changes, field):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await propose(designer, request_for("d", **changes))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert f"{field}:" in caught.value.details()


async def test_a_version_that_is_not_loaded_ends_the_stream(designer):
    wanted = common_pb2.PolicyVersion(lineage="elsewhere", number=4)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await propose(designer, request_for("a", "b", version=wanted))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "elsewhere@4" in caught.value.details()


async def test_weight_calls_to_a_forwarder_name_the_owner(forwarder):
    for call, request in (
        (forwarder.policy.BeginUpdate, policy_pb2.BeginUpdateRequest()),
        (forwarder.policy.StageWeights, policy_pb2.StageWeightsRequest()),
        (forwarder.policy.CommitUpdate, policy_pb2.CommitUpdateRequest()),
        (forwarder.policy.AbortUpdate, policy_pb2.AbortUpdateRequest()),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(request)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert forwarder.owner in caught.value.details()


async def test_a_forwarder_says_whose_policy_it_serves(designers):
    shared, own = [await served.policy.GetPolicy(policy_pb2.GetPolicyRequest()) for served in designers]
    assert shared.owner == designers[0].owner
    assert not shared.accepts_updates
    assert shared.returns_tokens
    assert shared.replica_id == "designer-0"
    assert own.owner == ""
    assert own.accepts_updates
    assert shared.tokenizer_digest == own.tokenizer_digest
    assert shared.architecture_digest == own.architecture_digest


async def test_the_forwarder_generates_as_its_owner_does(designers):
    request = policy_pb2.GenerateRequest(
        messages=[common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_USER, content="hello")],
        sampling=common_pb2.Sampling(temperature=1.0, max_tokens=8, seed=1, training=True),
    )
    async with connect(designers[0].owner) as channel:
        direct = await policy_pb2_grpc.PolicyStub(channel).Generate(request)
    assert await designers[0].policy.Generate(request) == direct


async def test_a_cancelled_proposal_frees_the_engine(designer):
    call = designer.designer.ProposeDesigns(
        request_for(
            *(str(index) for index in range(64)),
            sampling=common_pb2.Sampling(temperature=1.0, max_tokens=200, seed=1, training=True),
        )
    )
    await asyncio.sleep(0.1)
    call.cancel()
    for _ in range(100):
        info = await designer.policy.GetPolicy(policy_pb2.GetPolicyRequest())
        if info.in_flight == 0:
            return
        await asyncio.sleep(0.05)
    pytest.fail("generations of a cancelled proposal went on")


async def test_a_forwarder_to_nowhere_says_unavailable(start_service):
    service = await asyncio.to_thread(
        start_service("designer", ["-m", "troupe_designer"], {"TROUPE_REMOTE_TARGET": "127.0.0.1:1"})
    )
    async with connect(service.target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await propose(Served(channel, ""), request_for("d"))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "127.0.0.1:1" in caught.value.details()

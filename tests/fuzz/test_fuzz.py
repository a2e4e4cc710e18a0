"""Fuzzed messages to every RPC of every service: no crash, no hang, no fault of the server's for input that is bad.

200 messages for each RPC, 10,000 with --slow. TROUPE_FUZZ_SEED makes other messages; a failure
prints seed and number of each call, and TROUPE_FUZZ_NUMBER makes that one call alone.
"""

from __future__ import annotations

import importlib
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import grpc
import pytest
from fuzzing import gang_front
from fuzzing.calls import FAULTS, Ending, Method, fuzz, unharmed
from fuzzing.messages import payload
from fuzzing.states import ROUND, ROUND_OF_MANY, States
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from troupe.v1 import (
    common_pb2,
    designer_pb2,
    designer_pb2_grpc,
    evaluation_pb2,
    evaluation_pb2_grpc,
    gang_pb2,
    gang_pb2_grpc,
    learner_pb2,
    learner_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
    solver_pb2,
    solver_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)

PROTOS = Path(__file__).parents[2] / "proto" / "troupe" / "v1"
FEW, MANY = 200, 10_000
SCRIPT = (
    'from workflow import AgentNode, Workflow\nw = Workflow()\nw.add_node(AgentNode("A", "Solve."))\nw.run(question)\n'
)
USER = common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_USER, content="What is 6 * 7?")
SAMPLING = common_pb2.Sampling(temperature=1.0, max_tokens=8, seed=1)
MATH = common_pb2.TASK_TYPE_MATH
ECHO = sandbox_pb2.StdinCase(stdin="1\n", expected_stdout="1\n")
STDIN = sandbox_pb2.StdinTests(cases=[ECHO], checker=sandbox_pb2.CHECKER_TOKENS)
PROGRAM = sandbox_pb2.RunTestsRequest(job_id="j", solution="print(input())", stdin_tests=STDIN)
START = sandbox_pb2.StartWorkflow(script=SCRIPT, question="q", task_type=MATH, seed=1)
TURN = policy_pb2.GenerateRequest(conversation_id="c", messages=[USER], sampling=SAMPLING)
DESIGNS = designer_pb2.ProposeDesignsRequest(
    task_id="t", question="q", task_type=MATH, design_ids=["d1", "d2"], sampling=SAMPLING
)
JOB = evaluation_pb2.CreateEvalJobRequest(
    dataset_name="held.jsonl",
    dataset=b'{"id": "a", "task_type": "math", "question": "q", "answer": "1"}\n',
    samples=1,
    sampling=SAMPLING,
)
SOLVE = solver_pb2.SolveRequest(question="1 + 1?", task_type=MATH, sampling=SAMPLING)
MEMBER = gang_pb2.JoinRequest(member=gang_pb2.GangMember(node_rank=1, pod="learner-1", common=gang_front.COMMON))
SAID = [
    gang_pb2.JoinRequest(said=gang_pb2.RankWord(generation=gang_front.GENERATION, rank=1, word=word))
    for word in (b'{"kind": "progress", "value": 0.5}', b"[]", b"[" * 100_000, b"no JSON")
]
ENDED = gang_pb2.RankEnd(generation=gang_front.GENERATION, rank=1, how="ended with status 1")
PIECE = gang_pb2.FilePiece(generation=gang_front.GENERATION, name="state/rank-1.safetensors", data=b"a part", last=True)
CONFIG = "steps: 1\nstages: [{train: both, steps: 1}]\ndataset: {train: nowhere.jsonl}\n"

# Requests that are right, or nearly: half of the fuzzed ones begin as one of them. Those that need a state are in `states`.
GOOD: dict[str, Sequence[Message]] = {
    "troupe.v1.Policy/Generate": [TURN],
    "troupe.v1.Policy/GetPolicy": [policy_pb2.GetPolicyRequest()],
    "troupe.v1.Designer/ProposeDesigns": [DESIGNS],
    "troupe.v1.Sandbox/RunTests": [PROGRAM],
    "troupe.v1.Sandbox/RunWorkflow": [sandbox_pb2.RunWorkflowRequest(start=START)],
    "troupe.v1.Learner/Score": [
        learner_pb2.ScoreRequest(policy_id="p1", sequences=[learner_pb2.ScoreSequence(token_ids=[1, 2, 3])])
    ],
    "troupe.v1.Learner/GetLearner": [learner_pb2.GetLearnerRequest(policy_id="p1")],
    "troupe.v1.Training/DescribeConfig": [training_pb2.DescribeConfigRequest(config=CONFIG)],
    "troupe.v1.Evaluation/CreateEvalJob": [JOB],
    "troupe.v1.Solver/Solve": [SOLVE],
    "troupe.v1.Gang/Join": [
        MEMBER,
        *SAID,
        gang_pb2.JoinRequest(ended=ENDED),
        gang_pb2.JoinRequest(piece=PIECE),
        gang_pb2.JoinRequest(receipt=gang_pb2.FileReceipt(generation=gang_front.GENERATION, name="batch")),
    ],
}
# What a stream of requests has to begin with.
OPENINGS: dict[str, Message] = {
    "troupe.v1.Sandbox/RunWorkflow": sandbox_pb2.RunWorkflowRequest(start=START),
    "troupe.v1.Gang/Join": MEMBER,
}
# Codes of faults that a contract gives for what is fuzzed, and why.
BY_CONTRACT: dict[str, dict[grpc.StatusCode, str]] = {
    "troupe.v1.Policy/CommitUpdate": {
        grpc.StatusCode.DATA_LOSS: "the weights do not give the log-probabilities of the probes that came with the request"
    },
}
# Who serves what.
SERVED = {
    "executor": [policy_pb2.DESCRIPTOR],
    "designer": [designer_pb2.DESCRIPTOR, policy_pb2.DESCRIPTOR],
    "sandbox": [sandbox_pb2.DESCRIPTOR],
    "learner": [learner_pb2.DESCRIPTOR],
    "gang": [gang_pb2.DESCRIPTOR],
    "orchestrator": [training_pb2.DESCRIPTOR, evaluation_pb2.DESCRIPTOR, solver_pb2.DESCRIPTOR],
}
RPCS = [
    pytest.param(service, method, id=f"{service}-{method.name}")
    for service, files in SERVED.items()
    for file in files
    for described in file.services_by_name.values()
    for method in described.methods
]


def joins(channel: grpc.Channel) -> None:
    """An agent joins, and leaves once it was taken."""
    taken = threading.Event()

    def says() -> Iterator[gang_pb2.JoinRequest]:
        yield MEMBER
        taken.wait(60)

    call = gang_pb2_grpc.GangStub(channel).Join(says(), timeout=60)
    next(call)
    taken.set()
    call.cancel()


# Good requests that must be answered after all that.
ASKED_AFTERWARDS: dict[str, Callable[[grpc.Channel], object]] = {
    "executor": lambda channel: policy_pb2_grpc.PolicyStub(channel).Generate(TURN, timeout=60),
    "designer": lambda channel: list(designer_pb2_grpc.DesignerStub(channel).ProposeDesigns(DESIGNS, timeout=60)),
    "sandbox": lambda channel: list(sandbox_pb2_grpc.SandboxStub(channel).RunTests(PROGRAM, timeout=60)),
    "learner": lambda channel: learner_pb2_grpc.LearnerStub(channel).GetLearner(
        learner_pb2.GetLearnerRequest(policy_id="p1"), timeout=60
    ),
    "gang": joins,
    "orchestrator": lambda channel: (
        training_pb2_grpc.TrainingStub(channel).ListRuns(training_pb2.ListRunsRequest(), timeout=60),
        evaluation_pb2_grpc.EvaluationStub(channel).ListEvalJobs(evaluation_pb2.ListEvalJobsRequest(), timeout=60),
        list(solver_pb2_grpc.SolverStub(channel).Solve(SOLVE, timeout=60)),
    ),
}


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("service", "rpc"), RPCS)
async def test_fuzzed_messages_are_answered_and_never_with_a_fault_of_the_server(
    request: pytest.FixtureRequest, deployment, states: States, service: str, rpc: MethodDescriptor
) -> None:
    seed = os.environ.get("TROUPE_FUZZ_SEED", "0")
    one = os.environ.get("TROUPE_FUZZ_NUMBER")
    numbers = range(MANY if request.config.getoption("--slow") else FEW) if one is None else [int(one)]
    name = f"{rpc.containing_service.full_name}/{rpc.name}"
    target = deployment.target(service)
    if states.has(service, name):
        endings = await in_rounds(states, service, rpc, target, seed, numbers)
    else:
        endings = await fuzz(target, Method(rpc, GOOD.get(name, ()), OPENINGS.get(name)), seed, numbers)
    print(f"{service} {name}, seed {seed}: {dict(Counter(ending.code.name for ending in endings))}")
    assert deployment.dead() == []
    assert [str(ending) for ending in endings if is_wrong(ending)][:20] == []
    with grpc.insecure_channel(target) as channel:
        ASKED_AFTERWARDS[service](channel)


def test_no_rpc_of_the_contracts_is_left_out() -> None:
    modules = [importlib.import_module(f"troupe.v1.{path.stem}_pb2") for path in PROTOS.glob("*.proto")]
    services = [service for module in modules for service in module.DESCRIPTOR.services_by_name.values()]
    contracts = {method.full_name for service in services for method in service.methods}
    assert {rpc.values[1].full_name for rpc in RPCS} == contracts


async def in_rounds(
    states: States, service: str, rpc: MethodDescriptor, target: str, seed: str, numbers: Sequence[int]
) -> list[Ending]:
    """Fuzzed calls, each few of them in a state in which good ones succeed; that is tried first."""
    name = f"{rpc.containing_service.full_name}/{rpc.name}"
    for which in range(len(states.found(service, name, -1).good)):
        found = states.found(service, name, -2 - which)
        ending = await unharmed(target, Method(rpc, found.good, found.opening), which)
        assert ending.code is grpc.StatusCode.OK or ending.code in BY_CONTRACT.get(name, {}), str(ending)
    endings: list[Ending] = []
    # A state takes seconds: ten for a few, a hundred for many.
    size = ROUND if len(numbers) <= FEW else ROUND_OF_MANY
    for number, of_round in groupby(numbers, lambda each: each // size):
        found = states.found(service, name, number)
        method, made = Method(rpc, found.good, found.opening), list(of_round)
        endings += await fuzz(target, method, seed, made)
        begun = rpc.name == "BeginUpdate"
        states.leave(service, [sent for each in made for sent in method.requests(seed, each)] if begun else [])
    return endings


def is_wrong(ending: Ending) -> bool:
    """A fault of the server's that the contract does not give, or a call that did not end."""
    ends_badly = ending.code in FAULTS or ending.code is grpc.StatusCode.DEADLINE_EXCEEDED
    return ends_badly and ending.code not in BY_CONTRACT.get(ending.method, {})


def test_the_same_seed_makes_the_same_messages_and_most_kinds_of_damage_are_made() -> None:
    kind = policy_pb2.GenerateRequest.DESCRIPTOR
    made = [payload(random.Random(f"s/{number}"), kind, [TURN]) for number in range(500)]
    assert made == [payload(random.Random(f"s/{number}"), kind, [TURN]) for number in range(500)]
    unreadable = 0
    for written in made:
        try:
            policy_pb2.GenerateRequest.FromString(written)
        except Exception:
            unreadable += 1
    assert 10 < unreadable < 100
    assert len(set(made)) > 300

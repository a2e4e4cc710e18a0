"""What the orchestrator costs with thousands of executions in flight: CPU a turn, memory an execution, and who waits.

    python benchmarks/orchestrator.py --executions 100 1000 10000

Engines, designers and sandboxes are stubs in processes of their own, so that the CPU counted here is the orchestrator's
alone: a stub sandbox runs no script and asks for a fixed number of turns, one after another; a stub engine waits, and
answers with a fixed number of tokens. Everything else is real: channels, admission, conversations, provenance, grading of
plain numbers, trees. Not here: the store, Parquet, credit, code tests, and a real engine's time.

For each number in flight a process of its own rolls out that many executions, 16 for each task, with room for all of them at
once; `waiting` is rolled out with room for a tenth. The rival, `bare gRPC`, makes the same calls on the same channels and
does nothing else with them: what is above it is ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
from troupe.v1 import (
    common_pb2,
    designer_pb2,
    designer_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
    transcript_pb2,
)
from troupe_contracts.wire import SERVER_OPTIONS
from troupe_orchestrator.collector import look_seldom
from troupe_orchestrator.datasets.task import MathReference, Task
from troupe_orchestrator.fleet import PolicyFleet, SandboxFleet
from troupe_orchestrator.grading.workers import MathGrader
from troupe_orchestrator.rewards import RewardConfig
from troupe_orchestrator.rollout.admission import Admission
from troupe_orchestrator.rollout.judge import Judge, TaskGrader
from troupe_orchestrator.rollout.observer import Silent
from troupe_orchestrator.rollout.task import RolloutPlan, Services, roll_task
from troupe_orchestrator.rollout.timeline import SpanKind, Timeline
from troupe_orchestrator.run_config import Budgets, DeliveryInstruction
from troupe_orchestrator.tree import NodeKind, Tree

DESIGNS = EXECUTIONS = 4
TURNS = 4
PROMPT_TOKENS, REPLY_TOKENS = 150, 100
SERVERS = 4
"""Of each kind: one connection carries 4,096 streams."""
SCRIPT = "from workflow import Workflow\n" + "# a script of a usual length\n" * 30
WARM_UP_TOKENS = 1
VERSION = common_pb2.PolicyVersion(lineage="stub", number=1)
ANSWER = r"<delivery>\boxed{42}</delivery>"


class StubEngine(policy_pb2_grpc.PolicyServicer):
    """Waits, then appends tokens."""

    def __init__(self, seconds: float, capacity: int) -> None:
        self._seconds, self._capacity = seconds, capacity
        user = common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_USER, content="u" * 3 * PROMPT_TOKENS)
        said = common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_ASSISTANT, content=ANSWER + "a" * 3 * REPLY_TOKENS)
        runs = [
            transcript_pb2.TokenRun(kind=transcript_pb2.TOKEN_RUN_KIND_INSERTED, length=PROMPT_TOKENS),
            transcript_pb2.TokenRun(
                kind=transcript_pb2.TOKEN_RUN_KIND_GENERATED,
                length=REPLY_TOKENS,
                version=VERSION,
                log_probs=[-0.5] * REPLY_TOKENS,
                stop_reason=transcript_pb2.STOP_REASON_END_OF_TURN,
            ),
        ]
        tokens = range(PROMPT_TOKENS + REPLY_TOKENS)
        self._transcript = transcript_pb2.Transcript(token_ids=tokens, runs=runs, messages=[user, said])
        self._response = policy_pb2.GenerateResponse(
            appended=self._transcript,
            text=said.content,
            stop_reason=transcript_pb2.STOP_REASON_END_OF_TURN,
            version=VERSION,
            generated_tokens=REPLY_TOKENS,
        )

    async def Generate(self, request: policy_pb2.GenerateRequest, context: object) -> policy_pb2.GenerateResponse:
        if request.sampling.max_tokens != WARM_UP_TOKENS:
            await asyncio.sleep(self._seconds)
        return self._response

    async def GetPolicy(self, request: policy_pb2.GetPolicyRequest, context: object) -> policy_pb2.PolicyInfo:
        return policy_pb2.PolicyInfo(
            policy_id="stub", version=VERSION, state=policy_pb2.UPDATE_STATE_SERVING, capacity=self._capacity
        )


class StubDesigner(StubEngine, designer_pb2_grpc.DesignerServicer):
    """Gives every task the same design."""

    async def ProposeDesigns(
        self, request: designer_pb2.ProposeDesignsRequest, context: object
    ) -> AsyncIterator[designer_pb2.ProposeDesignsResponse]:
        for design_id in request.design_ids:
            design = designer_pb2.Design(
                design_id=design_id, script=SCRIPT, text=SCRIPT, transcript=self._transcript, declared_pattern="single"
            )
            yield designer_pb2.ProposeDesignsResponse(design=design)


class StubSandbox(sandbox_pb2_grpc.SandboxServicer):
    """Runs nothing: asks for turns of one agent after another, then says what the last one said."""

    def __init__(self, slots: int) -> None:
        self._slots = slots

    async def RunWorkflow(
        self, requests: AsyncIterator[sandbox_pb2.RunWorkflowRequest], context: object
    ) -> AsyncIterator[sandbox_pb2.RunWorkflowResponse]:
        await anext(requests)
        text = ""
        for call in range(1, TURNS + 1):
            message = common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_USER, content="u" * 3 * PROMPT_TOKENS)
            asked = sandbox_pb2.AgentCall(call_id=call, conversation_id="Agent#1", agent="Agent", messages=[message])
            yield sandbox_pb2.RunWorkflowResponse(agent_call=asked)
            text = (await anext(requests)).agent_reply.text
        outcome = sandbox_pb2.WorkflowOutcome(
            verdict=sandbox_pb2.VERDICT_OK, result=text, has_result=True, agent_calls=TURNS, profile="stub"
        )
        yield sandbox_pb2.RunWorkflowResponse(outcome=outcome)

    async def GetIsolation(
        self, request: sandbox_pb2.GetIsolationRequest, context: object
    ) -> sandbox_pb2.IsolationReport:
        return sandbox_pb2.IsolationReport(profile="stub", workflow_slots=self._slots, test_slots=1)


async def serve_stubs(kind: str, room: int, seconds: float) -> None:
    """Serve until standard input is closed; the targets are the first line of standard output."""
    servers, targets = [], []
    for _ in range(SERVERS):
        server = grpc.aio.server(options=list(SERVER_OPTIONS))
        each = -(-room // SERVERS)
        if kind == "sandbox":
            sandbox_pb2_grpc.add_SandboxServicer_to_server(StubSandbox(each), server)  # type: ignore[abstract]
        else:
            engine = StubDesigner(seconds, each)  # type: ignore[abstract]
            policy_pb2_grpc.add_PolicyServicer_to_server(engine, server)
            designer_pb2_grpc.add_DesignerServicer_to_server(engine, server)
        targets.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
    print(",".join(targets), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await asyncio.gather(*(server.stop(0) for server in servers))


def start_stubs(kind: str, room: int, seconds: float) -> tuple[subprocess.Popen[str], list[str]]:
    command = [sys.executable, __file__, "--serve", kind, "--room", str(room), "--seconds", str(seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip().split(",")


async def roll(sandboxes: list[str], engines: list[str], executions: int) -> dict[str, float]:
    """Roll out so many executions; what that took of this process."""
    fleet, executors = SandboxFleet(sandboxes), PolicyFleet(engines)
    await fleet.connect()
    await executors.connect()
    admission = Admission(fleet)
    plan = RolloutPlan(
        scope="benchmark",
        step=1,
        seed=0,
        designs=DESIGNS,
        executions=EXECUTIONS,
        max_attempts=1,
        designer_sampling=common_pb2.Sampling(temperature=1.0, max_tokens=1024, training=True),
        executor_sampling=common_pb2.Sampling(temperature=1.0, max_tokens=1024, training=True),
        designer_version=VERSION,
        executor_version=VERSION,
        budgets=Budgets(),
        delivery_instruction=DeliveryInstruction(),
        rewards=RewardConfig(),
    )
    tasks = [
        Task(f"task-{number}", "stub", "math", "What is 6 * 7?", MathReference("42"))
        for number in range(-(-executions // (DESIGNS * EXECUTIONS)))
    ]
    timeline = Timeline()
    async with MathGrader() as grader:
        services = Services(admission, executors, executors, Judge(TaskGrader(grader, admission)))
        # Connected and warmed up, so that neither is counted.
        warm_up = replace(plan, executor_sampling=common_pb2.Sampling(temperature=1.0, max_tokens=WARM_UP_TOKENS))
        await asyncio.gather(*(roll_task(task, warm_up, services, Silent(), Timeline()) for task in tasks[:8]))
        memory, cpu, wall = resident_bytes(), time.process_time(), time.perf_counter()
        watching = asyncio.create_task(watch_flight(fleet))
        trees: list[Tree] = await asyncio.gather(
            *(roll_task(task, plan, services, Silent(), timeline) for task in tasks)
        )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        watching.cancel()
    done = [node for tree in trees for node in tree.of_kind(NodeKind.EXECUTION)]
    assert all(node.payload.success for node in done)  # type: ignore[union-attr]
    turns = TURNS * len(done)
    waited = [span.end - span.begin for span in timeline.spans if span.kind is SpanKind.QUEUE]
    peak, in_flight = watching_result
    return {
        "executions": len(done),
        "in flight": in_flight,
        "turns": turns,
        "CPU ms a turn": 1000 * cpu / turns,
        "KiB an execution": (peak - memory) / max(in_flight, 1) / 1024,
        "seconds": wall,
        "CPU share": cpu / wall,
        "median wait s": statistics.median(waited),
        "longest wait s": max(waited),
    }


async def bare(sandboxes: list[str], engines: list[str], executions: int) -> dict[str, float]:
    """The calls of so many executions, and nothing but the calls."""
    fleet, executors = SandboxFleet(sandboxes).replicas(), PolicyFleet(engines).replicas()
    start = sandbox_pb2.StartWorkflow(execution_id="bare", script=SCRIPT, question="What is 6 * 7?")
    sampling = common_pb2.Sampling(temperature=1.0, max_tokens=1024, training=True)

    async def execute(number: int) -> None:
        call = fleet[number % SERVERS].stub.RunWorkflow()
        await call.write(sandbox_pb2.RunWorkflowRequest(start=start))
        request = policy_pb2.GenerateRequest(conversation_id="bare/Agent#1", sampling=sampling, version=VERSION)
        async for response in call:
            if response.HasField("agent_call"):
                del request.messages[:]
                request.messages.extend(response.agent_call.messages)
                said = await executors[number % SERVERS].stub.Generate(request, timeout=300.0)
                request.transcript.MergeFrom(said.appended)
                reply = sandbox_pb2.AgentReply(call_id=response.agent_call.call_id, text=said.text)
                await call.write(sandbox_pb2.RunWorkflowRequest(agent_reply=reply))

    sampling.max_tokens = WARM_UP_TOKENS
    await asyncio.gather(*(execute(number) for number in range(128)))
    sampling.max_tokens = 1024
    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(execute(number) for number in range(executions)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    turns = TURNS * executions
    return {"executions": executions, "turns": turns, "CPU ms a turn": 1000 * cpu / turns, "seconds": wall}


watching_result = (0, 0)
"""Largest resident memory, and executions in flight at once."""


async def watch_flight(fleet: SandboxFleet) -> None:
    global watching_result
    watching_result = (0, 0)
    while True:
        flight = sum(each.workflows.taken for each in fleet.replicas())
        watching_result = (max(watching_result[0], resident_bytes()), max(watching_result[1], flight))
        await asyncio.sleep(0.2)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(executions: int, room: int, seconds: float, *flags: str) -> dict[str, float]:
    """One row of the table, from a fresh process."""
    stubs = [start_stubs("sandbox", room, seconds), start_stubs("engine", room, seconds)]
    try:
        targets = [",".join(found) for _, found in stubs]
        command = [sys.executable, __file__, "--roll", str(executions), "--targets", *targets, *flags]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        row: dict[str, float] = json.loads(output.splitlines()[-1])
        return row
    finally:
        for process, _ in stubs:
            process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--serve")
    parser.add_argument("--room", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--roll", type=int)
    parser.add_argument("--targets", nargs=2)
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--profile", help="write cProfile's result of the orchestrator there (with --roll)")
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve_stubs(options.serve, options.room, options.seconds))
        return
    if options.roll:
        look_seldom()
        work = (bare if options.bare else roll)(
            options.targets[0].split(","), options.targets[1].split(","), options.roll
        )
        print(json.dumps(profiled(options.profile, work) if options.profile else asyncio.run(work)))
        return
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {TURNS} turns an execution")
    rows = {}
    for executions in options.executions:
        # The engine takes so long that the last execution begins before the first one ends.
        rows[f"{executions}"] = measure(executions, 2 * executions, max(1.0, executions / 500))
    largest = max(options.executions)
    rival = min(1000, largest)
    floor = measure(rival, 2 * rival, 2.0, "--bare")
    rows["waiting"] = measure(largest, max(1, largest // 10), 0.5)
    names = list(next(iter(rows.values())))
    print("| | " + " | ".join(names) + " | CPU to bare gRPC |")
    print("|---" * (len(names) + 2) + "|")
    for label, row in {**rows, "bare gRPC": floor}.items():
        ratio = row["CPU ms a turn"] / floor["CPU ms a turn"]
        cells = (f"{row[name]:.4g}" if name in row else "–" for name in names)
        print(f"| {label} | " + " | ".join(cells) + f" | {ratio:.2f} |")
    waiting = rows["waiting"]
    print(f"longest wait / median wait: {waiting['longest wait s'] / waiting['median wait s']:.2f}")


def profiled(path: str, work: object) -> dict[str, float]:
    import cProfile

    profile = cProfile.Profile()
    result: dict[str, float] = profile.runcall(asyncio.run, work)  # type: ignore[arg-type]
    profile.dump_stats(path)
    return result


if __name__ == "__main__":
    main()

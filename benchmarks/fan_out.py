"""What the fan-out of a weight update to many replicas costs the orchestrator, and what one slow replica does to the others.

    GRPC_VERBOSITY=ERROR .venv/bin/python benchmarks/fan_out.py --replicas 500 --stage-seconds 0.5 --slow-seconds 120

The replicas are stubs: `Policy` servers without an engine, each on a port of its own, that answer the phases of an update
and wait where a real one would pull the weights and load them. They and a stub learner, which has a manifest and no weights,
run in processes of their own, so that the processor time counted here is the orchestrator's. Its side is real:
`training.weights.sync_weights`, the fleet, a channel for each replica. So these are the costs of coordination; nothing is
said of tokens, of bytes moved, or of how long a real load takes.

Rows: all replicas alike; then one of them slow in staging. For each, seconds until the version was current, processor
seconds of the orchestrator, and replicas left out of rotation. The rival updates one replica after another with the same
code.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import grpc
from troupe.v1 import common_pb2, learner_pb2, learner_pb2_grpc, policy_pb2, policy_pb2_grpc
from troupe_contracts.wire import SERVER_OPTIONS
from troupe_orchestrator.fleet import PolicyFleet
from troupe_orchestrator.training.learner import LearnerClient
from troupe_orchestrator.training.weights import sync_weights

POLICY = "stub"
FENCE = common_pb2.Fence(store_id="benchmark", token=1)
COMMIT_SECONDS = 0.05
PER_PROCESS = 125
"""Stub replicas in one process."""
STALL_SECONDS = 60.0
PROBE_BOUND = 1.0


class StubReplica(policy_pb2_grpc.PolicyServicer):
    """Goes through the phases of updates and has no engine."""

    def __init__(self, name: str, stage_seconds: float) -> None:
        self._name = name
        self._stage_seconds = stage_seconds
        self._version = common_pb2.PolicyVersion(lineage="stub", number=0)
        self._next = self._version
        self._updates = 0

    async def GetPolicy(self, request: policy_pb2.GetPolicyRequest, context: object) -> policy_pb2.PolicyInfo:
        return policy_pb2.PolicyInfo(
            policy_id=POLICY,
            replica_id=self._name,
            version=self._version,
            state=policy_pb2.UPDATE_STATE_SERVING,
            returns_tokens=True,
            accepts_updates=True,
            capacity=64,
            vocabulary_size=100,
            context_length=100,
        )

    async def BeginUpdate(
        self, request: policy_pb2.BeginUpdateRequest, context: object
    ) -> policy_pb2.BeginUpdateResponse:
        self._next = request.manifest.version
        return policy_pb2.BeginUpdateResponse()

    async def StageWeights(
        self, request: policy_pb2.StageWeightsRequest, context: object
    ) -> policy_pb2.StageWeightsResponse:
        self._updates += 1
        # The first one only connects.
        await asyncio.sleep(self._stage_seconds if self._updates > 1 else 0.0)
        return policy_pb2.StageWeightsResponse()

    async def CommitUpdate(
        self, request: policy_pb2.CommitUpdateRequest, context: object
    ) -> policy_pb2.CommitUpdateResponse:
        await asyncio.sleep(COMMIT_SECONDS)
        self._version = self._next
        return policy_pb2.CommitUpdateResponse(version=self._version)

    async def AbortUpdate(
        self, request: policy_pb2.AbortUpdateRequest, context: object
    ) -> policy_pb2.AbortUpdateResponse:
        return policy_pb2.AbortUpdateResponse()


class StubLearner(learner_pb2_grpc.LearnerServicer):
    """Has a next version each time that it is asked for one, and no weights."""

    def __init__(self) -> None:
        self._number = 0

    async def GetLearner(self, request: learner_pb2.GetLearnerRequest, context: object) -> learner_pb2.LearnerInfo:
        return learner_pb2.LearnerInfo(policy_id=POLICY)

    async def ExportWeights(
        self, request: learner_pb2.ExportWeightsRequest, context: object
    ) -> AsyncIterator[learner_pb2.ExportWeightsResponse]:
        self._number += 1
        version = common_pb2.PolicyVersion(lineage="stub", number=self._number)
        yield learner_pb2.ExportWeightsResponse(manifest=policy_pb2.WeightManifest(policy_id=POLICY, version=version))


async def serve(count: int, slow: int, stage_seconds: float, slow_seconds: float) -> None:
    """Serve stub replicas, the first `slow` of them slow ones, or a stub learner where `count` is 0; until standard input is
    closed. The targets are the first line of standard output.
    """
    servers, targets = [], []
    for number in range(count or 1):
        server = grpc.aio.server(options=list(SERVER_OPTIONS))
        if count:
            seconds = slow_seconds if number < slow else stage_seconds
            stub = StubReplica(f"stub-{number}", seconds)  # type: ignore[abstract]
            policy_pb2_grpc.add_PolicyServicer_to_server(stub, server)
        else:
            learner_pb2_grpc.add_LearnerServicer_to_server(StubLearner(), server)  # type: ignore[abstract]
        targets.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
    print(",".join(targets), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await asyncio.gather(*(server.stop(0) for server in servers))


def start(count: int, slow: int, options: argparse.Namespace) -> tuple[subprocess.Popen[str], list[str]]:
    """A process of stubs, and their targets."""
    command = [
        *(sys.executable, __file__, "--serve", str(count), "--slow", str(slow)),
        *("--stage-seconds", str(options.stage_seconds), "--slow-seconds", str(options.slow_seconds)),
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip().split(",")


def processor_seconds() -> float:
    """Of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(label: str, learner: LearnerClient, targets: list[str]) -> str:
    """A row: one update of all replicas, connected before."""
    fleet = PolicyFleet(targets)
    await fleet.connect()
    await sync_weights(learner, fleet, FENCE, [], PROBE_BOUND)
    processor, begun = processor_seconds(), time.perf_counter()
    report = await sync_weights(learner, fleet, FENCE, [], PROBE_BOUND)
    seconds, processor = time.perf_counter() - begun, processor_seconds() - processor
    left_out = len(fleet.replicas()) - len(fleet.serving())
    await fleet.close()
    assert len(report.failures) == left_out, report.failures
    each = processor / len(targets) * 1e3
    return f"{label:<12} {len(targets):>8} {seconds:>8.2f} {processor:>10.2f} {each:>12.2f} {left_out:>9}"


async def one_after_another(learner: LearnerClient, targets: list[str], sample: int) -> float:
    """Seconds of one replica's update, alone: median of a sample."""
    seconds = []
    for target in targets[:sample]:
        fleet = PolicyFleet([target])
        await fleet.connect()
        await sync_weights(learner, fleet, FENCE, [], PROBE_BOUND)
        begun = time.perf_counter()
        await sync_weights(learner, fleet, FENCE, [], PROBE_BOUND)
        seconds.append(time.perf_counter() - begun)
        await fleet.close()
    return statistics.median(seconds)


async def run(options: argparse.Namespace) -> None:
    processes: list[subprocess.Popen[str]] = []
    alike: list[str] = []
    try:
        for first in range(0, options.replicas, PER_PROCESS):
            process, targets = start(min(PER_PROCESS, options.replicas - first), 0, options)
            processes.append(process)
            alike += targets
        process, slow = start(1, 1, options)
        processes.append(process)
        process, learners = start(0, 0, options)
        processes.append(process)
        learner = await LearnerClient.connect(learners[0], STALL_SECONDS)
        alone = await one_after_another(learner, alike, 5)
        print(f"{'':<12} replicas  seconds  cpu s, all  cpu ms each  left out")
        row = await measure("all alike", learner, alike)
        print(row, flush=True)
        print(await measure("one slow", learner, [*alike[:-1], *slow]), flush=True)
        together = float(row.split()[3])
        print(
            f"one after another: {alone:.2f} s each, {alone * len(alike):.0f} s for all: "
            f"{alone * len(alike) / together:.0f} × as long as together"
        )
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Fan-out of a weight update to stub replicas")
    parser.add_argument("--replicas", type=int, default=500)
    parser.add_argument("--stage-seconds", type=float, default=0.5, help="of each replica's staging")
    parser.add_argument("--slow-seconds", type=float, default=120.0, help="of the slow one's")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--slow", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is None:
        asyncio.run(run(options))
    else:
        asyncio.run(serve(options.serve, options.slow, options.stage_seconds, options.slow_seconds))


if __name__ == "__main__":
    main()

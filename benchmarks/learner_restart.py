"""How long a learner's gang is away after a fault: from the kill to READY with the checkpoint's state restored.

A 0.92M-parameter Qwen3 as in `learner.py`, DeepSpeed, two ranks, one step in a checkpoint; front and agent of two nodes are
processes of this machine. The rival of each fault on two nodes is the death of a rank where both are children of the front.

    python benchmarks/learner_restart.py [--times 3] [--zero 2]

`seen` is from the fault to the front's knowledge of it; of a silent agent it is all that the gang decides, since the
rest waits for it to come back (here: at once).
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from learner import FENCE, POLICY, make_batch, write_model
from troupe.v1 import learner_pb2, learner_pb2_grpc
from troupe_contracts import batch as contract
from troupe_contracts.channel import connect

READY = learner_pb2.GANG_STATE_READY


@dataclass
class Gang:
    """A front and, of two nodes, its agent."""

    folder: Path
    settings: dict[str, str]
    front: "subprocess.Popen[bytes]" = field(init=False)
    agent: "subprocess.Popen[bytes] | None" = None

    def start(self, name: str, **settings: object) -> "subprocess.Popen[bytes]":
        """`python -m troupe_learner` with a folder of its own."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        given = self.settings | {"work_dir": place / "work", "ready_file": place / "ready.json"} | settings
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TROUPE_")}
        environment |= {f"TROUPE_{key.upper()}": str(value) for key, value in given.items()}
        with (place / "log").open("ab") as log:
            return subprocess.Popen([sys.executable, "-m", "troupe_learner"], env=environment, stdout=log, stderr=log)

    def start_agent(self) -> None:
        self.agent = self.start("agent", node_rank=1)

    def target(self) -> str:
        """Where the front serves, once it does."""
        ready = self.folder / "front" / "ready.json"
        while not ready.exists():
            if self.front.poll() is not None:
                raise SystemExit((self.folder / "front" / "log").read_text())
            time.sleep(0.02)
        return str(json.loads(ready.read_text())["target"])

    def kill_rank(self) -> None:
        """The last one: on two nodes, the agent's."""
        holder = self.agent or self.front
        os.kill(psutil.Process(holder.pid).children()[-1].pid, signal.SIGKILL)

    def kill_agent(self) -> None:
        assert self.agent is not None
        self.agent.kill()
        self.agent.wait()
        self.start_agent()

    def stop_agent(self) -> None:
        assert self.agent is not None
        self.agent.send_signal(signal.SIGSTOP)

    def resume_agent(self) -> None:
        assert self.agent is not None
        self.agent.send_signal(signal.SIGCONT)

    def end(self) -> None:
        for process in (self.front, self.agent):
            if process is not None:
                process.terminate()
                process.wait()


def one_node(folder: Path, settings: dict[str, str]) -> Gang:
    gang = Gang(folder, settings)
    gang.front = gang.start("front")
    return gang


def two_nodes(folder: Path, settings: dict[str, str]) -> Gang:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    gang = Gang(folder, settings | {"ranks": "1", "nodes": "2", "gang_address": address, "gang_interface": "lo"})
    gang.start_agent()
    gang.front = gang.start("front")
    return gang


# Name; which gang; the fault; what is done once it is seen.
Case = tuple[str, Callable[[Path, dict[str, str]], Gang], Callable[[Gang], None], Callable[[Gang], None] | None]
CASES: tuple[Case, ...] = (
    ("one node, a rank killed", one_node, Gang.kill_rank, None),
    ("two nodes, the remote rank killed", two_nodes, Gang.kill_rank, None),
    ("two nodes, the agent killed and started", two_nodes, Gang.kill_agent, None),
    ("two nodes, the agent silent", two_nodes, Gang.stop_agent, Gang.resume_agent),
)


async def prepare(stub: "learner_pb2_grpc.LearnerAsyncStub", folder: Path) -> None:
    """One step, in a checkpoint."""
    sequences = make_batch(0, 450)
    digest = contract.digest(sequences)

    async def messages() -> AsyncIterator[learner_pb2.SubmitBatchRequest]:
        header = learner_pb2.BatchHeader(
            fence=FENCE, run_id="run", policy_id=POLICY, step=1, digest=digest, sequence_count=450
        )
        yield learner_pb2.SubmitBatchRequest(header=header)
        yield learner_pb2.SubmitBatchRequest(chunk=learner_pb2.SequenceChunk(sequences=sequences))

    async def finished(operation: learner_pb2.Operation) -> None:
        async for event in stub.WatchOperation(learner_pb2.WatchOperationRequest(name=operation.name)):
            operation = event.operation
        if operation.HasField("error"):
            raise SystemExit(operation.error.message)

    await finished(await stub.BindRun(learner_pb2.BindRunRequest(fence=FENCE, policy_id=POLICY, run_id="run")))
    await stub.SubmitBatch(messages())
    optimization = learner_pb2.Optimization(learning_rate=2.5e-4, mini_batches=4, clip_low=0.2, clip_high=0.28)
    step = learner_pb2.TrainStepRequest(
        fence=FENCE, run_id="run", policy_id=POLICY, step=1, digest=digest, optimization=optimization
    )
    await finished(await stub.TrainStep(step))
    save = learner_pb2.SaveCheckpointRequest(
        fence=FENCE, policy_id=POLICY, uri=str(folder / "checkpoint"), run_id="run", step=1
    )
    await finished(await stub.SaveCheckpoint(save))


async def measure(case: Case, folder: Path, settings: dict[str, str], times: int) -> tuple[float, float]:
    """Medians of seconds until the fault was seen, and until READY."""
    _, make, fault, afterwards = case
    gang = make(folder, settings)
    seen, ready = [], []
    try:
        async with connect(gang.target()) as channel:
            stub = learner_pb2_grpc.LearnerStub(channel)
            await prepare(stub, folder)

            async def state(wanted: bool) -> learner_pb2.LearnerInfo:
                while True:
                    found = await stub.GetLearner(learner_pb2.GetLearnerRequest())
                    if (found.state == READY) == wanted:
                        return found
                    if found.state == learner_pb2.GANG_STATE_FAILED:
                        raise SystemExit(found.detail)
                    await asyncio.sleep(0.01)

            for _ in range(times):
                begun = time.perf_counter()
                fault(gang)
                await state(False)
                seen.append(time.perf_counter() - begun)
                if afterwards is not None:
                    afterwards(gang)
                restored = await state(True)
                ready.append(time.perf_counter() - begun)
                if restored.applied_step != 1:
                    raise SystemExit(f"the state was not restored: {restored}")
    finally:
        gang.end()
    return statistics.median(seen), statistics.median(ready)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="faults of each case; the median counts")
    parser.add_argument("--zero", type=int, default=2, help="ZeRO stage")
    arguments = parser.parse_args()
    rival = 0.0
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        model.mkdir()
        write_model(model)
        settings = {"model": str(model), "engine": "deepspeed", "ranks": "2", "zero_stage": str(arguments.zero)}
        settings["die_with_parent"] = "true"
        print(f"{'fault':42} {'seen s':>7} {'READY s':>8} {'of one node':>11}", flush=True)
        for number, case in enumerate(CASES):
            place = Path(folder) / str(number)
            place.mkdir()
            seen, ready = asyncio.run(measure(case, place, settings, arguments.times))
            rival = rival or ready
            print(f"{case[0]:42} {seen:7.2f} {ready:8.2f} {ready / rival:10.2f}x", flush=True)


if __name__ == "__main__":
    main()

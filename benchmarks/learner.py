"""What a TrainStep costs: seconds and tokens/s, start-up, memory, export and checkpoint, for each engine and thread count.

Drives the real service over gRPC: a 0.92M-parameter Qwen3 (hidden 128, 4 layers, vocabulary 512, untied, float32) on 450
sequences of about 60 tokens, half of them trained, 4 mini-batches. Leaves nothing behind.

    python benchmarks/learner.py [--steps 5] [--only torch-1x1,torch-1x2]

A case is ENGINE-RANKSxTHREADS. `rank CPU` counts processor seconds of all ranks: on a busy machine it says more than the
clock. USS is memory that no other process shares.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from troupe.v1 import common_pb2, learner_pb2, learner_pb2_grpc
from troupe_contracts import batch as contract
from troupe_contracts.channel import connect

VOCABULARY = 512
CASES = ("torch-1x1", "torch-1x2", "torch-2x1", "deepspeed-1x1", "deepspeed-1x2", "deepspeed-2x1")
FENCE = common_pb2.Fence(store_id="benchmark", token=1)
POLICY = "policy"


@dataclass(frozen=True)
class Figures:
    """One case, measured. Seconds and MiB."""

    case: str
    start: float
    steps: list[float]
    rank_cpu: float
    tokens: int
    submit: float
    export: float
    save: float
    front_uss: float
    ranks_uss: float
    ranks_rss: float

    def row(self) -> str:
        best, middle = min(self.steps), statistics.median(self.steps)
        return (
            f"{self.case:14} {self.start:7.1f} {middle:8.2f} {best:8.2f} {self.tokens / best:10,.0f} "
            f"{self.rank_cpu:9.2f} {self.submit:7.2f} {self.export:7.2f} {self.save:6.2f} "
            f"{self.front_uss:7.0f} {self.ranks_uss:7.0f} {self.ranks_rss:7.0f}"
        )


HEADER = (
    f"{'case':14} {'start s':>7} {'step s':>8} {'best s':>8} {'tokens/s':>10} {'rank CPU':>9} {'submit':>7} "
    f"{'export':>7} {'save':>6} {'front U':>7} {'ranks U':>7} {'ranks R':>7}"
)


def write_model(folder: Path) -> None:
    """In a process of its own, so that this one stays without torch."""
    program = (
        "import sys, torch\n"
        "from transformers import Qwen3Config, Qwen3ForCausalLM\n"
        "torch.manual_seed(0)\n"
        f"config = Qwen3Config(vocab_size={VOCABULARY}, hidden_size=128, num_hidden_layers=4, head_dim=32,\n"
        "    num_attention_heads=4, num_key_value_heads=2, intermediate_size=384, tie_word_embeddings=False,\n"
        "    max_position_embeddings=1024)\n"
        "Qwen3ForCausalLM(config).save_pretrained(sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, stderr=subprocess.DEVNULL)
    (folder / "tokenizer.json").write_text("{}")


def make_batch(seed: int, count: int) -> list[learner_pb2.Sequence]:
    random = np.random.default_rng(seed)
    lengths = np.clip(random.normal(60, 18, count).round().astype(int), 20, 120)
    trained = [int(length * random.uniform(0.3, 0.7)) for length in lengths]
    sequences = []
    for index, (length, last) in enumerate(zip(lengths, trained, strict=True)):
        weights = [0.0] * (length - last) + [1 / sum(trained)] * last
        behaviour = [0.0] * (length - last) + [-float(np.log(VOCABULARY))] * last
        sequences.append(
            learner_pb2.Sequence(
                id=str(index),
                token_ids=random.integers(0, VOCABULARY, length).tolist(),
                weights=weights,
                advantages=[float(random.normal())] * length,
                behaviour_log_probs=behaviour,
            )
        )
    return sequences


def start(case: str, model: Path, folder: Path) -> tuple[subprocess.Popen[bytes], str, float]:
    engine, shape = case.split("-")
    ranks, threads = shape.split("x")
    ready = folder / "ready.json"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TROUPE_")} | {
        "TROUPE_MODEL": str(model),
        "TROUPE_WORK_DIR": str(folder / "work"),
        "TROUPE_ENGINE": engine,
        "TROUPE_RANKS": ranks,
        "TROUPE_THREADS": threads,
        "TROUPE_READY_FILE": str(ready),
        "TROUPE_DIE_WITH_PARENT": "true",
    }
    if engine == "deepspeed":
        environment["TROUPE_ZERO_STAGE"] = "2"
    begun = time.perf_counter()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "troupe_learner"], env=environment, stdout=log, stderr=log)
    while not ready.exists():
        if process.poll() is not None:
            raise SystemExit(f"{case}: {(folder / 'log').read_text()}")
        time.sleep(0.02)
    return process, json.loads(ready.read_text())["target"], time.perf_counter() - begun


async def measure(case: str, model: Path, folder: Path, steps: int) -> Figures:
    process, target, start_seconds = start(case, model, folder)
    front = psutil.Process(process.pid)
    ranks = front.children()
    sequences = make_batch(0, 450)
    digest = contract.digest(sequences)

    async def messages(step: int) -> AsyncIterator[learner_pb2.SubmitBatchRequest]:
        header = learner_pb2.BatchHeader(
            fence=FENCE, run_id="run", policy_id=POLICY, step=step, digest=digest, sequence_count=450
        )
        yield learner_pb2.SubmitBatchRequest(header=header)
        yield learner_pb2.SubmitBatchRequest(chunk=learner_pb2.SequenceChunk(sequences=sequences))

    async def finished(stub: "learner_pb2_grpc.LearnerAsyncStub", operation: learner_pb2.Operation) -> None:
        request = learner_pb2.WatchOperationRequest(name=operation.name)
        async for event in stub.WatchOperation(request):
            operation = event.operation
        if operation.HasField("error"):
            raise SystemExit(f"{case}: {operation.error.message}")

    def cpu() -> float:
        return sum(sum(rank.cpu_times()[:2]) for rank in ranks)

    try:
        async with connect(target) as channel:
            stub = learner_pb2_grpc.LearnerStub(channel)
            bind = learner_pb2.BindRunRequest(fence=FENCE, policy_id=POLICY, run_id="run")
            await finished(stub, await stub.BindRun(bind))
            seconds, submits, used = [], [], 0.0
            for step in range(1, steps + 2):
                begun = time.perf_counter()
                await stub.SubmitBatch(messages(step))
                submits.append(time.perf_counter() - begun)
                before, begun = cpu(), time.perf_counter()
                operation = await stub.TrainStep(
                    learner_pb2.TrainStepRequest(
                        fence=FENCE,
                        run_id="run",
                        policy_id=POLICY,
                        step=step,
                        digest=digest,
                        optimization=learner_pb2.Optimization(
                            learning_rate=2.5e-4, mini_batches=4, clip_low=0.2, clip_high=0.28, max_grad_norm=1
                        ),
                    )
                )
                await finished(stub, operation)
                seconds.append(time.perf_counter() - begun)
                used = cpu() - before
            begun = time.perf_counter()
            async for _ in stub.ExportWeights(learner_pb2.ExportWeightsRequest(policy_id=POLICY)):
                pass
            export = time.perf_counter() - begun
            begun = time.perf_counter()
            request = learner_pb2.SaveCheckpointRequest(
                fence=FENCE, policy_id=POLICY, uri=str(folder / "checkpoint"), run_id="run", step=steps + 1
            )
            await finished(stub, await stub.SaveCheckpoint(request))
            save = time.perf_counter() - begun
        mib = 2**20
        return Figures(
            case=case,
            start=start_seconds,
            steps=seconds[1:],  # the first one warms up
            rank_cpu=used,
            tokens=sum(len(each.token_ids) for each in sequences),
            submit=statistics.median(submits),
            export=export,
            save=save,
            front_uss=front.memory_full_info().uss / mib,
            ranks_uss=sum(rank.memory_full_info().uss for rank in ranks) / mib,
            ranks_rss=sum(rank.memory_info().rss for rank in ranks) / mib,
        )
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each case, after one to warm up")
    parser.add_argument("--only", default=",".join(CASES), help="cases, comma-separated")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        model.mkdir()
        write_model(model)
        print(HEADER, flush=True)
        for case in arguments.only.split(","):
            place = Path(folder) / case
            place.mkdir()
            print(asyncio.run(measure(case, model, place, arguments.steps)).row(), flush=True)


if __name__ == "__main__":
    main()

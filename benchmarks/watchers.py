"""What it costs that many clients watch one eval job: memory of the server, its CPU for each event told, and latency.

    python benchmarks/watchers.py --watchers 1 1000 --items 40 --interval 1.0

The orchestrator is a process of its own with its real store (SQLite), events and gRPC; the sandbox is real too. Designer and
executor are stand-ins without a model, which let one item end in each interval. Each watcher has a connection of its own, as
a client elsewhere would. Latency is from the making of an event, before it is stored, to its being read by a watcher; the
watchers' own work is in it, since they share the machine: four processes, with as many watchers each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import psutil
from troupe.v1 import evaluation_pb2, evaluation_pb2_grpc, policy_pb2
from troupe_contracts.wire import CHANNEL_OPTIONS

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "orchestrator" / "services" / "harness"))

from orchestrated.child import Child, child
from orchestrated.models import RIGHT, SINGLE
from orchestrated.world import backends, eval_request, math_task

CLIENTS = 4
"""Processes that the watchers are spread over."""


async def watch(target: str, job_id: str, ready: asyncio.Semaphore) -> list[float]:
    """Seconds from the making of each event with items to its arrival."""
    # Without a pool of its own a channel shares its connection with the others of this process.
    options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    seconds: list[float] = []
    numbers: list[int] = []
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        stub: evaluation_pb2_grpc.EvaluationAsyncStub = evaluation_pb2_grpc.EvaluationStub(channel)
        while True:
            request = evaluation_pb2.WatchEvalJobRequest(job_id=job_id, after_event_id=len(numbers))
            try:
                async for event in stub.WatchEvalJob(request):
                    numbers.append(event.event_id)
                    if event.items:
                        seconds.append(time.time() - event.time.ToNanoseconds() / 1e9)
                    elif len(numbers) == 1:
                        ready.release()
                break
            except grpc.aio.AioRpcError as error:
                # A connection that was not made in time, since a thousand come at once.
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.5)
    assert numbers == list(range(1, len(numbers) + 1)), "an event was lost or told twice"
    return seconds


async def client(target: str, job_id: str, count: int) -> None:
    """One process of watchers: says that all watch, then, at the job's end, what they saw."""
    ready = asyncio.Semaphore(0)
    async with asyncio.TaskGroup() as group:
        watching = [group.create_task(watch(target, job_id, ready)) for _ in range(count)]
        for _ in range(count):
            await ready.acquire()
        print("ready", flush=True)
    print(json.dumps([seconds for each in watching for seconds in each.result()]), flush=True)


@contextlib.contextmanager
def clients(target: str, job_id: str, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    shares = [count // CLIENTS + (index < count % CLIENTS) for index in range(CLIENTS)]
    command = [sys.executable, __file__, "--client", target, job_id]
    processes = [
        subprocess.Popen([*command, str(share)], stdout=subprocess.PIPE, text=True) for share in shares if share
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return await asyncio.to_thread(process.stdout.readline)


async def measure(orchestrator: Child, permits: asyncio.Semaphore, watchers: int, items: int, interval: float) -> dict:
    """One job with so many watchers."""
    server = psutil.Process(orchestrator.process.pid)
    job_id = f"watched-by-{watchers}"
    rows = [math_task(f"{job_id}-{number}") for number in range(items)]
    await orchestrator.evaluation.CreateEvalJob(eval_request(*rows, job_id=job_id))
    await asyncio.sleep(2)
    before = server.memory_info().rss
    with clients(orchestrator.target, job_id, watchers) as processes:
        for process in processes:
            assert await line(process) == "ready\n"
        watched = server.memory_info().rss
        cpu = sum(server.cpu_times()[:2])
        for _ in range(items):
            permits.release()
            await asyncio.sleep(interval)
        latencies = sorted([each for process in processes for each in json.loads(await line(process))])
        spent = sum(server.cpu_times()[:2]) - cpu
    return {
        "watchers": watchers,
        "told": len(latencies),
        "median": statistics.median(latencies),
        "p99": latencies[int(0.99 * (len(latencies) - 1))],
        "rss_before": before,
        "rss_per_watcher": (watched - before) / watchers,
        "rss_growth": server.memory_info().rss - before,
        "cpu_per_item": spent / items,
    }


async def main(counts: list[int], items: int, interval: float) -> None:
    permits = asyncio.Semaphore(0)

    async def reply(request: policy_pb2.GenerateRequest) -> str:
        await permits.acquire()
        return RIGHT

    with tempfile.TemporaryDirectory() as folder:
        async with backends() as parts, sandbox(Path(folder)) as target, child(Path(folder), parts, target) as served:
            parts.designer.otherwise, parts.policy.reply = [SINGLE], reply
            results = [await measure(served, permits, count, items, interval) for count in counts]
    first = results[0]
    print(
        f"{'watchers':>8} {'events':>6} {'median ms':>10} {'p99 ms':>8} {'KiB/watcher':>12} {'CPU ms/item':>12} "
        f"{'CPU us/told':>12}"
    )
    for result in results:
        more = result["watchers"] - first["watchers"]
        told = (result["cpu_per_item"] - first["cpu_per_item"]) / more if more else 0.0
        print(
            f"{result['watchers']:>8} {result['told'] // result['watchers']:>6} {1e3 * result['median']:>10.1f} "
            f"{1e3 * result['p99']:>8.1f} {result['rss_per_watcher'] / 1024:>12.1f} "
            f"{1e3 * result['cpu_per_item']:>12.2f} {1e6 * told:>12.1f}"
        )
    last = results[-1]
    print(
        f"{last['watchers']} watchers against {first['watchers']}: median x{last['median'] / first['median']:.1f}, "
        f"p99 x{last['p99'] / first['p99']:.1f}, CPU per item x{last['cpu_per_item'] / first['cpu_per_item']:.1f}, "
        f"server {last['rss_before'] / 2**20:.0f} MiB + {last['rss_growth'] / 2**20:.0f} MiB"
    )


@contextlib.asynccontextmanager
async def sandbox(folder: Path) -> AsyncIterator[str]:
    """Target of a real sandbox."""
    ready = folder / "sandbox.json"
    command = [sys.executable, "-m", "troupe_sandbox", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    command += ["--workflow-slots", "8", "--test-slots", "1", "--die-with-parent", "--work-dir", str(folder / "work")]
    (folder / "work").mkdir()
    process = subprocess.Popen([*command, "--log", "warn"])
    try:
        while not ready.exists():
            assert process.poll() is None, "the sandbox did not start"
            await asyncio.sleep(0.02)
        yield json.loads(ready.read_text())["target"]
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watchers", type=int, nargs="+", default=[1, 1000])
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds from the end of one item to the next")
    parser.add_argument("--client", nargs=3, metavar=("TARGET", "JOB", "COUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        asyncio.run(client(arguments.client[0], arguments.client[1], int(arguments.client[2])))
    else:
        asyncio.run(main(arguments.watchers, arguments.items, arguments.interval))

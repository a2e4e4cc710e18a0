"""Seconds of a training step and where they go, CPU and memory of every process: the real services on this machine.

    python -m troupe_starter prepare --out /tmp/starter
    python benchmarks/loop.py /tmp/starter --steps 4

Prints one table of a step's parts (medians over the steps after the first) and one of processes. Run on an idle machine.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import yaml
from troupe_client.local import LocalServices
from troupe_client.profile import load_profile
from troupe_client.sdk import Client
from troupe_client.state import StateFolder

PARTS = ("seconds", "seconds_rollout", "seconds_seal", "seconds_update", "seconds_sync")
SUMS = tuple(f"seconds_{part}_sum" for part in ("design", "execution", "turn", "grading", "queue"))
VOLUMES = ("executions", "generated_tokens", "tokens_per_second", "learner_tokens", "script_cpu_seconds")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("starter", type=Path, help="folder that `python -m troupe_starter prepare` wrote")
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    config = yaml.safe_load((options.starter / "run.yaml").read_text())
    config["dataset"]["train"] = str((options.starter / "train.jsonl").resolve())
    config |= {"steps": options.steps, "stages": [{"train": "executor", "steps": options.steps}]}
    with tempfile.TemporaryDirectory() as folder:
        state = StateFolder(Path(folder))
        with state.held():
            services = LocalServices(load_profile(options.starter / "profile.yaml"), state)
            try:
                begun = time.perf_counter()
                await services.start()
                print(f"all services serve after {time.perf_counter() - begun:.1f} s")
                pids = {name: service.pid for name, service in services.services.items()}
                before = {name: usage(pid)[0] for name, pid in pids.items()}
                steps = await train(services.services["orchestrator"].target, config)
                show_steps(steps)
                show_processes(pids, before, len(steps))
            finally:
                await services.stop()


async def train(target: str, config: Mapping[str, object]) -> list[Mapping[str, float]]:
    """Metrics of each committed step."""
    async with Client(target) as client:
        run = await client.create_run(yaml.safe_dump(dict(config)))
        steps = [
            dict(event.step_committed.metrics)
            async for event in client.watch_run(run.run_id)
            if event.WhichOneof("event") == "step_committed"
        ]
        run = await client.get_run(run.run_id)
    if len(steps) != config["steps"]:
        raise SystemExit(f"the run ended after {len(steps)} steps: {run.reason}")
    return steps


def show_steps(steps: list[Mapping[str, float]]) -> None:
    counted = steps[1:] or steps
    print(f"\nmedians of {len(counted)} steps after the first")
    for name in (*PARTS, *SUMS, *VOLUMES):
        print(f"  {name:24s} {statistics.median(step[name] for step in counted):10.2f}")


def usage(pid: int) -> tuple[float, int]:
    """CPU seconds and private bytes of a process and all its descendants."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    cpu, private = 0.0, 0
    for process in processes:
        times = process.cpu_times()
        cpu += times.user + times.system
        private += process.memory_full_info().uss
    return cpu, private


def show_processes(pids: Mapping[str, int], before: Mapping[str, float], steps: int) -> None:
    print(f"\n{'service':14s} {'CPU s/step':>10s} {'private MiB':>12s}   (with all child processes)")
    total = 0
    for name, pid in pids.items():
        cpu, private = usage(pid)
        total += private
        print(f"{name:14s} {(cpu - before[name]) / steps:10.2f} {private / 2**20:12.0f}")
    print(f"{'together':14s} {'':10s} {total / 2**20:12.0f}")


if __name__ == "__main__":
    asyncio.run(main())

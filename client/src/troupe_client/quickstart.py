"""`troupe quickstart`: the starter profile from nothing to a comparison on held-out tasks.

Prepare (task suite, cold-started policy), start all services, evaluate, train, evaluate again. What was prepared is
reused by a second call; the run is always a new one. At the end the state folder's profile names the trained policy,
so that `troupe solve` and `troupe eval` use it.
"""

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Final

import typer
import yaml
from google.protobuf.json_format import MessageToDict
from troupe.v1 import common_pb2, evaluation_pb2, training_pb2

from troupe_client import frame
from troupe_client.curve import CurvePoint, HeldOut, write_curve
from troupe_client.frame import DEFAULT_STATE_OPTION, CommandError, StateOption
from troupe_client.interrupt import Interrupts
from troupe_client.phase import Phase
from troupe_client.render_comparison import show_comparison
from troupe_client.render_train import TrainView
from troupe_client.sdk import Client
from troupe_client.session import Place, orchestrator
from troupe_client.state import StateFolder
from troupe_client.watching import watch_eval
from troupe_client.wiring import Purpose

_PROGRESS: Final = re.compile(r"^(\d+)/(\d+) (.*)$")


def quickstart(
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the cold start and of the run.")] = 0,
    steps: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Training steps; 0 takes the profile's.")] = 0,
    state: StateOption = DEFAULT_STATE_OPTION,
) -> None:
    """Train the starter profile on this machine and compare before with after on held-out tasks."""
    frame.here_only("quickstart")

    async def command(interrupts: Interrupts) -> int:
        StateFolder(state).create()
        starter = state / f"starter-{seed}"
        await _prepare(starter, seed)
        place = Place(state=state, profile=starter / "profile.yaml")
        async with (
            orchestrator(place, interrupts, frame.starting, Purpose.TRAINING) as address,
            Client(address) as client,
        ):
            before = await _evaluate(client, starter, "before")
            run, points = await _train(client, starter, steps)
            after = await _evaluate(client, starter, "after")
        folder = Path(run.folder)
        _write_results(folder, run, before, after, points)
        _use_trained_policy(state, starter, run)
        show_comparison(frame.out, before, after)
        frame.out.print(f"run {run.run_id}: {folder}")
        frame.out.print(f"learning curve: {folder / 'curve.png'}")
        frame.out.print('next: troupe solve "What is 37 * 58 + 12"')
        return 0

    frame.execute(command)


async def _prepare(starter: Path, seed: int) -> None:
    """Have the starter package write its folder; does nothing where it is there already."""
    if (starter / "profile.yaml").exists():
        frame.err.print(f"reusing the cold-started policy in {starter}", style="dim")
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "troupe_starter", "prepare", "--out", str(starter), "--seed", str(seed),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    try:
        with contextlib.ExitStack() as phases:
            shown: dict[str, Phase] = {}
            async for done, total, what in _progress_lines(process.stdout):
                if what not in shown:
                    phases.close()
                    shown[what] = phases.enter_context(Phase(frame.err, what))
                shown[what].advance_to(done, total)
        if await process.wait() != 0:
            raise CommandError(f"the cold start failed: {(await errors).decode(errors='replace').strip()[-2000:]}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _progress_lines(stream: asyncio.StreamReader) -> AsyncIterator[tuple[int, int, str]]:
    async for line in stream:
        match = _PROGRESS.match(line.decode().strip())
        if match:
            yield int(match[1]), int(match[2]), match[3]


async def _evaluate(client: Client, starter: Path, name: str) -> evaluation_pb2.EvalJob:
    """One sample per held-out problem, at temperature 1, as in training."""
    request = evaluation_pb2.CreateEvalJobRequest(
        dataset_name="held_out.jsonl",
        dataset=(starter / "held_out.jsonl").read_bytes(),
        samples=1,
        sampling=common_pb2.Sampling(temperature=1.0, seed=0),
    )
    job = await watch_eval(client, await client.create_eval(request), f"held-out tasks {name}")
    if job.state != evaluation_pb2.EVAL_STATE_SUCCEEDED:
        raise CommandError(f"the evaluation {name} training did not finish: {job.reason}")
    return job


async def _train(client: Client, starter: Path, steps: int) -> tuple[training_pb2.Run, list[CurvePoint]]:
    config = yaml.safe_load((starter / "run.yaml").read_text())
    config["dataset"]["train"] = str((starter / config["dataset"]["train"]).resolve())
    if steps:
        config["steps"] = steps
    run = await client.create_run(yaml.safe_dump(config, sort_keys=False))
    points = []
    with TrainView(frame.out, run.total_steps, run.committed_steps) as view:
        async for event in client.watch_run(run.run_id):
            view.show(event)
            if event.WhichOneof("event") == "step_committed":
                told = event.step_committed
                points.append(
                    CurvePoint(
                        event.step, told.stage, told.trains, told.metrics["success"], told.metrics["valid_scripts"]
                    )
                )
    run = await client.get_run(run.run_id)
    if run.state != training_pb2.RUN_STATE_SUCCEEDED:
        raise CommandError(f"run {run.run_id} stopped after {run.committed_steps} steps: {run.reason}")
    return run, points


def _write_results(
    folder: Path,
    run: training_pb2.Run,
    before: evaluation_pb2.EvalJob,
    after: evaluation_pb2.EvalJob,
    points: list[CurvePoint],
) -> None:
    held_out = [
        HeldOut(step, job.summary.success, job.summary.success_low, job.summary.success_high)
        for step, job in ((0, before), (run.committed_steps, after))
    ]
    write_curve(folder / "curve.png", points, held_out)
    results = {"run_id": run.run_id, "before": MessageToDict(before), "after": MessageToDict(after)}
    (folder / "results.json").write_text(json.dumps(results, indent=2))


def _use_trained_policy(state: Path, starter: Path, run: training_pb2.Run) -> None:
    """Write the state folder's profile: the starter's, with the run's last checkpoint as its model."""
    profile = yaml.safe_load((starter / "profile.yaml").read_text())
    policy = profile["executor"]["policy_id"]
    newest = max(run.checkpoints, key=lambda checkpoint: checkpoint.step)
    profile["executor"]["model"] = str(Path(newest.uris[policy]).resolve() / "model")
    profile["designer"]["prompt"] = str((starter / profile["designer"]["prompt"]).resolve())
    serving = profile["orchestrator"]["settings"]
    serving["serving"] = str((starter / serving["serving"]).resolve())
    (state / "profile.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))

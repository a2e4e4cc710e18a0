"""`troupe eval`: eval jobs, created, watched, gone on with, cancelled and listed.

A job belongs to the orchestrator. Ctrl-C ends the watching and leaves the job running; where this command had started the
services itself, the job waits in the store and goes on with the next command that starts them.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer
from troupe.v1 import common_pb2, evaluation_pb2

from troupe_client import frame, render_eval
from troupe_client.cli_jobs import MaxTokensOption, SeedOption, TemperatureOption
from troupe_client.cross_play import cross_play
from troupe_client.equal_tokens import EQUAL, measured_agent, votes_option
from troupe_client.eval_target import FORMS, parse_target
from troupe_client.frame import DEFAULT_STATE_OPTION, CommandError, ProfileOption, StateOption, TargetOption
from troupe_client.interrupt import Interrupts
from troupe_client.render_comparison import cross_table
from troupe_client.sdk import Client
from troupe_client.session import Place, orchestrator
from troupe_client.watching import watch_eval
from troupe_client.wiring import Purpose

MAX_DATASET_BYTES: Final = 48 * 2**20


class Mode(StrEnum):
    """How each problem is attempted."""

    SYSTEM = "system"
    SINGLE_AGENT = "single-agent"
    MAJORITY = "majority"
    FIXED_WORKFLOW = "fixed-workflow"


def evaluate(
    dataset: Annotated[Path | None, typer.Option(help="Problem file of a new job: JSON lines, gzip allowed.")] = None,
    samples: Annotated[int, typer.Option(min=1, max=2**31 - 1, help="Executions per problem.")] = 1,
    limit: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Only the first so many problems; 0 is all.")] = 0,
    dataset_format: Annotated[
        str, typer.Option("--format", help="gsm8k, math, aime, humaneval, …; told from the first line if empty.")
    ] = "",
    of: Annotated[str, typer.Option("--of", help=f"Whom to evaluate: {FORMS}.")] = "current",
    mode: Annotated[
        Mode, typer.Option(help="Designer and executor as a system; or the executor alone, by a script that is fixed.")
    ] = Mode.SYSTEM,
    votes: Annotated[
        str,
        typer.Option(
            metavar="N|equal:JOB",
            callback=votes_option,
            help="Agents that vote, with --mode majority; or as many as generate the tokens of a job's items: one agent "
            "is measured first then, as a job of its own.",
        ),
    ] = "0",
    script: Annotated[Path | None, typer.Option(help="Workflow script for --mode fixed-workflow.")] = None,
    before: Annotated[
        str | None,
        typer.Option(
            "--cross-play",
            metavar="BEFORE",
            help="The table of designer and executor {before, after}: this target, in a form of --of, is before, "
            "--of is after. Four jobs; --job-id begins their ids, and goes on with them.",
        ),
    ] = None,
    job_id: Annotated[
        str, typer.Option("--job-id", help="Id of the new job; without --dataset, of a job to watch to its end.")
    ] = "",
    retry_faults: Annotated[
        str, typer.Option("--retry-faults", metavar="JOB", help="Run what a job left out for faults of ours.")
    ] = "",
    cancel: Annotated[str, typer.Option("--cancel", metavar="JOB", help="End a job; its finished items stay.")] = "",
    items: Annotated[str, typer.Option("--items", metavar="JOB", help="List the finished items of a job.")] = "",
    list_jobs: Annotated[bool, typer.Option("--list", help="List the jobs, newest first.")] = False,
    temperature: TemperatureOption = 1.0,
    seed: SeedOption = None,
    max_tokens: MaxTokensOption = 0,
    state: StateOption = DEFAULT_STATE_OPTION,
    profile: ProfileOption = None,
    target: TargetOption = None,
) -> None:
    """Evaluate policies over a problem file, or look after the jobs that do."""
    place = frame.place(target, state, profile)
    if sum(map(bool, (dataset or job_id, retry_faults, cancel, items, list_jobs))) != 1:
        raise typer.BadParameter("give one of --dataset, --job-id, --retry-faults, --cancel, --items and --list")
    if list_jobs:
        _run(place, Purpose.RECORDS, _listed)
    elif items:
        _run(place, Purpose.RECORDS, lambda client: _items(client, items))
    elif cancel:
        _run(place, Purpose.RECORDS, lambda client: _cancelled(client, cancel))
    elif retry_faults:
        _run(place, Purpose.INFERENCE, lambda client: _watched(client, client.resume_eval(retry_faults)))
    elif dataset is None:
        _run(place, Purpose.INFERENCE, lambda client: _watched(client, client.get_eval(job_id)))
    else:
        if before is not None and mode is not Mode.SYSTEM:
            raise typer.BadParameter("--cross-play is of designer and executor: leave out --mode")
        request = evaluation_pb2.CreateEvalJobRequest(
            job_id=job_id,
            dataset_name=dataset.name,
            dataset=frame.read_file(dataset, MAX_DATASET_BYTES),
            format=dataset_format,
            samples=samples,
            limit=limit,
            target=_target(of, "--of"),
            mode=evaluation_pb2.EvalMode.Value(f"EVAL_MODE_{mode.name}"),
            votes=0 if votes.startswith(EQUAL) else int(votes),
            script="" if script is None else frame.read_text(script),
            sampling=common_pb2.Sampling(temperature=temperature, seed=seed, max_tokens=max_tokens),
        )
        if votes.startswith(EQUAL):
            if mode is not Mode.MAJORITY:
                raise typer.BadParameter("--votes is of --mode majority")
            system = votes.removeprefix(EQUAL)
            _run(place, Purpose.INFERENCE, lambda client: _equal(client, request, system))
        elif before is not None:
            first = _target(before, "--cross-play")
            _run(place, Purpose.INFERENCE, lambda client: _crossed(client, request, first))
        else:
            _run(place, Purpose.INFERENCE, lambda client: _watched(client, client.create_eval(request)))


def _target(text: str, option: str) -> evaluation_pb2.EvalTarget:
    try:
        return parse_target(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _run(place: Place, purpose: Purpose, work: Callable[[Client], Awaitable[None]]) -> None:
    async def command(interrupts: Interrupts) -> int:
        async with (
            orchestrator(place, interrupts, frame.starting, purpose) as address,
            Client(address) as client,
        ):
            await work(client)
        return 0

    frame.execute(command)


async def _watched(client: Client, getting: Awaitable[evaluation_pb2.EvalJob]) -> None:
    """Watch a job to its end and show what came out."""
    job = await getting
    render_eval.show_dataset_errors(frame.err, job)
    frame.err.print(f"eval job {job.job_id}", style="dim")
    try:
        job = await watch_eval(client, job)
    except asyncio.CancelledError:
        frame.err.print(
            f"the job goes on: watch it with `troupe eval --job-id {job.job_id}`, "
            f"end it with `troupe eval --cancel {job.job_id}`"
        )
        raise
    if job.state != evaluation_pb2.EVAL_STATE_SUCCEEDED:
        raise CommandError(f"eval job {job.job_id} {render_eval.state(job)}: {job.reason or 'no reason given'}")
    render_eval.show_summary(frame.out, job)
    if job.items_faulted:
        frame.err.print(f"run them again with `troupe eval --retry-faults {job.job_id}`")
    await _show_examples(client, job.job_id)


async def _crossed(
    client: Client, request: evaluation_pb2.CreateEvalJobRequest, before: evaluation_pb2.EvalTarget
) -> None:
    """Run the four jobs of cross-play, or what is left of them, and show the table."""
    name = request.job_id or f"cross-{uuid.uuid4().hex[:6]}"
    frame.err.print(f"cross-play {name}: if it is cut off, the same command with --job-id {name} goes on", style="dim")
    cells = await cross_play(client, request, before, name)
    frame.out.print(cross_table(cells))
    for job in cells.values():
        if job.items_faulted:
            frame.err.print(
                f"{job.items_faulted} items are left out for faults of ours: `troupe eval --retry-faults {job.job_id}`"
            )


async def _equal(client: Client, request: evaluation_pb2.CreateEvalJobRequest, system: str) -> None:
    """Measure one agent, then have as many vote as generate a system's tokens."""
    request.job_id = request.job_id or f"equal-{uuid.uuid4().hex[:6]}"
    agent = await measured_agent(client, request)
    request.equal_tokens.CopyFrom(evaluation_pb2.EqualTokens(system_job=system, agent_job=agent.job_id))
    await _watched(client, client.create_eval(request))


async def _listed(client: Client) -> None:
    frame.out.print(render_eval.jobs([job async for job in client.evals()]))


async def _items(client: Client, job_id: str) -> None:
    frame.out.print(render_eval.items([item async for item in client.eval_items(job_id)]))


async def _cancelled(client: Client, job_id: str) -> None:
    frame.out.print(render_eval.jobs([await client.cancel_eval(job_id)]))


async def _show_examples(client: Client, job_id: str) -> None:
    """Names an execution that succeeded and one that did not, to look at with `troupe trace`."""
    shown: set[bool] = set()
    async for item in client.eval_items(job_id):
        if item.execution_id and item.success not in shown:
            shown.add(item.success)
            kind = "success" if item.success else "failure"
            frame.err.print(f"a {kind}: troupe trace {item.execution_id}")
        if len(shown) == 2:
            return

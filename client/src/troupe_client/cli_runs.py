"""`troupe runs`: what there is to do with a run beside starting it."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Final

import typer
from troupe.v1 import training_pb2

from troupe_client import frame, render_runs, render_status
from troupe_client.frame import DEFAULT_STATE_OPTION, CommandError, ProfileOption, StateOption, TargetOption
from troupe_client.interrupt import Interrupts
from troupe_client.render_train import TrainView
from troupe_client.run_difference import difference
from troupe_client.sdk import Client
from troupe_client.session import Place, orchestrator
from troupe_client.wiring import Purpose

runs_app: Final = typer.Typer(
    name="runs",
    help="List, show, compare, fork, pause, resume and cancel training runs.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)

RunArgument = Annotated[str, typer.Argument(help="Id of a run, as `troupe runs list` shows it.")]


@runs_app.callback()
def runs(
    context: typer.Context,
    state: StateOption = DEFAULT_STATE_OPTION,
    profile: ProfileOption = None,
    target: TargetOption = None,
) -> None:
    """List, show, compare, fork, pause, resume and cancel training runs; list unless told."""
    if context.invoked_subcommand is None:
        list_runs(state, profile, target)
    elif given := [name for name in context.params if _is_given(context, name)]:
        raise typer.BadParameter(f"give --{given[0]} after {context.invoked_subcommand}")


@runs_app.command("list")
def list_runs(
    state: StateOption = DEFAULT_STATE_OPTION,
    profile: ProfileOption = None,
    target: TargetOption = None,
) -> None:
    """List the training runs, newest first."""

    async def command(client: Client) -> None:
        frame.out.print(render_status.runs([run async for run in client.runs()]))

    _with_records(frame.place(target, state, profile), command)


@runs_app.command()
def show(
    run: RunArgument,
    state: StateOption = DEFAULT_STATE_OPTION,
    profile: ProfileOption = None,
    target: TargetOption = None,
) -> None:
    """Show a run: state and reason, stage, provenance, conditions, quarantined tasks, disk, checkpoints."""

    async def command(client: Client) -> None:
        render_runs.show(frame.out, await client.get_run(run))

    _with_records(frame.place(target, state, profile), command)


@runs_app.command()
def diff(
    first: RunArgument,
    second: RunArgument,
    state: StateOption = DEFAULT_STATE_OPTION,
    profile: ProfileOption = None,
    target: TargetOption = None,
) -> None:
    """Show what differs between two runs: config, provenance, and the metrics of their last steps."""

    async def command(client: Client) -> None:
        render_runs.show_difference(frame.out, difference(await client.get_run(first), await client.get_run(second)))

    _with_records(frame.place(target, state, profile), command)


@runs_app.command()
def fork(
    run: RunArgument,
    step: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Step of the run to start after; 0 is its start.")],
    config: Annotated[
        Path | None, typer.Option(help="Keys that differ from the run's config, YAML; its own plan unless given.")
    ] = None,
    run_id: Annotated[str, typer.Option("--run-id", help="Id of the new run; chosen for you if empty.")] = "",
    queue: Annotated[bool, typer.Option("--queue", help="Wait for the run that holds the policies.")] = False,
    state: StateOption = DEFAULT_STATE_OPTION,
    profile: ProfileOption = None,
    target: TargetOption = None,
) -> None:
    """Start a new run from the weights and the optimizer that a run had after a step, and show its steps."""
    text = "" if config is None else frame.read_text(config)

    async def create(client: Client) -> training_pb2.Run:
        forked = await client.fork_run(run, step, text, run_id, queue)
        fork = forked.provenance.fork
        plan = "goes on" if fork.plan_continued else "begins anew"
        tasks = "go on" if fork.tasks_continued else "begin anew"
        frame.err.print(
            f"fork of {fork.parent_run_id} after step {fork.step}: the stage plan {plan}, the tasks {tasks} "
            f"({fork.tasks_reason})"
        )
        return forked

    train_until_ended(frame.place(target, state, profile), create)


@runs_app.command()
def pause(
    run: RunArgument,
    state: StateOption = DEFAULT_STATE_OPTION,
    profile: ProfileOption = None,
    target: TargetOption = None,
) -> None:
    """Stop a run at its next step boundary."""
    _changed(frame.place(target, state, profile), lambda client: client.pause_run(run))


@runs_app.command()
def resume(
    run: RunArgument,
    state: StateOption = DEFAULT_STATE_OPTION,
    profile: ProfileOption = None,
    target: TargetOption = None,
) -> None:
    """Go on with a paused, failed or interrupted run, and show its steps."""
    train_until_ended(frame.place(target, state, profile), lambda client: resumed_run(client, run))


@runs_app.command()
def cancel(
    run: RunArgument,
    state: StateOption = DEFAULT_STATE_OPTION,
    profile: ProfileOption = None,
    target: TargetOption = None,
) -> None:
    """End a run for good, also one that is queued; its committed steps stay."""
    _changed(frame.place(target, state, profile), lambda client: client.cancel_run(run))


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _with_records(place: Place, work: Callable[[Client], Awaitable[None]]) -> None:
    """Does something that needs no engines."""

    async def command(interrupts: Interrupts) -> int:
        async with (
            orchestrator(place, interrupts, frame.starting, Purpose.RECORDS) as address,
            Client(address) as client,
        ):
            await work(client)
        return 0

    frame.execute(command)


def _changed(place: Place, change: Callable[[Client], Awaitable[training_pb2.Run]]) -> None:
    async def command(client: Client) -> None:
        frame.out.print(render_status.runs([await change(client)]))

    _with_records(place, command)


def train_until_ended(place: Place, begin: Callable[[Client], Awaitable[training_pb2.Run]]) -> None:
    """Has a run under way and shows its steps until it ends or stops."""

    async def command(interrupts: Interrupts) -> int:
        async with (
            orchestrator(place, interrupts, frame.starting, Purpose.TRAINING) as address,
            Client(address) as client,
        ):
            run = await begin(client)
            waits = f", {run.reason}" if run.state == training_pb2.RUN_STATE_QUEUED else ""
            frame.err.print(f"run {run.run_id} in {run.folder}{waits}")
            with TrainView(frame.out, run.total_steps, run.committed_steps) as view:
                async for event in client.watch_run(run.run_id):
                    view.show(event)
            return _ended(await client.get_run(run.run_id))

    frame.execute(command)


async def resumed_run(client: Client, run_id: str) -> training_pb2.Run:
    """The run, going on; an orchestrator goes on by itself with a run that was interrupted or queued."""
    run = await client.get_run(run_id)
    goes_on = (training_pb2.RUN_STATE_RUNNING, training_pb2.RUN_STATE_QUEUED)
    return run if run.state in goes_on else await client.resume_run(run_id)


def _ended(run: training_pb2.Run) -> int:
    """Says how a run ended; the exit status."""
    said = (
        f"run {run.run_id} {render_runs.state_name(run.state)} after {run.committed_steps} of {run.total_steps} steps"
    )
    if run.state != training_pb2.RUN_STATE_SUCCEEDED:
        raise CommandError(f"{said}: {run.reason or 'no reason given'}")
    frame.err.print(f"{said}: {run.folder}")
    return 0

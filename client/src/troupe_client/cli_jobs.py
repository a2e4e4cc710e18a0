"""`troupe solve`, `troupe train`: work for the orchestrator, watched until it ends."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer
from troupe.v1 import common_pb2

from troupe_client import frame, render_runs, render_solve
from troupe_client.cli_runs import resumed_run, train_until_ended
from troupe_client.frame import DEFAULT_STATE_OPTION, ProfileOption, StateOption, TargetOption
from troupe_client.interrupt import Interrupts
from troupe_client.model_description import ProfileModels, describe_profile
from troupe_client.profile import load_profile
from troupe_client.sdk import Client
from troupe_client.session import Place, orchestrator
from troupe_client.state import StateFolder
from troupe_client.wiring import Purpose

MAX_QUESTION_CHARACTERS: Final = 2**20


class TaskType(StrEnum):
    """How an answer is due."""

    MATH = "math"
    CODE = "code"


TemperatureOption = Annotated[
    float, typer.Option(min=0, callback=frame.finite, help="Sampling temperature; 0 is greedy.")
]
SeedOption = Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of all sampling.")]
MaxTokensOption = Annotated[
    int,
    typer.Option(
        "--max-tokens", min=0, max=2**31 - 1, help="Tokens of one generation; 0 takes what the context leaves."
    ),
]


def solve(
    question: Annotated[str, typer.Argument(help="What to answer.")],
    task_type: Annotated[TaskType, typer.Option("--type", help="Whether a value or a program is asked for.")] = (
        TaskType.MATH
    ),
    temperature: TemperatureOption = 1.0,
    seed: SeedOption = None,
    max_tokens: MaxTokensOption = 0,
    state: StateOption = DEFAULT_STATE_OPTION,
    profile: ProfileOption = None,
    target: TargetOption = None,
) -> None:
    """Design a workflow for one question, run it, and show how it goes."""
    place = frame.place(target, state, profile)
    if not question.strip():
        raise typer.BadParameter("the question is empty")
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise typer.BadParameter(
            f"the question has {len(question)} characters, the limit is {MAX_QUESTION_CHARACTERS}: no context holds it"
        )
    sampling = common_pb2.Sampling(temperature=temperature, seed=seed, max_tokens=max_tokens)
    kind = common_pb2.TaskType.Value(f"TASK_TYPE_{task_type.value.upper()}")

    async def command(interrupts: Interrupts) -> int:
        async with (
            orchestrator(place, interrupts, frame.starting, Purpose.INFERENCE) as address,
            Client(address) as client,
        ):
            answered = False
            async for event in client.solve(question, kind, sampling):
                render_solve.show(frame.out, event)
                answered = event.WhichOneof("event") == "answer" and event.answer.status == "ok"
        return 0 if answered else 1

    frame.execute(command)


def train(
    config: Annotated[Path | None, typer.Option(help="Config of a new run, YAML.")] = None,
    resume: Annotated[
        str | None, typer.Option(help="Id of an interrupted, paused or failed run to go on with.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Start nothing: show what a run with this config would take.")
    ] = False,
    queue: Annotated[bool, typer.Option("--queue", help="Wait for the run that holds the policies.")] = False,
    run_id: Annotated[str, typer.Option("--run-id", help="Id of the new run; chosen for you if empty.")] = "",
    state: StateOption = DEFAULT_STATE_OPTION,
    profile: ProfileOption = None,
    target: TargetOption = None,
) -> None:
    """Train the policies, and show each step."""
    place = frame.place(target, state, profile)
    if (config is None) == (resume is None):
        raise typer.BadParameter("give either --config FILE or --resume RUN")
    if config is None:
        if plan or queue or run_id:
            raise typer.BadParameter("--plan, --queue and --run-id are for a new run: give --config FILE")
        interrupted = resume or ""
        train_until_ended(place, lambda client: resumed_run(client, interrupted))
    elif plan:
        _show_plan(place, frame.read_text(config))
    else:
        text = frame.read_text(config)
        train_until_ended(place, lambda client: client.create_run(text, run_id, queue))


def _show_plan(place: Place, config: str) -> None:
    """Shows what a run would take. Where no services run, only an orchestrator is started, and models are read here."""

    async def command(interrupts: Interrupts) -> int:
        nobody = not place.is_elsewhere and not StateFolder(place.state).is_held()
        models = describe_profile(load_profile(place.profile_path())) if nobody else ProfileModels((), ())
        async with (
            orchestrator(place, interrupts, frame.starting, Purpose.RECORDS) as address,
            Client(address) as client,
        ):
            plan = await client.plan_run(config, models.policies)
            render_runs.show_plan(frame.out, plan, models.left_out)
        return 0

    frame.execute(command)

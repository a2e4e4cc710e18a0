"""`troupe trace`, `troupe config`: one execution, and what a config comes to."""

from pathlib import Path
from typing import Annotated

import typer

from troupe_client import frame, render_status, render_trace
from troupe_client.frame import DEFAULT_STATE_OPTION, ProfileOption, StateOption, TargetOption
from troupe_client.interrupt import Interrupts
from troupe_client.sdk import Client
from troupe_client.session import orchestrator
from troupe_client.wiring import Purpose


def trace(
    execution: Annotated[str, typer.Argument(help="Id of an execution, or the first six or more characters of it.")],
    state: StateOption = DEFAULT_STATE_OPTION,
    profile: ProfileOption = None,
    target: TargetOption = None,
) -> None:
    """Show one execution: script, turns, tokens, reward terms, advantages."""
    place = frame.place(target, state, profile)

    async def command(interrupts: Interrupts) -> int:
        async with (
            orchestrator(place, interrupts, frame.starting, Purpose.RECORDS) as address,
            Client(address) as client,
        ):
            render_trace.show(frame.out, await client.execution(execution))
        return 0

    frame.execute(command)


def config(
    config_file: Annotated[Path, typer.Option("--config", help="Config of a run, YAML.")],
    state: StateOption = DEFAULT_STATE_OPTION,
    profile: ProfileOption = None,
    target: TargetOption = None,
) -> None:
    """Show the effective config of a run: every key, its value, and where that comes from."""
    place = frame.place(target, state, profile)
    text = frame.read_text(config_file)

    async def command(interrupts: Interrupts) -> int:
        async with (
            orchestrator(place, interrupts, frame.starting, Purpose.RECORDS) as address,
            Client(address) as client,
        ):
            frame.out.print(render_status.config_entries(await client.describe_config(text)))
        return 0

    frame.execute(command)

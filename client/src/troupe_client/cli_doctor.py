"""`troupe doctor`: whether this machine can run a profile, or a cluster a deployment, and what to do where it cannot."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from troupe_client import frame
from troupe_client.doctor.examination import examine
from troupe_client.doctor.findings import Finding, Level
from troupe_client.frame import DEFAULT_STATE_OPTION, ProfileOption, StateOption
from troupe_client.interrupt import Interrupts
from troupe_client.kubernetes.place import chosen, open_api

_STYLE = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}


def doctor(
    state: StateOption = DEFAULT_STATE_OPTION,
    profile: ProfileOption = None,
    port: Annotated[
        list[int] | None, typer.Option(min=1, max=65535, help="Look whether this port is free, too; can be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look at versions, devices, memory, disk, limits, ports, isolation and plug-ins; each problem has a remedy.

    With --context or --namespace: at a cluster's version, rights, storage, isolation, devices, clocks and pods.
    """
    cluster = chosen()
    if cluster is None:
        raise typer.Exit(_shown(examine(state, profile, port or ()), as_json))
    if profile is not None or port:
        raise typer.BadParameter("--profile and --port are about this machine: leave out --context and --namespace")
    place = cluster

    async def command(_interrupts: Interrupts) -> int:
        # Here, since the API's client takes a second to import, which only commands with a cluster need.
        from troupe_client.kubernetes import examination

        async with open_api(place) as api:
            return _shown(await examination.examine(api), as_json)

    frame.execute(command)


def _shown(found: list[Finding], as_json: bool) -> int:
    """Writes the findings; the exit status."""
    if as_json:
        typer.echo(json.dumps([{**asdict(each), "level": each.level.value} for each in found], indent=2))
    else:
        _show(found)
    return 1 if any(each.level is Level.ERROR for each in found) else 0


def _show(found: list[Finding]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for each in found:
        table.add_row(Text(each.level.value, _STYLE[each.level]), each.check, each.text)
        if each.remedy:
            table.add_row("", "", Text(f"→ {each.remedy}", "dim"))
    frame.out.print(table)

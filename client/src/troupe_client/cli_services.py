"""`troupe up`, `troupe down`, `troupe status`: the services of a profile on this machine."""

import asyncio
import subprocess
import sys
from typing import Annotated, Final

import typer
from troupe_contracts.access import Role

from troupe_client import frame, render_status
from troupe_client.credentials import identity
from troupe_client.frame import DEFAULT_STATE_OPTION, CommandError, ProfileOption, StateOption
from troupe_client.interrupt import Interrupts
from troupe_client.kubernetes.place import ClusterPlace, assume_role, chosen, open_api
from troupe_client.local import stop_other
from troupe_client.probe import probe
from troupe_client.session import running
from troupe_client.state import StateFolder
from troupe_client.wiring import Folders, Purpose

_POLL_SECONDS: Final = 0.2


def up(
    state: StateOption = DEFAULT_STATE_OPTION,
    profile: ProfileOption = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once all serve; `troupe down` stops them.")
    ] = False,
    training: Annotated[bool, typer.Option(help="Start the learners too.")] = True,
) -> None:
    """Start all services of a profile; Ctrl-C stops them."""
    frame.here_only("up")
    place = frame.place(None, state, profile)

    purpose = Purpose.TRAINING if training else Purpose.INFERENCE

    async def foreground(interrupts: Interrupts) -> int:
        async with running(place, interrupts, frame.starting, purpose):
            frame.err.print("all services serve; Ctrl-C, or `troupe down`, stops them")
            await asyncio.Event().wait()
        return 0

    async def background(_interrupts: Interrupts) -> int:
        folder = StateFolder(state)
        if folder.is_held():
            raise CommandError(folder.held_text())
        command = [sys.executable, "-m", "troupe_client", "up", "--state", str(state)]
        command += ["--profile", str(place.profile_path())]
        command += ["--training" if training else "--no-training"]
        log = state / "supervisor.log"
        supervisor = _detached(command, folder)
        while not ((deployment := folder.read()) and deployment.ready and folder.is_held()):
            if supervisor.poll() is not None:
                raise CommandError(f"the services did not start; {log} has:\n{log.read_text().rstrip()}")
            await asyncio.sleep(_POLL_SECONDS)
        frame.err.print(f"all services serve; `troupe down --state {state}` stops them")
        return 0

    frame.execute(background if detach else foreground)


def down(state: StateOption = DEFAULT_STATE_OPTION) -> None:
    """Stop the services of a state folder, whichever shell started them."""
    frame.here_only("down")

    async def command(_interrupts: Interrupts) -> int:
        stopped = await stop_other(StateFolder(state))
        frame.err.print(f"stopped the services of {state}" if stopped else f"no services of {state} are running")
        return 0

    frame.execute(command)


def status(state: StateOption = DEFAULT_STATE_OPTION) -> None:
    """Show health, policy versions, isolation in force and capacity of each service; on a cluster of each pod."""

    async def on_cluster(cluster: ClusterPlace) -> int:
        # Here, since the API's client takes a second to import, which only commands with a cluster need.
        from troupe_client.kubernetes.overview import pod_reports, serves

        async with open_api(cluster) as api:
            await assume_role(api, Role.OBSERVER)
            reports = await pod_reports(api)
        if not reports:
            raise CommandError(
                f"namespace {api.namespace} of {api.server} has no pod of Troupe: install with `kubectl apply -k`, or "
                "name another with --namespace"
            )
        frame.out.print(render_status.pods(reports))
        return 0 if serves(reports) else 1

    async def command(_interrupts: Interrupts) -> int:
        if (cluster := chosen()) is not None:
            return await on_cluster(cluster)
        folder = StateFolder(state)
        deployment = folder.read()
        if deployment is None or not (folder.is_held() or any(process.alive() for process in deployment.processes())):
            raise CommandError(f"no services of {state} are running: start them with `troupe up --state {state}`")
        if not folder.is_held():
            frame.err.print(f"the supervisor of {state} is gone: `troupe down --state {state}` ends what it left")
        reports = await probe(deployment, identity(Folders(state).credentials, Role.OBSERVER))
        frame.out.print(render_status.services(reports))
        return 0 if all(report.health == "serving" for report in reports) else 1

    frame.execute(command)


def _detached(command: list[str], folder: StateFolder) -> "subprocess.Popen[bytes]":
    folder.create()
    with (folder.path / "supervisor.log").open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )

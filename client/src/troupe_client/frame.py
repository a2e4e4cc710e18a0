"""What all commands share: where they find services, how they end, what they write to.

A command that fails writes one line to stderr and exits with 1; wrong usage exits with 2, Ctrl-C with 130.
Results go to stdout, everything else to stderr.
"""

import math
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import grpc
import typer
from rich.console import Console
from troupe_contracts.errors import code_of, describe
from troupe_contracts.tokens import CredentialError

from troupe_client import reading
from troupe_client.interrupt import InterruptedCommandError, Interrupts, run
from troupe_client.kubernetes.place import NoDeploymentError, chosen
from troupe_client.local import ServiceEndedError, Tell
from troupe_client.profile import ProfileError
from troupe_client.session import DEFAULT_STATE, NoServicesError, Place
from troupe_client.state import AlreadyRunningError, StateFolderError

# Numbers that rich would colour are our own to mark; text of models is never markup.
out: Final = Console(highlight=False, markup=False, soft_wrap=False)
err: Final = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

StateOption = Annotated[Path, typer.Option("--state", help="Folder of the local services.")]
ProfileOption = Annotated[
    Path | None, typer.Option("--profile", help="Profile to start; that of the state folder unless given.")
]
TargetOption = Annotated[
    str | None, typer.Option("--target", help="host:port of a running orchestrator; starts nothing.")
]
DEFAULT_STATE_OPTION: Final = DEFAULT_STATE
_ADDRESS: Final = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.%]+\]):(?P<port>[0-9]{1,5})")
# How gRPC says that it never came as far as a server.
_NOT_REACHED: Final = ("failed to connect", "dns resolution failed", "errors resolving")


class CommandError(RuntimeError):
    """A command could not do what it was asked; the text is all that is shown."""


def fail(message: str, status: int = 1) -> NoReturn:
    """Ends the command with one line (or a few) on stderr."""
    err.print(f"troupe: {message}")
    raise typer.Exit(status)


def execute(command: Callable[[Interrupts], Coroutine[Any, Any, int]]) -> None:
    """Runs a command's coroutine, which returns the exit status, and turns what it raises into one line."""
    try:
        status = run(command)
    except grpc.RpcError as error:
        fail(describe(error) + _remedy(error))
    except (
        CommandError,
        CredentialError,
        ServiceEndedError,
        ProfileError,
        NoServicesError,
        NoDeploymentError,
        AlreadyRunningError,
        StateFolderError,
    ) as error:
        fail(str(error))
    except InterruptedCommandError as interrupt:
        raise typer.Exit(interrupt.exit_status) from None
    raise typer.Exit(status)


def starting(profile: str) -> Tell:
    """Shows services as they come up, and what becomes of them."""
    err.print(f"starting the services of profile {profile}", style="dim")
    return lambda line: err.print(f"  {line}", style="dim")


def place(target: str | None, state: Path, profile: Path | None) -> Place:
    """Where this command finds its services.

    Raises:
        typer.BadParameter: the target is no host:port, or there is a profile beside it.
    """
    if target is not None and profile is not None:
        raise typer.BadParameter("--target starts nothing: leave out --profile")
    if target is not None and not _is_address(target):
        raise typer.BadParameter(f"--target must be host:port, such as 127.0.0.1:50051, got {target!r:.80}")
    cluster = chosen()
    if cluster is not None and (target is not None or profile is not None):
        given = "--target" if target is not None else "--profile"
        raise typer.BadParameter(f"--context and --namespace say where the services are: leave out {given}")
    return Place(target=target, state=state, profile=profile, cluster=cluster)


def here_only(command: str) -> None:
    """Refuses a cluster, for a command that is about this machine's services.

    Raises:
        typer.BadParameter: one was named.
    """
    if chosen() is not None:
        raise typer.BadParameter(
            f"`troupe {command}` is for services of this machine: leave out --context and --namespace"
        )


def _is_address(target: str) -> bool:
    """Whether a text is host:port, an IPv6 address in brackets."""
    matched = _ADDRESS.fullmatch(target)
    return matched is not None and 1 <= int(matched["port"]) <= 65535


def finite(value: float) -> float:
    """Refuses the numbers that a range lets through: nan, and infinity."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value


def _remedy(error: grpc.RpcError) -> str:
    """What to do about an error that the caller's own choice of a target may have caused."""
    said = describe(error)
    if code_of(error) is grpc.StatusCode.UNAVAILABLE and any(text in said.lower() for text in _NOT_REACHED):
        return (
            "; nothing serves there, or not with these credentials: look at the target and at --tls-ca, "
            "or start the services with `troupe up`"
        )
    if code_of(error) is grpc.StatusCode.UNIMPLEMENTED:
        return "; what serves there is no orchestrator of this version: look at the target"
    return ""


def read_file(path: Path, limit: int) -> bytes:
    """A file that an option names.

    Raises:
        typer.BadParameter: it cannot be read, or is larger than `limit` bytes.
    """
    try:
        return reading.read_file(path, limit)
    except reading.UnreadableError as error:
        raise typer.BadParameter(str(error)) from error


def read_text(path: Path, limit: int = 2**20) -> str:
    """A UTF-8 file that an option names.

    Raises:
        typer.BadParameter: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        return read_file(path, limit).decode()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error

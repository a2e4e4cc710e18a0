"""The parameters of the commands, read off the command line itself, and lines with one bad value."""

from __future__ import annotations

import inspect
import types
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import typer
from standin.deployment import write_profile
from troupe_client.cli import app
from typer.testing import CliRunner, Result

from refusable.cases import CASES, CHOICES, FRACTIONS, NUMBERS, Case
from refusable.kinds import KINDS, VALID, Kind
from refusable.place import Place


@dataclass(frozen=True)
class Parameter:
    """One parameter of a command, as the command's function declares it."""

    name: str
    flag: str
    """Empty for an argument."""
    type: Any

    @property
    def sort(self) -> Any:
        """The type of one value."""
        one = self.type
        while get_origin(one) in (Union, types.UnionType, list):
            one = next(part for part in get_args(one) if part is not type(None))
        return one


def commands(group: Any = None, path: str = "") -> dict[str, tuple[Parameter, ...]]:
    """The parameters of all commands by full name, and by the empty name those that stand before every command."""
    root = typer.main.get_command(app)
    found = {} if path else {"": declared(root)}
    for name, command in (root if group is None else group).commands.items():
        full = f"{path} {name}".strip()
        if hasattr(command, "commands"):
            found |= commands(command, full)
        if not hasattr(command, "commands") or command.invoke_without_command:
            found[full] = declared(command)
    return found


def declared(command: Any) -> tuple[Parameter, ...]:
    """What a command's function takes from the command line."""
    hints = get_type_hints(inspect.unwrap(command.callback))
    return tuple(
        Parameter(each.name, each.opts[0] if each.param_type_name == "option" else "", hints[each.name])
        for each in command.params
        if each.name in hints
    )


def kind_of(command: str, parameter: Parameter) -> Kind | None:
    return KINDS.get(f"{command} {parameter.name}", KINDS.get(parameter.name))


def cases_of(command: str, parameter: Parameter) -> tuple[Case, ...]:
    """What a parameter can be wrong in; nothing for one that has no kind."""
    if parameter.sort is int:
        return NUMBERS
    if parameter.sort is float:
        return FRACTIONS
    if issubclass(parameter.sort, Enum):
        return CHOICES
    kind = kind_of(command, parameter)
    cases = () if kind is None else CASES[kind]
    return tuple(case for case in cases if command not in case.but and (not case.only or command in case.only))


def line(command: str, parameter: Parameter, value: str, place: Place, state: Path) -> list[str]:
    """The command's line with one bad value."""
    words = [*command.split(), *(place.file("file.yaml") if word == "FILE" else word for word in VALID[command])]
    kind = kind_of(command, parameter)
    if not command:
        pair = {"tls_cert": ["--tls-key", place.file("key.pem")], "tls_key": ["--tls-cert", place.file("cert.pem")]}
        return [parameter.flag, value, *pair.get(parameter.name, []), *words]
    if kind is Kind.ID_OPTION:
        words = command.split()
    if kind is Kind.NEW_ID and "--config" in words:
        words[words.index("--config") + 1 : words.index("--config") + 2] = [place.file("run.yaml")]
    if not parameter.flag:
        # All of them: what one names is looked up before what the next names.
        arguments = [other for other in commands()[command] if not other.flag]
        words[len(command.split()) : len(command.split()) + len(arguments)] = [value] * len(arguments)
    elif parameter.name in ("config", "resume") and command == "train":
        words = ["train", parameter.flag, value]
    elif parameter.flag in words:
        words[words.index(parameter.flag) + 1] = value
    else:
        words += [parameter.flag, value]
    options = {other.flag for other in commands()[command]}
    if kind in (Kind.ID, Kind.ID_OPTION, Kind.NEW_ID, Kind.NAME, Kind.WHOM, Kind.QUESTION) and "--target" in options:
        words += ["--target", place.orchestrator]
    if parameter.name != "state" and "--state" in options:
        words += ["--state", str(state)]
    if kind is Kind.STATE and "--profile" in options:
        words += ["--profile", str(write_profile(state.parent))]
    return words


def run(arguments: list[str]) -> Result:
    return CliRunner().invoke(app, arguments)


def assert_refused(ended: Result, status: int, says: tuple[str, ...]) -> None:
    assert ended.exception is None or isinstance(ended.exception, SystemExit), repr(ended.exception)[:2000]
    said = " ".join(ended.stderr.replace("│", " ").split())
    assert ended.exit_code == status, said[:2000]
    assert "Traceback" not in said
    assert [part for part in says if part not in said] == [], said[:2000]
    assert len(said) < 10_000
    assert "\x1b" not in ended.stderr

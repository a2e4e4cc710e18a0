"""Bad input as a matrix: every parameter of every command against all that its kind can be wrong in.

The commands and their parameters are read off the command line itself: one that is new has no row in `VALID` or no kind
in `KINDS`, and fails here until it has. Each case ends with a status of its own kind (2 for usage), says the thing and what
to do on stderr, and leaves nothing behind.
"""

from __future__ import annotations

import inspect
import json
import socket
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import psutil
import pytest
import typer
from standin.deployment import troupe, write_profile
from troupe_client import frame
from troupe_client.cli import app
from troupe_client.processes import SHARED_MEMORY
from troupe_client.state import StateFolder
from typer.testing import CliRunner, Result

pytestmark = pytest.mark.long

HUGE_BYTES = 50 * 2**20
# A command's shortest right line but for options; FILE stands for a readable file.
VALID: dict[str, tuple[str, ...]] = {
    "": ("runs", "list", "--target", "127.0.0.1:1"),
    "quickstart": (),
    "up": (),
    "down": (),
    "status": (),
    "solve": ("1 + 1?",),
    "eval": ("--dataset", "FILE"),
    "train": ("--config", "FILE"),
    "trace": ("aaaaaa11",),
    "runs": (),
    "runs list": (),
    "runs show": ("r-1",),
    "runs diff": ("r-1", "r-2"),
    "runs fork": ("r-1", "--step", "1"),
    "runs pause": ("r-1",),
    "runs resume": ("r-1",),
    "runs cancel": ("r-1",),
    "config": ("--config", "FILE"),
    "doctor": (),
}


class Kind(Enum):
    """What a parameter that takes text is."""

    STATE = "a state folder"
    YAML = "a YAML file that this side reads"
    FILE = "a file that is sent as it is"
    TARGET = "host:port of an orchestrator"
    ID = "an id of the orchestrator's"
    ID_OPTION = "such an id that a command can do without"
    WHOM = "whom to evaluate"
    VOTES = "a number, or a job whose tokens are to be equalled"
    QUESTION = "free text"
    NAME = "a name that the orchestrator knows"
    EXAMINED_STATE = "a state folder that is looked at"
    EXAMINED_PROFILE = "a profile that is looked at"
    NEW_ID = "an id that the orchestrator is to take"
    LATE_ID = "such an id, looked at once there is a run to fork, or an engine to run on"
    SECRET = "a file with a token, a key or a certificate"
    SERVER_NAME = "a name in a certificate"


# By command and parameter, or by parameter alone.
KINDS: dict[str, Kind] = {
    "doctor state": Kind.EXAMINED_STATE,
    "doctor profile": Kind.EXAMINED_PROFILE,
    "state": Kind.STATE,
    "profile": Kind.YAML,
    "target": Kind.TARGET,
    "train config": Kind.FILE,
    "config config_file": Kind.FILE,
    "eval dataset": Kind.FILE,
    "eval script": Kind.FILE,
    "eval dataset_format": Kind.NAME,
    "eval of": Kind.WHOM,
    "eval before": Kind.WHOM,
    "eval votes": Kind.VOTES,
    "eval job_id": Kind.NEW_ID,
    "eval retry_faults": Kind.LATE_ID,
    "eval cancel": Kind.ID_OPTION,
    "eval items": Kind.ID_OPTION,
    "train resume": Kind.ID,
    "train run_id": Kind.NEW_ID,
    "trace execution": Kind.ID,
    "run": Kind.ID,
    "runs diff first": Kind.ID,
    "runs diff second": Kind.ID,
    "runs fork config": Kind.FILE,
    "runs fork run_id": Kind.LATE_ID,
    "token_file": Kind.SECRET,
    "tls_ca": Kind.SECRET,
    "tls_cert": Kind.SECRET,
    "tls_key": Kind.SECRET,
    "tls_server_name": Kind.SERVER_NAME,
    "solve question": Kind.QUESTION,
}


@dataclass(frozen=True)
class Place:
    """What cases need: files of all kinds, and targets."""

    folder: Path
    orchestrator: str
    """A real one, without engines."""
    sandbox: str
    """Another service."""
    silent: str
    """Takes connections and says nothing."""

    def file(self, name: str) -> str:
        return str(self.folder / name)


@dataclass(frozen=True)
class Case:
    """One bad value of one parameter."""

    label: str
    value: Callable[[Place], str]
    status: int
    says: tuple[str, ...]
    """Each is part of what is said."""
    only: tuple[str, ...] = ()
    """Commands for which this is wrong; all if empty."""
    but: tuple[str, ...] = ()
    """Commands for which this is right."""


def given(name: str) -> Callable[[Place], str]:
    return lambda place: place.file(name)


def text(value: str) -> Callable[[Place], str]:
    return lambda _place: value


UNREADABLE = (
    Case("missing", given("missing"), 2, ("missing: No such file or directory",)),
    Case("a folder", given("folder"), 2, ("folder: Is a directory",)),
    Case("below a file", given("file.yaml/below"), 2, ("below: Not a directory",)),
    Case("a null byte", text("a\0b"), 2, ("FLAG", "null byte")),
    Case("endless", text("/dev/zero"), 2, ("/dev/zero", "the limit is")),
    Case("huge", given("huge"), 2, ("huge", "the limit is")),
    Case("empty name", text(""), 2, ("Is a directory",)),
    Case("a name too long", text("n" * 300), 2, ("File name too long",)),
)
CASES: dict[Kind, tuple[Case, ...]] = {
    Kind.FILE: UNREADABLE,
    Kind.YAML: (
        *(case if case.label == "a null byte" else replace(case, status=1) for case in UNREADABLE),
        Case("binary", given("binary"), 1, ("binary is not YAML",)),
        Case("not YAML", given("broken.yaml"), 1, ("broken.yaml is not YAML", "line 1")),
        Case("no mapping", given("list.yaml"), 1, ("list.yaml must hold a mapping of keys",)),
        Case("empty", given("empty"), 1, ("empty must hold a mapping of keys",)),
        Case("nested too deep", given("deep.yaml"), 1, ("deep.yaml", "nested too deeply")),
        Case("no date", given("date.yaml"), 1, ("date.yaml is not YAML", "month must be in 1..12")),
        Case(
            "unknown keys", given("unknown.yaml"), 1, ("unknown.yaml", "colour: unknown key", "executor.color: unknown")
        ),
        Case(
            "wrong types", given("types.yaml"), 1, ("types.yaml", "executor.policy_id: Input should be a valid string")
        ),
    ),
    Kind.STATE: (
        Case("a file", given("file.yaml"), 1, ("file.yaml", "is not a folder")),
        Case("below a file", given("file.yaml/state"), 1, ("file.yaml/state", "Not a directory")),
        Case("cannot be made", text("/proc/troupe"), 1, ("/proc/troupe",), but=("down",)),
        Case("a null byte", text("a\0b"), 2, ("FLAG", "null byte")),
        Case("a torn record", given("torn"), 1, ("torn/local.json", "remove it"), only=("down", "status")),
    ),
    # What is wrong with them is a finding, on stdout, after every check was made.
    Kind.EXAMINED_STATE: (
        Case("a file", given("file.yaml"), 1, ("file.yaml", "is not a folder")),
        Case("a torn record", given("torn"), 1, ("torn/local.json", "remove it")),
    ),
    Kind.EXAMINED_PROFILE: (
        Case("missing", given("missing"), 1, ("missing: No such file or directory",)),
        Case("broken", given("broken.yaml"), 1, ("broken.yaml is not YAML",)),
        Case("unknown keys", given("unknown.yaml"), 1, ("unknown.yaml", "colour: unknown key")),
    ),
    Kind.TARGET: (
        Case("nobody listens", text("127.0.0.1:1"), 1, ("127.0.0.1:1", "troupe up")),
        Case("another service", lambda place: place.sandbox, 1, ("UNIMPLEMENTED", "is no orchestrator")),
        Case("no port", text("localhost"), 2, ("localhost", "host:port")),
        Case("no number", text("localhost:http"), 2, ("localhost:http", "host:port")),
        Case("port out of range", text("localhost:99999"), 2, ("localhost:99999", "host:port")),
        Case("empty", text(""), 2, ("host:port",)),
        Case("no such host", text("nohost.invalid:50051"), 1, ("nohost.invalid", "troupe up")),
        Case("no text", text("\0:1"), 2, ("host:port",)),
        Case("huge", text("h" * 2**20 + ":1"), 2, ("host:port",)),
    ),
    Kind.ID: (
        Case("unknown", text("nobody-knows-it"), 1, ("NOT_FOUND", "nobody-knows-it")),
        Case("empty", text(""), 1, ("empty",)),
        Case("a path", text("../../etc/passwd"), 1, ("../../etc/passwd",)),
        Case("huge", text("i" * 2**20), 1, ("iiii …",)),
        Case("no text", text("\ud800"), 2, ("UTF-8",)),
        Case("control characters", text("aaaaaa\x1b[2J\n"), 1, ("NOT_FOUND",)),
    ),
    Kind.NEW_ID: (
        Case("a path", text("../up"), 1, ("_id", "../up")),
        Case("huge", text("i" * 2**20), 1, ("_id",)),
        Case("no text", text("\ud800"), 2, ("UTF-8",)),
    ),
    Kind.SECRET: (
        *(case if case.label == "a null byte" else replace(case, status=1) for case in UNREADABLE),
        Case("binary", given("binary"), 1, ("binary",)),
        Case("empty", given("empty"), 1, ("empty",)),
    ),
    Kind.SERVER_NAME: (
        Case("without certificates", text("orchestrator"), 1, ("TROUPE_TLS_CA",)),
        Case("no text", text("\ud800"), 2, ("UTF-8",)),
    ),
    Kind.ID_OPTION: (
        Case("unknown", text("nobody-knows-it"), 1, ("NOT_FOUND", "nobody-knows-it")),
        Case("empty", text(""), 2, ("give one of --dataset",)),
        Case("a path", text("../../etc/passwd"), 1, ("../../etc/passwd",)),
        Case("huge", text("i" * 2**20), 1, ("iiii …",)),
        Case("no text", text("\ud800"), 2, ("UTF-8",)),
    ),
    Kind.WHOM: (
        Case("unknown", text("nobody"), 2, ("FLAG", "nobody")),
        Case("empty", text(""), 2, ("FLAG",)),
        Case("no text", text("\ud800"), 2, ("UTF-8",)),
    ),
    Kind.VOTES: (
        Case("words", text("many"), 2, ("FLAG", "equal:JOB")),
        Case("empty", text(""), 2, ("FLAG",)),
        Case("too many", text("257"), 2, ("FLAG", "256")),
        Case("nobody's", text("equal:"), 2, ("FLAG", "equal:JOB")),
        Case("huge", text("9" * 2**20), 2, ("FLAG", "equal:JOB")),
        Case("no text", text("\ud800"), 2, ("UTF-8",)),
    ),
    Kind.LATE_ID: (Case("no text", text("\ud800"), 2, ("UTF-8",)),),
    Kind.NAME: (
        Case("unknown", text("excel"), 1, ("format", "excel", "gsm8k")),
        Case("huge", text("f" * 2**20), 1, ("format",)),
        Case("no text", text("\ud800"), 2, ("UTF-8",)),
    ),
    Kind.QUESTION: (
        Case("empty", text(""), 2, ("the question is empty",)),
        Case("blank", text(" \n\t"), 2, ("the question is empty",)),
        Case("huge", text("q" * HUGE_BYTES), 2, ("the question has", "the limit is")),
        Case("no text", text("\ud800"), 2, ("UTF-8",)),
    ),
}
NUMBERS = (
    Case("no number", text("many"), 2, ("FLAG",)),
    Case("empty", text(""), 2, ("FLAG",)),
    Case("negative", text("-1"), 2, ("FLAG",)),
    Case("beyond 64 bits", text("9" * 30), 2, ("FLAG",)),
)
FRACTIONS = (
    Case("no number", text("hot"), 2, ("FLAG",)),
    Case("negative", text("-0.5"), 2, ("FLAG",)),
    Case("not a number", text("nan"), 2, ("FLAG",)),
    Case("endless", text("inf"), 2, ("FLAG",)),
)
CHOICES = (
    Case("unknown", text("poem"), 2, ("FLAG",)),
    Case("empty", text(""), 2, ("FLAG",)),
)


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


MATRIX = [
    pytest.param(command, parameter, case, id=f"{command}-{parameter.name}-{case.label}".replace(" ", "_"))
    for command, its in commands().items()
    for parameter in its
    for case in cases_of(command, parameter)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, start_service: Any) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "folder").mkdir()
    (folder / "torn").mkdir()
    files = {
        "file.yaml": b"steps: 1\n",
        "run.yaml": b"steps: 1\nstages: [{train: both, steps: 1}]\ndataset: {train: nowhere.jsonl}\n",
        "cert.pem": b"-----BEGIN CERTIFICATE-----\n",
        "key.pem": b"-----BEGIN PRIVATE KEY-----\n",
        "empty": b"",
        "binary": b"\x89PNG\r\n\x1a\n\xff\xfe\x00\x01",
        "broken.yaml": b"a: [1, 2\n",
        "list.yaml": b"- 1\n",
        "deep.yaml": b"a: " + b"[" * 1_000 + b"]" * 1_000,
        "date.yaml": b"name: 2020-13-45\n",
        "unknown.yaml": b"colour: red\nexecutor: {policy_id: p, model: m, color: red}\ndesigner: {policy_id: p}\n",
        "types.yaml": b"executor: {policy_id: [1], model: m}\ndesigner: {policy_id: p}\n",
        "torn/local.json": b'{"boot_id": "',
        "torn/profile.yaml": b"",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with (folder / "huge").open("wb") as huge:
        huge.truncate(HUGE_BYTES)
    orchestrator = start_service(
        "orchestrator", ["-m", "troupe_orchestrator"], {"TROUPE_DATA_DIR": str(folder / "data")}
    )
    stand_in = start_service(
        "executor",
        [str(Path(__file__).parent / "harness" / "programs" / "troupe_executor" / "__main__.py")],
        {
            "TROUPE_ENGINE": "openai",
            "TROUPE_POLICY_ID": "p",
            "TROUPE_REPLICA_ID": "r",
            "PYTHONPATH": str(Path(__file__).parent / "harness"),
        },
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield Place(folder, orchestrator().target, stand_in().target, f"127.0.0.1:{silent.getsockname()[1]}")


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(tmp_path: Path) -> Iterator[None]:
    """No process, no shared memory, no running deployment."""
    before = set(SHARED_MEMORY.iterdir())
    children = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= children
    assert set(SHARED_MEMORY.glob("psm_*")) <= before
    assert not StateFolder(tmp_path / "state").is_held()
    assert StateFolder(tmp_path / "state").read() is None


def run(arguments: list[str]) -> Result:
    return CliRunner().invoke(app, arguments)


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


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("command", "parameter", "case"), MATRIX)
def test_a_bad_value_is_refused_by_name_with_a_remedy(
    command: str, parameter: Parameter, case: Case, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame.err, "width", 400)
    monkeypatch.setattr(frame.out, "width", 400)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERMINAL_WIDTH", "400")
    ended = run(line(command, parameter, case.value(place), place, tmp_path / "state"))
    if kind_of(command, parameter) in (Kind.EXAMINED_STATE, Kind.EXAMINED_PROFILE):
        ended.stderr_bytes += ended.stdout_bytes
    assert_refused(ended, case.status, tuple(parameter.flag if part == "FLAG" else part for part in case.says))


def assert_refused(ended: Result, status: int, says: tuple[str, ...]) -> None:
    assert ended.exception is None or isinstance(ended.exception, SystemExit), repr(ended.exception)[:2000]
    said = " ".join(ended.stderr.replace("│", " ").split())
    assert ended.exit_code == status, said[:2000]
    assert "Traceback" not in said
    assert [part for part in says if part not in said] == [], said[:2000]
    assert len(said) < 10_000
    assert "\x1b" not in ended.stderr


def test_every_command_has_a_row_and_every_parameter_a_column() -> None:
    found = commands()
    assert set(found) == set(VALID)
    without = [
        f"{name} {parameter.name}"
        for name, its in found.items()
        for parameter in its
        if parameter.sort is not bool and not cases_of(name, parameter)
    ]
    assert without == []


@pytest.mark.parametrize("command", VALID)
@pytest.mark.parametrize("extra", ["--no-such-option", "-Z"])
def test_an_unknown_option_is_refused(command: str, extra: str, place: Place, tmp_path: Path) -> None:
    words = [place.file("file.yaml") if word == "FILE" else word for word in VALID[command]]
    assert_refused(run([*command.split(), *words, extra] if command else [extra, *words]), 2, (extra,))


@pytest.mark.parametrize("command", [name for name, words in VALID.items() if name and words])
def test_a_missing_argument_is_named(command: str) -> None:
    ended = run(command.split())
    assert ended.exit_code == 2
    assert "Missing" in ended.stderr or "give " in ended.stderr


@pytest.mark.parametrize("command", ["up", "down", "solve", "runs list"])
def test_as_a_process_it_ends_with_one_message_and_no_traceback(command: str, place: Place, tmp_path: Path) -> None:
    words = [place.file("file.yaml") if word == "FILE" else word for word in VALID[command]]
    if "--profile" in {parameter.flag for parameter in commands()[command]}:
        words += ["--profile", str(write_profile(tmp_path))]
    ended = troupe(*command.split(), *words, "--state", place.file("file.yaml"))
    assert ended.returncode == 1
    assert ended.stderr.startswith("troupe: ")
    assert "file.yaml is not a folder" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("extra", [(), ("--detach",)])
def test_a_state_folder_that_another_holds_is_refused_by_up(extra: tuple[str, ...], tmp_path: Path) -> None:
    state = tmp_path / "held"
    with StateFolder(state).held():
        ended = run(["up", *extra, "--state", str(state), "--profile", str(write_profile(tmp_path))])
    assert_refused(ended, 1, (str(state), "troupe down"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", ("must be a mapping",)),
        (b"\x00\x01\xff", ("UTF-8",)),
        (b"a: [1", ("not YAML",)),
        (b"[" * 3_000, ("nested",)),
        (b"steps: many\nstages: 7\n", ("steps", "stages", "dataset")),
        (b"name: ../../etc\nsteps: 1\nstages: [{train: both, steps: 1}]\ndataset: {train: t}\n", ("name",)),
        (b"steps: 1\nstages: [{train: both, steps: 1}]\ndataset: {train: t}\ncolour: red\n", ("colour: unknown key",)),
    ],
    ids=["empty", "binary", "broken", "deep", "types", "path", "key"],
)
@pytest.mark.parametrize("command", ["train", "config"])
def test_a_config_that_cannot_be_used_is_refused_naming_its_keys(
    command: str, content: bytes, says: tuple[str, ...], place: Place, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_bytes(content)
    ended = run([command, "--config", str(config), "--target", place.orchestrator])
    assert_refused(ended, 2 if "UTF-8" in says else 1, says)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"\x00\xff\xfe",
        b"{}\n",
        b"not json\n",
        b"[1]\n",
        b"\x1f\x8b\x08broken",
        json.dumps({"a": 1}).encode(),
    ],
    ids=["empty", "blank", "binary", "no_keys", "no_json", "list", "torn_gzip", "unknown_keys"],
)
def test_a_problem_file_without_a_problem_is_refused_naming_file_and_line(
    content: bytes, place: Place, tmp_path: Path
) -> None:
    dataset = tmp_path / "held-out.jsonl"
    dataset.write_bytes(content)
    ended = run(["eval", "--dataset", str(dataset), "--target", place.orchestrator])
    assert_refused(ended, 1, ("dataset",) if not content else ())

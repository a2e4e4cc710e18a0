"""What each kind of parameter can be wrong in: the value, the status and what is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from refusable.kinds import Kind
from refusable.place import HUGE_BYTES, Place


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
    Kind.CLUSTER: (
        Case("beside a target", text("anywhere"), 2, ("leave out", "--target")),
        Case("no text", text("\ud800"), 2, ("UTF-8",)),
    ),
    Kind.OVERLAY: (
        Case("unknown", text("nowhere"), 1, ("there is no overlay 'nowhere'", "kustomization.yaml")),
        Case("a path", text("../../etc"), 1, ("there is no overlay '../../etc'",)),
        Case("empty", text(""), 1, ("there is no overlay ''",)),
        Case("no text", text("\ud800"), 2, ("UTF-8",)),
    ),
    Kind.CHECKOUT: (
        Case("missing", given("missing"), 1, ("missing/k8s/overlays is no folder of overlays",)),
        Case("a file", given("file.yaml"), 1, ("file.yaml/k8s/overlays is no folder of overlays",)),
        Case("a null byte", text("a\0b"), 2, ("FLAG", "null byte")),
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

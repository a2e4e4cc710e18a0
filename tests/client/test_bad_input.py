"""Bad input as a matrix: every parameter of every command against all that its kind can be wrong in.

The commands and their parameters are read off the command line itself: one that is new has no row in `VALID` or no kind
in `KINDS` (`refusable.kinds`), and fails here until it has. Each case ends with a status of its own kind (2 for usage), says
the thing and what to do on stderr, and leaves nothing behind.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from refusable.cases import Case
from refusable.kinds import VALID, Kind
from refusable.lines import Parameter, assert_refused, cases_of, commands, kind_of, line, run
from refusable.place import Place
from troupe_client import frame

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("nothing_is_left_behind")]

MATRIX = [
    pytest.param(command, parameter, case, id=f"{command}-{parameter.name}-{case.label}".replace(" ", "_"))
    for command, its in commands().items()
    for parameter in its
    for case in cases_of(command, parameter)
]


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

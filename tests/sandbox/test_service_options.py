"""The sandbox's options, from the command line and from TROUPE_ variables."""

from pathlib import Path

import pytest
from troupe_sandbox.__main__ import parse_arguments


def test_each_option_is_also_a_variable() -> None:
    given = {"TROUPE_WORKFLOW_SLOTS": "7", "TROUPE_WORK_DIR": "/work", "TROUPE_INSECURE": "true", "HOME": "/home"}
    options = parse_arguments([], given | {"TROUPE_TOOL_SLOTS": "3"})
    assert (options.workflow_slots, options.work_dir, options.insecure) == (7, Path("/work"), True)
    assert options.tool_slots == 3


def test_the_command_line_goes_before_the_variables() -> None:
    assert parse_arguments(["--workflow-slots", "3"], {"TROUPE_WORKFLOW_SLOTS": "7"}).workflow_slots == 3


def test_a_switch_can_be_said_to_be_off() -> None:
    assert not parse_arguments([], {"TROUPE_INSECURE": "false"}).insecure


@pytest.mark.parametrize(
    ("variable", "value"),
    [("TROUPE_WORKFLOW_SLOT", "7"), ("TROUPE_INSECURE", "yes"), ("TROUPE_PROFILE", "none"), ("TROUPE_TEST_SLOTS", "a")],
)
def test_a_variable_that_means_nothing_stops_the_start_and_names_itself(
    variable: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments([], {variable: value})
    said = capsys.readouterr().err
    assert variable in said or f"--{variable.removeprefix('TROUPE_').lower().replace('_', '-')}" in said

"""The sandbox's options, from the command line and from TROUPE_ variables."""

import subprocess
import sys
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


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--drain-seconds", "-3"),
        ("--drain-seconds", "nan"),
        ("--test-queue", "-1"),
        ("--program-memory", "0"),
        ("--test-slots", str(10**16)),
        ("--listen", "foo"),
        ("--metrics", "::1:9000"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_the_name_of_its_option(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments([f"{option}={value}"], {})
    assert option in capsys.readouterr().err


def test_addresses_are_of_either_family() -> None:
    assert parse_arguments(["--listen", "[::]:50054"], {}).listen == "[::]:50054"


@pytest.mark.parametrize(("option", "value"), [("--work-dir", "/nonexistent"), ("--python", "/bin/true")])
def test_what_is_not_there_is_named_before_anything_is_served(option: str, value: str) -> None:
    command = [sys.executable, "-m", "troupe_sandbox", "--listen", "127.0.0.1:0", option, value]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert option in done.stderr
    assert "Traceback" not in done.stderr

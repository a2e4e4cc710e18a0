"""Lines that are wrong as lines: options that nobody knows, arguments that are not there, a state folder that is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusable.kinds import VALID
from refusable.lines import assert_refused, commands, run
from refusable.place import Place
from standin.deployment import troupe, write_profile
from troupe_client.state import StateFolder

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("nothing_is_left_behind")]


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

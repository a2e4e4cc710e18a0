"""The commands against one detached deployment of stand-ins: what they show, and how they fail."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from standin.deployment import Command, left_of, troupe, write_profile
from troupe_client import frame
from troupe_client.cli import app
from troupe_client.state import StateFolder
from typer.testing import CliRunner, Result

Start = Callable[..., Command]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state folder of a deployment that `up --detach` has started; `down` ends it."""
    folder = tmp_path_factory.mktemp("detached")
    started = troupe("up", "--detach", "--profile", write_profile(folder), "--state", folder / "state")
    assert started.returncode == 0, started.stderr
    deployment = StateFolder(folder / "state").read()
    assert deployment is not None
    yield folder / "state"
    begun = time.monotonic()
    stopped = troupe("down", "--state", folder / "state")
    assert stopped.returncode == 0, stopped.stderr
    assert time.monotonic() - begun < 15  # 5 s, and the start of the command on a busy machine
    assert left_of(deployment) == []
    assert not deployment.supervisor.alive()


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that are looked for are not wrapped."""
    monkeypatch.setattr(frame.out, "width", 160)


def command(*arguments: object) -> Result:
    """The command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ran(*arguments: object, state: Path) -> Result:
    return command(*arguments, "--state", state)


def test_status_shows_health_versions_isolation_and_capacity(state: Path) -> None:
    shown = ran("status", state=state)
    text = " ".join(shown.stdout.replace("│", " ").split())
    assert shown.exit_code == 0, shown.stdout
    assert text.count("serving") >= 5
    assert "starter first:7 (serving), stand-in engine" in text
    assert "seccomp in force; missing: cgroup" in text
    assert "0 of 4 scripts" in text
    assert "starter first:7 (ready)" in text


def test_a_second_up_is_refused_by_name(state: Path) -> None:
    for extra in ((), ("--detach",)):
        refused = ran("up", "--profile", state.parent / "profile.yaml", *extra, state=state)
        assert refused.exit_code == 1
        assert f"{state} is in use by process" in refused.stderr
        assert "troupe down" in refused.stderr


def test_solve_shows_script_turns_and_answer(state: Path) -> None:
    shown = ran("solve", "What is 6 * 7?", state=state)
    assert shown.exit_code == 0, shown.stderr
    assert 'AgentNode(name="solver")' in shown.stdout
    assert "What is 6 * 7?" in shown.stdout
    assert "print(6 * 7)" in shown.stdout
    assert shown.stdout.rstrip().endswith("42")


def test_text_of_a_model_is_neither_markup_nor_a_command_to_the_terminal(state: Path) -> None:
    shown = ran("solve", "What is 6 * 7?", state=state)
    assert "the [bold]reply[/bold]␛[2J" in shown.stdout
    assert "\x1b" not in shown.stdout


def test_solve_without_an_answer_exits_with_1_and_says_why(state: Path) -> None:
    shown = ran("solve", "fail", state=state)
    assert shown.exit_code == 1
    assert "the script raised ValueError" in shown.stdout


def test_eval_shows_tables_bad_lines_and_examples(state: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "problems.jsonl"
    dataset.write_text("{}\n")
    shown = ran("eval", "--dataset", dataset, "--samples", 4, state=state)
    assert shown.exit_code == 0, shown.stderr
    assert "problems.jsonl:3: not JSON" in shown.stderr
    assert "troupe trace bbbbbb22" in shown.stderr
    assert "50.0 % [25.0, 75.0]" in shown.stdout
    assert "75 % · 100 %" in shown.stdout.replace("\u00a0", " ")
    assert "12,345" in shown.stdout


def test_eval_looks_after_jobs_that_are_there(state: Path) -> None:
    listed = ran("eval", "--list", state=state)
    assert listed.exit_code == 0, listed.stderr
    assert "e-1" in listed.stdout
    assert "succeeded" in listed.stdout
    items = ran("eval", "--items", "e-1", state=state)
    assert items.stdout.index("aaaaaa11") < items.stdout.index("bbbbbb22")
    cancelled = ran("eval", "--cancel", "e-1", state=state)
    assert "cancelled" in cancelled.stdout
    for option in ("--job-id", "--retry-faults"):
        watched = ran("eval", option, "e-1", state=state)
        assert watched.exit_code == 0, watched.stderr
        assert "50.0 % [25.0, 75.0]" in watched.stdout


def test_eval_refuses_what_does_not_go_together_and_whom_it_does_not_know(state: Path, tmp_path: Path) -> None:
    assert ran("eval", state=state).exit_code == 2
    assert ran("eval", "--list", "--items", "e-1", state=state).exit_code == 2
    dataset = tmp_path / "problems.jsonl"
    dataset.write_text("{}\n")
    unknown = ran("eval", "--dataset", dataset, "--of", "nobody", state=state)
    assert unknown.exit_code == 2
    assert "checkpoint:RUN@best" in " ".join(unknown.stderr.replace("│", " ").split())


def test_train_prints_each_step_once_although_its_watch_was_cut(state: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("steps: 2\n")
    shown = ran("train", "--config", config, state=state)
    assert shown.exit_code == 0, shown.stderr
    lines = [line for line in shown.stdout.splitlines() if "1 executor" in line]
    assert [line.split()[0] for line in lines] == ["1", "2"]
    assert "75.0 %" in lines[0]
    assert "succeeded after 2 of 2 steps" in shown.stderr


def test_a_failed_run_exits_with_1_and_its_reason(state: Path) -> None:
    shown = ran("train", "--resume", "fails", state=state)
    assert shown.exit_code == 1
    assert "run fails failed after 2 of 2 steps: the learner's disk is full; free 2 GiB" in shown.stderr


def test_trace_shows_script_turns_tokens_rewards_and_advantages(state: Path) -> None:
    shown = ran("trace", "aaaaaa", state=state)
    assert shown.exit_code == 0, shown.stderr
    for part in (
        "AgentNode",
        "\\boxed{42}",
        "5 generated",
        "reward 1.100, advantage +0.700",
        "no advantage",
        "success",
    ):
        assert part in shown.stdout
    assert "answer_in_script" in shown.stdout


def test_runs_lists_every_page(state: Path) -> None:
    shown = ran("runs", state=state)
    assert "r-2" in shown.stdout
    assert "r-1" in shown.stdout
    assert "1 of 2" in shown.stdout


def test_runs_are_shown_compared_paused_and_cancelled(state: Path) -> None:
    assert "r-2" in ran("runs", "list", state=state).stdout
    assert "2 of 2 committed" in ran("runs", "show", "r-1", state=state).stdout
    assert "r-1 and r-2 do not differ" in ran("runs", "diff", "r-1", "r-2", state=state).stdout
    assert "paused by request" in ran("runs", "pause", "r-1", state=state).stdout
    assert "cancelled" in ran("runs", "cancel", "r-1", state=state).stdout


def test_a_fork_says_where_it_starts_and_shows_its_steps(state: Path) -> None:
    shown = ran("runs", "fork", "r-1", "--step", 3, "--run-id", "forked", state=state)
    assert shown.exit_code == 0, shown.stderr
    assert "fork of r-1 after step 3: the stage plan begins anew" in shown.stderr
    assert [line.split()[0] for line in shown.stdout.splitlines() if "1 executor" in line] == ["1", "2"]
    assert "run forked succeeded after 2 of 2 steps" in shown.stderr


def test_a_plan_is_shown_and_nothing_is_started(state: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("steps: 2\n")
    shown = ran("train", "--plan", "--config", config, state=state)
    assert shown.exit_code == 0, shown.stderr
    assert "2 steps over 7 tasks" in shown.stdout
    assert "run " not in shown.stderr


def test_options_of_runs_before_a_subcommand_are_refused(state: Path) -> None:
    refused = command("runs", "--state", state, "show", "r-1")
    assert refused.exit_code == 2
    assert "give --state after show" in refused.stderr


def test_an_error_of_the_server_is_one_line_and_exit_1(state: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("bad_key: 1\n")
    for arguments, said in (
        (("train", "--config", config), "INVALID_ARGUMENT: bad_key: unknown key; steps: is missing"),
        (("trace", "nothing"), "NOT_FOUND: there is no execution 'nothing'"),
    ):
        failed = ran(*arguments, state=state)
        assert failed.exit_code == 1
        assert failed.stderr == f"troupe: {said}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("train",),
        ("train", "--resume", "r-1", "--plan"),
        ("runs", "fork", "r-1"),
        ("runs", "fork", "r-1", "--step", "-1"),
        ("train", "--config", "nowhere.yaml"),
        ("eval", "--dataset", "nowhere.jsonl"),
        ("eval",),
        ("solve", "  "),
        ("solve", "q", "--temperature", "-1"),
        ("solve", "q", "--target", "h:1", "--profile", "p.yaml"),
        ("dance",),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    assert command(*arguments).exit_code == 2


def test_an_orchestrator_that_is_not_there_is_an_error_of_one_line() -> None:
    failed = command("runs", "--target", "127.0.0.1:1")
    assert failed.exit_code == 1
    assert failed.stderr.startswith("troupe: UNAVAILABLE: ")
    assert failed.stderr.count("\n") == 1


def test_without_services_and_profile_the_remedy_is_named(tmp_path: Path) -> None:
    failed = command("solve", "q", "--state", tmp_path)
    assert failed.exit_code == 1
    assert "make quickstart" in failed.stderr


def test_a_command_starts_its_own_services_and_ctrl_c_ends_them(tmp_path: Path, start_command: Start) -> None:
    profile = write_profile(tmp_path)
    solving = start_command("solve", "wait", "--profile", profile, state=tmp_path / "state")
    deployment = solving.deployment(lambda deployment: deployment.ready)
    assert "learner" not in deployment.services
    time.sleep(0.5)
    seconds, errors = solving.end(signal.SIGINT)
    assert seconds < 5
    assert solving.process.returncode == 130
    assert "Traceback" not in errors
    assert left_of(deployment) == []

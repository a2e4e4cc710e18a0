"""`troupe train` on the terminal: one line per committed step, and bars for the run and for the step under
way.

A line shows the stage and what it trains; for the designer its mean reward and the success of all executions
that its designs were due (those of a script that cannot be run count as failures); for the executor its mean
reward and the success among executions that ran; the share of valid scripts, tokens per second, and the
step's seconds.
"""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from troupe.v1 import training_pb2

from troupe_client.phase import LINE_SECONDS
from troupe_client.render_text import percent, plain

HEADER: Final = " step  stage        │ designer reward  success │ executor reward  success │ scripts    tok/s  seconds"
_PHASES: Final = {
    training_pb2.STEP_STATE_ROLLING: "rolling out",
    training_pb2.STEP_STATE_SEALED: "training",
    training_pb2.STEP_STATE_TRAINED: "syncing weights",
    training_pb2.STEP_STATE_SYNCED: "committing",
    training_pb2.STEP_STATE_COMMITTED: "committed",
}


def step_line(step: int, committed: training_pb2.StepCommitted) -> str:
    """One committed step."""
    metrics = committed.metrics
    stage = f"{committed.stage} {committed.trains}"
    return (
        f"{step:5d}  {stage:<11s}  │ {_number(metrics, 'reward_designer', '15.3f')}  {_share(metrics, 'success'):>7s} "
        f"│ {_number(metrics, 'reward_executor', '15.3f')}  {_share(metrics, 'success_of_valid'):>7s} "
        f"│ {_share(metrics, 'valid_scripts'):>7s}  {_number(metrics, 'tokens_per_second', '7.0f')}  "
        f"{_number(metrics, 'seconds', '7.1f')}"
    )


def condition_line(condition: training_pb2.Condition) -> str:
    """A fault or a notice, with its remedy."""
    remedy = f"; {condition.remedy}" if condition.remedy else ""
    return f"{condition.reason}: {condition.message}{remedy}"


def eval_line(step: int, finished: training_pb2.EvalFinished) -> str:
    """An in-loop validation."""
    values = ", ".join(f"{name} {value:.3f}" for name, value in sorted(finished.metrics.items()))
    return f"{step:5d}  validation {finished.eval_job_id}: {values}"


class TrainView:
    """A run in progress. Bars only on a terminal; lines always."""

    def __init__(self, console: Console, total_steps: int, committed_steps: int) -> None:
        self._console = console
        self._header_shown = False
        self._description = ""
        self._said = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description:<26s}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._run = self._progress.add_task("run", total=total_steps, completed=committed_steps)
        self._step: TaskID = self._progress.add_task("step", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: training_pb2.RunEvent) -> None:
        """One event of the run."""
        match event.WhichOneof("event"):
            case "progress":
                self._show_progress(event.step, event.progress)
            case "step_committed":
                self._show_committed(event.step, event.step_committed)
            case "condition":
                self._console.print(plain(condition_line(event.condition), "yellow"))
            case "eval_finished":
                self._console.print(plain(eval_line(event.step, event.eval_finished)))
            case _:
                pass  # how the run ends is said at its end

    def _show_progress(self, step: int, progress: training_pb2.StepProgress) -> None:
        description = f"step {step}: {_PHASES.get(progress.state, 'working')}"
        changed = description != self._description
        self._description = description
        if progress.state == training_pb2.STEP_STATE_ROLLING:
            self._say(f"{description}, {progress.executions_done} of {progress.executions_total} executions")
            self._progress.update(self._step, total=progress.executions_total, completed=progress.executions_done)
        self._progress.update(self._step, description=description, refresh=changed)

    def _say(self, text: str) -> None:
        """Where there is no terminal, a step that takes long is heard of now and then."""
        if not self._console.is_terminal and time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            self._console.print(plain(text, "dim"))

    def _show_committed(self, step: int, committed: training_pb2.StepCommitted) -> None:
        if not self._header_shown:
            self._console.print(plain(HEADER, "bold"), soft_wrap=True)
            self._header_shown = True
        self._console.print(plain(step_line(step, committed)), soft_wrap=True)
        self._said = time.monotonic()
        self._progress.update(self._run, completed=step)
        self._progress.reset(self._step)


def _number(metrics: Mapping[str, float], name: str, form: str) -> str:
    width = int(form.split(".")[0])
    return f"{metrics[name]:{form}}" if name in metrics else f"{'–':>{width}s}"


def _share(metrics: Mapping[str, float], name: str) -> str:
    return percent(metrics[name]) if name in metrics else "–"

"""What `troupe status` says of runs: how far those are that have not ended, what went wrong, which tasks are left out; and
how the newest one failed, where nothing newer has come further.
"""

from collections.abc import Sequence

from troupe.v1 import training_pb2

from troupe_client.render_runs import state_name
from troupe_client.render_train import condition_line

_OPEN = frozenset({training_pb2.RUN_STATE_RUNNING, training_pb2.RUN_STATE_PAUSED, training_pb2.RUN_STATE_QUEUED})
_OVERTAKES = frozenset({training_pb2.RUN_STATE_RUNNING, training_pb2.RUN_STATE_SUCCEEDED})
"""A run like this makes those that failed before it old news."""
MOST = 5
"""Runs that are told of, and tasks and faults of each."""


def told_of(runs: Sequence[training_pb2.Run]) -> list[str]:
    """Ids of the runs that a report is about, in the order of the list.

    Args:
        runs: all of them, newest first.
    """
    failed = ""
    for run in runs:
        if run.state in _OVERTAKES:
            break
        if run.state == training_pb2.RUN_STATE_FAILED:
            failed = run.run_id
            break
    return [run.run_id for run in runs if run.state in _OPEN or run.run_id == failed]


def report(runs: Sequence[training_pb2.Run], others: int) -> str:
    """Runs with their newest faults and quarantined tasks.

    Args:
        runs: that are told of, as GetRun gives them.
        others: open runs that are left out.
    """
    if not runs:
        return "no run under way"
    lines = [line for run in runs for line in _lines(run)]
    if others:
        lines.append(f"{others} more runs are paused or queued: see `troupe runs`")
    return "\n".join(lines)


def _lines(run: training_pb2.Run) -> list[str]:
    reason = f": {run.reason}" if run.reason else ""
    lines = [f"{state_name(run.state)} {run.run_id}, {run.committed_steps} of {run.total_steps} steps{reason}"]
    faults = [event for event in run.recent_events if event.HasField("condition")][-MOST:]
    lines += [f"  step {event.step}: {condition_line(event.condition)}" for event in faults]
    tasks = run.quarantined_tasks
    if tasks:
        shown = ", ".join(f"{task.task_id} ({task.reason})" for task in tasks[:MOST])
        more = f" and {len(tasks) - MOST} more" if len(tasks) > MOST else ""
        lines.append(f"  no longer drawn: {shown}{more}")
    return lines

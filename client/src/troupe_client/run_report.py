"""What `troupe status` says of runs that have not ended: how far they are, what went wrong, which tasks are left out."""

from collections.abc import Sequence

from troupe.v1 import training_pb2

from troupe_client.render_runs import state_name
from troupe_client.render_train import condition_line

OPEN = frozenset({training_pb2.RUN_STATE_RUNNING, training_pb2.RUN_STATE_PAUSED, training_pb2.RUN_STATE_QUEUED})
MOST = 5
"""Runs that are told of, and tasks and faults of each."""


def report(runs: Sequence[training_pb2.Run], others: int) -> str:
    """Open runs with their newest faults and quarantined tasks.

    Args:
        runs: as GetRun gives them.
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

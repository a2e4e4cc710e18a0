"""`troupe runs show`, `troupe runs diff` and `troupe train --plan` on the terminal."""

import re
from collections.abc import Iterable
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text
from troupe.v1 import training_pb2

from troupe_client.render_text import percent, plain, visible
from troupe_client.render_train import condition_line
from troupe_client.run_difference import Difference, RunDifference

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SHOWN_METRICS: Final = (
    "success",
    "success_of_valid",
    "reward_designer",
    "reward_executor",
    "valid_scripts",
    "zero_variance",
    "learner_entropy",
    "learner_mismatch_kl",
    "probe_mean_error",
    "tokens_per_second",
    "seconds",
)
_TROUBLE: Final = re.compile(r"tasks_dropped|faults(/.+)?|drop_rate/.+")
"""Metrics of what went wrong on our side, shown where they are above 0."""


def state_name(state: "training_pb2.RunState.ValueType") -> str:
    """A run's state as it is written: running, paused, …"""
    return training_pb2.RunState.Name(state).removeprefix("RUN_STATE_").lower()


def show(console: Console, run: training_pb2.Run) -> None:
    """A run, part by part; parts that are empty are left out."""
    _print(console, _facts(run))
    _section(console, "provenance", _provenance(run.provenance) if run.HasField("provenance") else [])
    _section(console, f"step {run.committed_steps}", _metrics(run))
    _section(console, "disk", _disk(run.disk_bytes))
    _section(
        console,
        "checkpoints",
        [
            (
                f"step {saved.step}{' (best)' if saved.best else ''}",
                "\n".join(saved.uris[name] for name in sorted(saved.uris)),
            )
            for saved in run.checkpoints
        ],
    )
    _section(
        console,
        "quarantined tasks",
        [(task.task_id, f"{task.reason} ({task.drops} drops)") for task in run.quarantined_tasks],
    )
    _section(console, "events", [(f"step {event.step}", _event(event)) for event in run.recent_events])


def show_difference(console: Console, found: RunDifference) -> None:
    """Config, provenance and metrics side by side, only what differs."""
    if not (found.config or found.provenance or found.metrics):
        console.print(plain(f"{found.first} and {found.second} do not differ"))
        return
    for title, differences in (
        ("config", found.config),
        ("provenance", found.provenance),
        ("last step", found.metrics),
    ):
        if differences:
            console.print(_difference_table(title, found, differences))


def show_plan(console: Console, plan: training_pb2.RunPlan, left_out: Iterable[str] = ()) -> None:
    """What a run would take, with how each figure was reckoned.

    Args:
        left_out: lines on what could not be reckoned, and why.
    """
    console.print(plain(f"{plan.steps} steps over {plan.tasks} tasks"))
    table = Table("stage", "steps", "trains", "rate", "tasks × M × N", "sequences, at most", "tokens, at most")
    for stage in plan.stages:
        table.add_row(
            str(stage.stage),
            f"{stage.first_step}-{stage.last_step}",
            stage.trains,
            f"{stage.learning_rate:.3g}",
            f"{stage.tasks} × {stage.designs} × {stage.executions}",
            f"designer {stage.designer_sequences:,}\nexecutor {stage.executor_sequences:,}\n"
            f"trained {stage.trained_sequences:,}",
            f"{stage.generated_tokens:,}",
        )
    console.print(table)
    if plan.stages and plan.stages[-1].last_step < plan.steps:
        console.print(plain("the stages repeat until the last step", "dim"))
    estimates = Table("what", "", "value", "reckoned as", show_lines=True)
    for estimate in plan.estimates:
        value = byte_size(estimate.value) if estimate.unit == "bytes" else f"{estimate.value:,.0f} {estimate.unit}"
        estimates.add_row(
            plain(estimate.name), "at most" if estimate.bound else "about", value, plain(estimate.formula)
        )
    console.print(estimates)
    for line in left_out:
        console.print(plain(line, "yellow"))


def byte_size(value: float) -> str:
    """A number of bytes in the unit that fits: 1536 is 1.5 KiB."""
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _facts(run: training_pb2.Run) -> list[tuple[str, str]]:
    facts = [
        ("run", run.run_id),
        ("state", state_name(run.state)),
        ("reason", run.reason),
        ("steps", f"{run.committed_steps} of {run.total_steps} committed"),
    ]
    if run.step > run.committed_steps:
        state = training_pb2.StepState.Name(run.step_state).removeprefix("STEP_STATE_").lower()
        facts.append(("under way", f"step {run.step}, {state}"))
    if run.stage:
        facts.append(("stage", f"{run.stage}, trains {run.trains}"))
    facts += [
        ("created", _moment(run.create_time)),
        ("ended", _moment(run.end_time) if run.HasField("end_time") else ""),
        ("folder", run.folder),
        ("best step", f"{run.best_step}, {percent(run.best_success)} in validation" if run.best_step else ""),
        ("can be forked", f"after steps {run.forkable_steps}" if run.forkable_steps else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _provenance(provenance: training_pb2.RunProvenance) -> list[tuple[str, str]]:
    changed = " with changes that are not committed" if provenance.source_dirty else ""
    facts = [
        ("source", f"{provenance.source_revision or 'commit unknown'}{changed}, version {provenance.source_version}"),
        (provenance.lock_source or "packages", provenance.lock_digest),
        ("data", f"{provenance.data_digest}, {provenance.data_tasks} tasks"),
        ("config", provenance.config_digest),
        ("seed", str(provenance.seed)),
        ("isolation", provenance.isolation_profile),
    ]
    if provenance.HasField("fork"):
        fork = provenance.fork
        facts.append(("fork of", f"{fork.parent_run_id} after step {fork.step}"))
        facts.append(("its plan", "goes on where the parent's stood" if fork.plan_continued else "begins anew"))
        tasks = "go on where the parent's stood" if fork.tasks_continued else "begin anew"
        facts.append(("its tasks", f"{tasks}: {fork.tasks_reason}"))
    facts += [(each.kind, f"{each.name}, of {each.distribution} {each.version}") for each in provenance.plugins]
    for policy in provenance.policies:
        facts += [
            (f"policy {policy.policy_id}", f"{', '.join(policy.roles)}: {policy.model}"),
            ("  learner", policy.learner_engine),
            ("  engine", policy.serving_engine),
            ("  tokenizer", policy.tokenizer_digest),
            ("  chat template", policy.chat_template_digest),
            ("  architecture", policy.architecture_digest),
            ("  initial weights", policy.weights_digest),
        ]
    return [(name, value) for name, value in facts if value]


def _metrics(run: training_pb2.Run) -> list[tuple[str, str]]:
    trouble = sorted(name for name, value in run.last_metrics.items() if value > 0 and _TROUBLE.fullmatch(name))
    shown = [*(name for name in _SHOWN_METRICS if name in run.last_metrics), *trouble]
    return [(name, f"{run.last_metrics[name]:.4g}") for name in shown]


def _disk(disk: training_pb2.DiskBytes) -> list[tuple[str, str]]:
    parts = [
        ("rollout trees", disk.trees),
        ("sealed batches", disk.batches),
        ("checkpoints", disk.checkpoints),
        ("journal", disk.journal),
    ]
    return [(name, byte_size(value)) for name, value in parts if value]


def _uris(saved: training_pb2.RunCheckpoint) -> str:
    return "\n".join(saved.uris[policy_id] for policy_id in sorted(saved.uris))


def _event(event: training_pb2.RunEvent) -> str:
    if event.WhichOneof("event") == "condition":
        return condition_line(event.condition)
    changed = event.state_changed
    return state_name(changed.state) + (f": {changed.reason}" if changed.reason else "")


def _section(console: Console, title: str, facts: Iterable[tuple[str, str]]) -> None:
    listed = list(facts)
    if listed:
        console.print(plain(f"\n{title}", "bold"))
        _print(console, listed)


def _print(console: Console, facts: Iterable[tuple[str, str]]) -> None:
    grid = Table.grid(padding=(0, 2))
    for name, value in facts:
        grid.add_row(plain(name, "dim"), plain(value))
    console.print(grid)


def _difference_table(title: str, found: RunDifference, differences: Iterable[Difference]) -> Table:
    table = Table(title, visible(found.first), visible(found.second))
    for each in differences:
        table.add_row(plain(each.name), _side(each.first), _side(each.second))
    return table


def _side(value: str | None) -> Text:
    return plain("–", "dim") if value is None else plain(value)


def _moment(stamp: Timestamp) -> str:
    return stamp.ToDatetime().isoformat(" ", "seconds") + " UTC"

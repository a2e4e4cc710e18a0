"""A run as the contract's message: what lists show, and what one run shows besides."""

import asyncio
from collections.abc import Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from troupe.v1 import training_pb2
from troupe_contracts.errors import InvalidArgument

from troupe_orchestrator.evaluation.best import best_validation
from troupe_orchestrator.stages import StepPlan
from troupe_orchestrator.store.checkpoints import list_checkpoints
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.drops import list_drops
from troupe_orchestrator.store.run_events import newest_events
from troupe_orchestrator.store.runs import RunRecord
from troupe_orchestrator.store.step_outcomes import stage_ends, step_metrics
from troupe_orchestrator.store.summaries import RunSummary
from troupe_orchestrator.training.fork import forkable_of, last_step_of, plan_of, ranges
from troupe_orchestrator.training.inputs import parse
from troupe_orchestrator.training.record import RunOrigin, origin_of

_EVENTS = 20
_EVENTS_READ = 500
"""Of the newest ones, in which those that are shown are looked for."""


def run_message(summary: RunSummary) -> training_pb2.Run:
    """A run as lists show it."""
    record = summary.run
    began = origin_of(record.provenance)
    start = 0 if began is None or began.fork is None else began.fork.step
    committed = max(start, summary.committed_steps)
    return training_pb2.Run(
        run_id=record.run_id,
        state=training_pb2.RunState.Value(f"RUN_STATE_{record.state.upper()}"),
        reason=record.reason,
        config=record.config,
        committed_steps=committed,
        total_steps=record.total_steps,
        step=max(start, summary.step),
        step_state=(
            training_pb2.STEP_STATE_UNSPECIFIED
            if summary.step_state is None
            else training_pb2.StepState.Value(f"STEP_STATE_{summary.step_state.upper()}")
        ),
        create_time=timestamp(record.created_at),
        end_time=None if record.ended_at is None else timestamp(record.ended_at),
        folder=record.folder,
        disk_bytes=training_pb2.DiskBytes(
            trees=summary.disk.trees,
            batches=summary.disk.batches,
            checkpoints=summary.disk.checkpoints,
            journal=summary.disk.journal,
        ),
        provenance=None if began is None else provenance_message(began),
    )


async def detailed_run_message(database: Database, summary: RunSummary) -> training_pb2.Run:
    """A run with everything that there is to say of it."""
    message = run_message(summary)
    run_id = summary.run.run_id
    began = origin_of(summary.run.provenance)
    start = 0 if began is None or began.fork is None else began.fork.step
    ended = await stage_ends(database, run_id)
    plan = await asyncio.to_thread(_next_plan, summary.run, began, message.committed_steps, ended)
    if plan is not None:
        message.stage, message.trains = plan.stage, plan.trains.value
    if message.committed_steps:
        message.last_metrics.update(await step_metrics(database, run_id, message.committed_steps))
    message.quarantined_tasks.extend(
        training_pb2.QuarantinedTask(task_id=drop.task_id, reason=drop.reason, drops=drop.count)
        for drop in await list_drops(database, run_id)
        if drop.quarantined
    )
    best = await best_validation(database, run_id)
    if best is not None:
        message.best_step, message.best_success = best.step, best.success
    message.checkpoints.extend(
        training_pb2.RunCheckpoint(
            step=step,
            uris={policy: saved["uri"] for policy, saved in manifest.items()},
            best=best is not None and best.step == step,
        )
        for step, manifest in await list_checkpoints(database, run_id)
    )
    events = await newest_events(database, run_id, _EVENTS_READ)
    message.recent_events.extend(await asyncio.to_thread(_shown, events))
    message.forkable_steps = ranges(await forkable_of(database, run_id, start))
    return message


def provenance_message(began: RunOrigin) -> training_pb2.RunProvenance:
    """What a run came from."""
    fork = began.fork
    return training_pb2.RunProvenance(
        source_revision=began.source.revision,
        source_dirty=began.source.dirty,
        source_version=began.source.version,
        lock_digest=began.source.lock_digest,
        lock_source=began.source.lock_source,
        data_digest=began.data_digest,
        data_tasks=began.data_tasks,
        config_digest=began.config_digest,
        # Runs that began before seeds were bounded may have any.
        seed=min(max(began.seed, -(2**63)), 2**63 - 1),
        policies=[
            training_pb2.PolicyProvenance(
                policy_id=policy.policy_id,
                roles=policy.roles,
                model=policy.model,
                tokenizer_digest=policy.tokenizer_digest,
                chat_template_digest=policy.chat_template_digest,
                architecture_digest=policy.architecture_digest,
                learner_engine=policy.learner_engine,
                serving_engine=policy.serving_engine,
                weights_digest=policy.weights_digest,
            )
            for policy in began.policies
        ],
        isolation_profile=began.isolation_profile,
        plugins=[
            training_pb2.PluginProvenance(
                kind=each.kind, name=each.name, distribution=each.distribution, version=each.version
            )
            for each in began.source.plugins
        ],
        fork=None
        if fork is None
        else training_pb2.RunFork(
            parent_run_id=fork.parent,
            step=fork.step,
            tasks_continued=fork.tasks_continued,
            tasks_reason=fork.tasks_reason,
            plan_continued=fork.plan_continued,
        ),
    )


def timestamp(seconds: float) -> Timestamp:
    """A protobuf timestamp of seconds since the epoch."""
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp


def _next_plan(record: RunRecord, began: RunOrigin | None, committed: int, ended: Sequence[int]) -> StepPlan | None:
    """The plan of the step under way or of the next one; None after the last, and of a config that is refused by now."""
    try:
        config = parse(record.config)
    except InvalidArgument:
        return None
    fork = None if began is None else began.fork
    if committed >= last_step_of(config, fork, ended):
        return None
    return plan_of(config, fork, committed + 1, ended)


def _shown(payloads: Sequence[bytes]) -> list[Any]:
    """The newest conditions and changes of state."""
    events = (training_pb2.RunEvent.FromString(payload) for payload in payloads)
    return [event for event in events if event.WhichOneof("event") in ("condition", "state_changed")][-_EVENTS:]

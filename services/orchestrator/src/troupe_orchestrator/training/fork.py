"""Forks: which steps of a run can be forked, and how a fork gets the weights that it starts from.

A fork's steps are numbered on from its parent's, k+1 first, and it starts from what the parent's learners were after step k:
the newest kept checkpoint of the parent at or before k, or the parent's own start, and the sealed batches from there to k,
applied again. The result is saved in the fork's own folder, so that nothing that is later collected of the parent matters.

With the same seed and the same tasks a fork samples what its parent sampled: seeds are functions of the run's seed and of
the place in the rollout, never of the run's id.
"""

import asyncio
import shutil
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
from troupe.v1 import common_pb2
from troupe_contracts.errors import FailedPrecondition

from troupe_orchestrator.run_config import RunConfig, Trains
from troupe_orchestrator.stages import StepPlan, last_step, plan_step
from troupe_orchestrator.store import steps
from troupe_orchestrator.store.batches import (
    BatchCollectedError,
    BatchRecord,
    batches_between,
    first_collected,
    updated_policies,
)
from troupe_orchestrator.store.checkpoints import list_checkpoints, record_checkpoint
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.runs import RunRecord, get_run
from troupe_orchestrator.store.step_outcomes import metrics_of_steps, queue_after, stage_ends
from troupe_orchestrator.training.batch import read_batch
from troupe_orchestrator.training.initial_weights import check_initial_weights
from troupe_orchestrator.training.inputs import parse
from troupe_orchestrator.training.plateau import first_of_stage, validated
from troupe_orchestrator.training.policies import Policy, version_text
from troupe_orchestrator.training.queue import TaskQueue
from troupe_orchestrator.training.record import Fork, RunOrigin, TrainingData, origin_of
from troupe_orchestrator.training.rolling import StepFolders

logger = structlog.get_logger()


def plan_of(config: RunConfig, fork: Fork | None, step: int, ended: Sequence[int] = ()) -> StepPlan:
    """The plan of a run's step: a fork with stages of its own begins them with its first step.

    Args:
        ended: steps of the run with which a stage ended early.
    """
    if fork is None:
        return plan_step(config, step, ended=ended)
    return replace(
        plan_step(config, step - fork.plan_start, fork.before_plan, _in_plan(fork, ended)),
        step=step,
    )


def last_step_of(config: RunConfig, fork: Fork | None, ended: Sequence[int]) -> int:
    """The last step of a run, as its plan stands now."""
    if fork is None:
        return last_step(config, config.steps, ended)
    return fork.plan_start + last_step(config, config.steps - fork.plan_start, _in_plan(fork, ended))


def _in_plan(fork: Fork, ended: Sequence[int]) -> list[int]:
    return [step - fork.plan_start for step in (*fork.stages_ended, *ended)]


def forkable_steps(start: int, committed: int, checkpoints: Mapping[int, int | None]) -> list[int]:
    """Steps after which a run can be forked.

    Args:
        start: the step that the run started after, 0 unless it is a fork itself.
        committed: the newest committed step.
        checkpoints: each step whose checkpoint is kept, the run's start if its weights are to be had, to the first step
            after it of which a batch was collected; None where all are there.
    """
    found: set[int] = set()
    for checkpoint, gone in checkpoints.items():
        if start <= checkpoint <= committed:
            found.update(range(checkpoint, committed + 1 if gone is None else min(gone, committed + 1)))
    return sorted(found)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as "0, 3-7, 9"; "none" without one."""
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans) or "none"


async def fork_of(
    database: Database, parent: RunRecord, step: int, config: RunConfig, given: Collection[str], data: TrainingData
) -> Fork:
    """Where a fork leaves its parent.

    Args:
        config: of the fork, with `given` keys of the first level replaced.

    Raises:
        FailedPrecondition: what leads to this step is not there; names the steps that can be forked.
    """
    began = origin_of(parent.provenance)
    start = 0 if began is None or began.fork is None else began.fork.step
    possible = await forkable_of(database, parent.run_id, start)
    if step not in possible:
        committed = max(start, await steps.committed_steps(database, parent.run_id))
        why = (
            f"has committed {committed} steps"
            if step > committed
            else f"began after step {start}"
            if step < start
            else "no longer has the checkpoints and sealed batches that lead there"
        )
        raise FailedPrecondition(
            parent.run_id, f"cannot be forked after step {step}: it {why}; steps that can be: {ranges(possible)}"
        )
    parent_config = await asyncio.to_thread(parse, parent.config)
    grandparent = None if began is None else began.fork
    reason = _tasks_differ(parent_config, config, began, data)
    continued = "stages" not in given
    ended = tuple(end for end in await stage_ends(database, parent.run_id) if end <= step)
    if not continued:
        plan_start, before_plan = step, _trained_at(parent_config, grandparent, step, start, ended)
    elif grandparent is not None:
        plan_start, before_plan = grandparent.plan_start, grandparent.before_plan
    else:
        plan_start, before_plan = 0, None
    fork = Fork(
        parent=parent.run_id,
        step=step,
        plan_start=plan_start,
        before_plan=before_plan,
        plan_continued=continued,
        tasks_continued=not reason,
        tasks_reason=reason or "seed and tasks are those of the parent",
        queue=None if reason else await _queue_after(database, parent, step, grandparent, config.seed),
        stages_ended=(*(grandparent.stages_ended if grandparent is not None else ()), *ended) if continued else (),
    )
    if last_step_of(config, fork, ()) <= step:
        raise FailedPrecondition(
            parent.run_id, f"has ended its last stage with step {step}: give the fork `stages` of its own"
        )
    return await _in_its_stage(database, parent.run_id, config, fork, grandparent)


async def _in_its_stage(
    database: Database, parent: str, config: RunConfig, fork: Fork, grandparent: Fork | None
) -> Fork:
    """The fork with what its parent did in the stage of its first step: the policies that it updated, its validations."""
    plan = plan_of(config, fork, fork.step + 1)
    first = first_of_stage(plan)
    if first > fork.step:
        return fork
    updated = await updated_policies(database, parent, first, fork.step)
    # Read by the rule that ends a stage early, where it has one.
    ends_early = plan.until is not None
    successes = validated(await metrics_of_steps(database, parent, first, fork.step)) if ends_early else []
    inherits = grandparent is not None and first <= grandparent.step
    earlier = grandparent if inherits else None
    return replace(
        fork,
        updated=tuple(sorted(updated | set(earlier.updated if earlier else ()))),
        validated=(*(earlier.validated if earlier else ()), *successes),
    )


def _trained_at(config: RunConfig, fork: Fork | None, step: int, start: int, ended: Sequence[int]) -> Trains | None:
    """What a run's step trained; at its start what its parent had trained last, as far as that is known."""
    if step > start:
        return plan_of(config, fork, step, ended).trains
    return fork.before_plan if fork is not None and fork.plan_start == step else None


def _tasks_differ(parent: RunConfig, config: RunConfig, began: RunOrigin | None, data: TrainingData) -> str:
    """Why a fork cannot go on with the tasks where its parent stood; empty if it can."""
    if config.seed != parent.seed:
        return f"seed is {config.seed}, the parent's {parent.seed}"
    if began is None or (began.data_digest, began.data_tasks) != (data.digest, len(data.tasks)):
        return "the tasks are not those of the parent"
    return ""


async def _queue_after(
    database: Database, parent: RunRecord, step: int, fork: Fork | None, seed: int
) -> dict[str, Any]:
    queue = await queue_after(database, parent.run_id, step)
    if queue is not None:
        return queue
    return fork.queue if fork is not None and fork.queue is not None else TaskQueue(seed).to_json()


async def forkable_of(database: Database, run_id: str, start: int) -> list[int]:
    """Steps after which a run can be forked, by what the store lists of it."""
    checkpoints = {step for step, _ in await list_checkpoints(database, run_id)}
    # A run that is no fork starts from the learner's model folder, which is there as long as the learner is.
    origins = {0} if start == 0 else set()
    committed = max(start, await steps.committed_steps(database, run_id))
    gone = {step: await first_collected(database, run_id, step) for step in checkpoints | origins}
    return forkable_steps(start, committed, gone)


async def prepare_base(database: Database, run_id: str, folder: Path, fork: Fork, policies: Sequence[Policy]) -> None:
    """Make the checkpoint of each policy that a fork starts from, if it has none yet.

    Raises:
        LearnerError: a learner could not load, replay or save, or no longer has the weights that the parent began with.
        BatchCollectedError: a batch of the parent is gone.
    """
    recorded = dict(await list_checkpoints(database, run_id)).get(fork.step)
    if recorded is None and await steps.last_step(database, run_id) is None:
        recorded = {policy.policy_id: await _base_of(database, folder, fork, policy) for policy in policies}
        await record_checkpoint(database, run_id, fork.step, recorded)


async def inherit_held(database: Database, run_folder: Path, fork: Fork, config: RunConfig) -> None:
    """Give a fork in the middle of a stage the sequences by which its parent measures the drift of the other role in it."""
    first = first_of_stage(plan_of(config, fork, fork.step + 1))
    parent = await get_run(database, fork.parent)
    if first <= fork.step and parent is not None:
        token = database.fence.token
        await asyncio.to_thread(_inherit, StepFolders(Path(parent.folder)), StepFolders(run_folder), first, token)


def _inherit(parent: StepFolders, child: StepFolders, step: int, token: int) -> None:
    """Copy what was held of a step, where something was, once, whole or not at all."""
    source, target = parent.newest_held(step), child.held(step, token)
    if source is None or child.newest_held(step) is not None:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.copyfile(source, partial)
    partial.replace(target)


async def _base_of(database: Database, folder: Path, fork: Fork, policy: Policy) -> dict[str, Any]:
    """Bring a learner to the parent's step and save what it then is; the manifest's entry of it."""
    source, batches = await _way_to(database, fork, policy.policy_id)
    target = folder / "checkpoints" / f"base-{policy.policy_id}-{database.fence.token}"
    # One that was not recorded is of an attempt that was cut short.
    await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)
    # A name of its own per attempt: the parent's ledger says nothing about these updates.
    scratch = f"base-{uuid.uuid4().hex[:12]}"
    logger.info("making a fork's base", policy=policy.policy_id, source=source, replayed=len(batches))
    if not source:
        await check_initial_weights(database, fork.parent, policy)
    await policy.learner.bind(database.fence, scratch, source)
    for number, batch in enumerate(batches, start=1):
        await _replay(database.fence, policy, scratch, number, batch)
    saved = await policy.learner.checkpoint(database.fence, str(target), scratch, len(batches))
    return {"uri": saved.uri, "update": 0, "version": version_text(saved.version)}


async def _way_to(database: Database, fork: Fork, policy_id: str) -> tuple[str, list[BatchRecord]]:
    """The checkpoint to begin from ("" is the initial weights), and the batches from there to the parent's step.

    Raises:
        BatchCollectedError: what leads there was collected while the fork waited.
    """
    checkpoint, source = 0, ""
    for step, manifest in await list_checkpoints(database, fork.parent):
        if checkpoint <= step <= fork.step:
            checkpoint, source = step, manifest[policy_id]["uri"]
    parent = await get_run(database, fork.parent)
    began = None if parent is None else origin_of(parent.provenance)
    if not source and began is not None and began.fork is not None:
        raise BatchCollectedError(
            f"the checkpoint that run {fork.parent}, a fork itself, began with was collected while this fork waited: "
            "cancel it, and fork a step that can be"
        )
    try:
        return source, await batches_between(database, fork.parent, policy_id, checkpoint, fork.step)
    except BatchCollectedError as error:
        raise BatchCollectedError(f"{error} while this fork waited: cancel it, and fork a step that can be") from error


async def _replay(fence: common_pb2.Fence, policy: Policy, run_id: str, update: int, batch: BatchRecord) -> None:
    sequences = await asyncio.to_thread(read_batch, Path(batch.file))
    await policy.learner.train(fence, run_id, update, bytes.fromhex(batch.digest), sequences, batch.optimization)

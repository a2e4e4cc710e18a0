"""Checkpoints of a run: one manifest names the folder of every policy, and is on record only once all are whole."""

import asyncio
import shutil
from collections.abc import Collection
from pathlib import Path

from troupe_orchestrator.evaluation.best import best_validation
from troupe_orchestrator.store.batches import last_update
from troupe_orchestrator.store.checkpoints import forget_checkpoint, list_checkpoints, record_checkpoint
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.training.policies import Policy, version_text


async def save_checkpoint(
    database: Database, run_id: str, step: int, folder: Path, policies: Collection[Policy], keep: int, start: int
) -> None:
    """Save all policies after a committed step, and forget older checkpoints beyond `keep`, but not that of the best step.
    Does nothing if it was done.

    Args:
        start: the step that the run began after. What a fork began with stays: its policies that are not trained yet come
            back from there, and it can be evaluated and forked.

    Raises:
        LearnerError: one could not be saved, or the learner has other weights.
    """
    if any(saved == step for saved, _ in await list_checkpoints(database, run_id)):
        return
    manifest = {}
    for policy in policies:
        # A folder that only this orchestrator writes or removes: one that lost the store meanwhile has another token.
        uri = folder / "checkpoints" / f"step-{step:06d}-{policy.policy_id}-{database.fence.token}"
        # Not on record, so it is nobody's: left by one that was killed, perhaps under the name of another lineage.
        await asyncio.to_thread(shutil.rmtree, uri, ignore_errors=True)
        sealed = await last_update(database, run_id, policy.policy_id)
        saved = await policy.learner.checkpoint(database.fence, str(uri), run_id, sealed)
        manifest[policy.policy_id] = {
            "uri": saved.uri,
            "update": saved.step,
            "version": version_text(saved.version),
            # What an engine that loads it must reproduce.
            "probes": [
                {"token_ids": list(probe.token_ids), "log_probs": list(probe.log_probs)}
                for probe in await policy.learner.probes(policy.fixed_probes, saved.version)
            ],
        }
    await record_checkpoint(database, run_id, step, manifest)
    best = await best_validation(database, run_id)
    for old, folders in (await list_checkpoints(database, run_id))[keep:]:
        if old == start or (best is not None and best.step == old):
            continue
        # The row goes first: a checkpoint that is listed is whole.
        await forget_checkpoint(database, run_id, old)
        for saved_policy in folders.values():
            await asyncio.to_thread(shutil.rmtree, saved_policy["uri"], ignore_errors=True)

"""Which files of a run the store lists, and taking them off its lists.

A listed file is there. So it is taken off first, here, and removed afterwards (`training.retention`): a crash in between
leaves a file that nobody lists, which the next start removes, never a list that names what is gone.
"""

from collections.abc import Mapping

from sqlalchemy import and_, or_, select, update

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.database import Database


async def listed_files(database: Database, scope: str) -> frozenset[str]:
    """Trees, batches, journalled groups and checkpoints of a run or an eval job that are to be there, as listed."""
    trees, batches, groups, checkpoints = (
        schema.tree_files.c,
        schema.batches.c,
        schema.groups.c,
        schema.checkpoints.c,
    )
    async with database.reading() as connection:
        found = [
            *await connection.scalars(select(trees.path).where(trees.scope == scope, ~trees.collected)),
            *await connection.scalars(select(batches.file).where(batches.run_id == scope, ~batches.collected)),
            *await connection.scalars(select(groups.file).where(groups.run_id == scope)),
        ]
        manifests = await connection.scalars(select(checkpoints.manifest).where(checkpoints.run_id == scope))
        found += [policy["uri"] for manifest in manifests for policy in manifest.values()]
    return frozenset(found)


async def forget_files(
    database: Database, run_id: str, trees_until: int, batches_until: Mapping[str, int]
) -> list[str]:
    """Take trees and batches off the lists; the files that are now nobody's.

    Args:
        trees_until: the last step whose trees go.
        batches_until: policy id to the last of its updates whose batch goes.
    """
    trees, batches = schema.tree_files.c, schema.batches.c
    old_batches = [
        and_(batches.policy_id == policy_id, batches.update_number <= newest)
        for policy_id, newest in batches_until.items()
    ]
    async with database.writing() as connection:
        gone = list(
            await connection.scalars(
                update(schema.tree_files)
                .where(trees.scope == run_id, trees.step <= trees_until, ~trees.collected)
                .values(collected=True)
                .returning(trees.path)
            )
        )
        if old_batches:
            gone += await connection.scalars(
                update(schema.batches)
                .where(batches.run_id == run_id, or_(*old_batches), ~batches.collected)
                .values(collected=True)
                .returning(batches.file)
            )
    return gone

"""What stays of a run's files, and removing the rest.

The rule, of which `collectable` is the whole:

- A sealed batch stays while a replay may need it: while its update comes after the oldest of the `checkpoint.keep` newest
  checkpoints. A checkpoint that is kept beyond those, since it is the best by validation, keeps no batches. With
  `retention.batches: all` every batch stays.
- Rollout trees stay for the last `retention.trees` committed steps; by default for all, since traces and later studies read
  them. The timeline of a step goes with its trees.
- The journal of a step stays until the step is sealed. Nothing of a step that is not committed is touched.
- Of what is held of a step to measure drift by, and of a timeline beside trees, that of the highest token stays. No list has
  them.

Files go in two moves, each safe to die in: first the store takes them off its lists (`store.retained`), then they are
removed. What is left between the two, and what a process wrote that died before the store knew of it, is nobody's: `sweep`
removes it before a run goes on. File names carry the fencing token of who writes: a stale orchestrator overwrites nothing.
"""

import asyncio
import re
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from troupe_orchestrator.run_config import RunConfig
from troupe_orchestrator.store.checkpoints import list_checkpoints
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.retained import forget_files, listed_files

logger = structlog.get_logger()

# What we write below the folder of a run or an eval job. Unfinished checkpoints of learners begin with a dot, and stay.
_OURS = re.compile(
    r"steps/\d+/(trees|batch)-[^/]*\.parquet"
    r"|steps/\d+/groups/[^/]*\.parquet"
    r"|steps/\d+/(groups/)?\.[^/]*\.partial"
    r"|trees/\d+-\d+\.parquet|trees/\.[^/]*\.partial"
    r"|checkpoints/(step|base)-[^/]+"
)
_TIMELINE = re.compile(r"(steps/\d+/)timeline-\d+\.json")
_UNLISTED = re.compile(r"(steps/\d+/(?:held|timeline))-\d+\.(?:parquet|json)")
_WRITER = re.compile(r"-(\d+)(\.parquet|\.json)?(\.partial)?$")
"""The fencing token in a name."""


@dataclass(frozen=True, slots=True)
class Collectable:
    """What a run no longer needs."""

    trees_until: int
    """The last step whose trees may go; 0 for none."""
    batches_until: Mapping[str, int]
    """Policy id to the last update whose batch may go."""


def collectable(
    committed: int, checkpoints: Sequence[Mapping[str, Mapping[str, Any]]], keep: int, trees: int | None
) -> Collectable:
    """What may go.

    Args:
        committed: the newest committed step.
        checkpoints: manifests, the newest first: policy id to its entry, with the `update` that it holds.
        keep: checkpoints from which a learner may have to be brought back.
        trees: committed steps whose trees stay; None for all.
    """
    replayed_from = checkpoints[:keep]
    policies = set.intersection(*map(set, replayed_from)) if replayed_from else set()
    return Collectable(
        trees_until=0 if trees is None else max(0, committed - trees),
        batches_until={policy: min(manifest[policy]["update"] for manifest in replayed_from) for policy in policies},
    )


def orphans(found: Iterable[str], listed: Collection[str], token: int) -> list[str]:
    """Files of ours that nobody lists, or that a later orchestrator wrote anew. Paths are relative to the run's folder.

    Args:
        token: who asks. What a later orchestrator wrote may be on its list by now, and is not touched.
    """
    found = list(found)
    gone = {path for path in found if _OURS.fullmatch(path) and path not in listed}
    gone |= _written_anew(found) | _without_trees(found, listed)
    return sorted(path for path in gone if _writer(path) <= token)


async def collect(database: Database, run_id: str, committed: int, config: RunConfig) -> None:
    """Remove what the rule lets go, after a committed step."""
    # Without a checkpoint a replay needs all.
    keeps_all = config.retention.batches == "all"
    manifests = [] if keeps_all else [manifest for _, manifest in await list_checkpoints(database, run_id)]
    trees = None if config.retention.trees == "all" else config.retention.trees
    rule = collectable(committed, manifests, config.checkpoint.keep, trees)
    gone = await forget_files(database, run_id, rule.trees_until, rule.batches_until)
    await asyncio.to_thread(_remove, map(Path, gone))
    steps = [Path(path).parent for path in gone if Path(path).name.startswith("trees-")]
    await asyncio.to_thread(lambda: _remove(timeline for step in steps for timeline in step.glob("timeline-*.json")))


async def sweep(database: Database, scope: str, folder: Path) -> None:
    """Remove what an orchestrator left that died, before this one writes anything.

    Args:
        scope: run id or eval job id.
    """
    listed = {_relative(path, folder) for path in await listed_files(database, scope)}
    found = await asyncio.to_thread(_found, folder)
    left_over = orphans(found, listed, database.fence.token)
    if left_over:
        logger.info("removing what was left over", scope=scope, files=len(left_over), first=left_over[0])
        await asyncio.to_thread(_remove, (folder / path for path in left_over))


def _written_anew(found: Iterable[str]) -> set[str]:
    """Those that no list has and that a file of a higher token has taken the place of."""
    of_one_thing: dict[str, list[str]] = {}
    for path in found:
        if named := _UNLISTED.fullmatch(path):
            of_one_thing.setdefault(named[1], []).append(path)
    return {path for paths in of_one_thing.values() for path in sorted(paths, key=_writer)[:-1]}


def _without_trees(found: Iterable[str], listed: Collection[str]) -> set[str]:
    """Timelines of steps whose trees no list has: these were collected, or the step is rolled out anew."""
    with_trees = {path.rpartition("/")[0] + "/" for path in listed if "/trees-" in path}
    return {path for path in found if (named := _TIMELINE.fullmatch(path)) and named[1] not in with_trees}


def _writer(path: str) -> int:
    named = _WRITER.search(path)
    return int(named[1]) if named else 0


def _found(folder: Path) -> list[str]:
    """Files of steps and of eval jobs, and folders of checkpoints."""
    files = [path for part in ("steps", "trees") for path in (folder / part).rglob("*") if path.is_file()]
    return [path.relative_to(folder).as_posix() for path in (*files, *(folder / "checkpoints").glob("*"))]


def _relative(path: str, folder: Path) -> str:
    """A path as `_found` has it; as it is where it lies elsewhere."""
    location = Path(path.removeprefix("file://"))
    return location.relative_to(folder).as_posix() if location.is_relative_to(folder) else path


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

"""What of a run's files stays: the rule as a pure function, and the files on disk, also where it dies between its moves."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator.run_config import RunConfig, parse_run_config
from troupe_orchestrator.store.batches import BatchCollectedError, BatchRecord, batches_after
from troupe_orchestrator.store.checkpoints import record_checkpoint
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.executions import TreeFile, find_execution
from troupe_orchestrator.store.journal import JournalledGroup, journal_group
from troupe_orchestrator.store.retained import forget_files
from troupe_orchestrator.store.runs import RunRecord, RunState, create_run
from troupe_orchestrator.store.steps import StepRecord, StepState, advance_step, begin_step
from troupe_orchestrator.store.summaries import get_summary
from troupe_orchestrator.training.retention import collect, collectable, orphans, sweep

updates = st.dictionaries(st.sampled_from("pq"), st.integers(0, 50), min_size=1)


def manifest(updates: dict[str, int]) -> dict[str, dict[str, int]]:
    return {policy: {"update": update} for policy, update in updates.items()}


@given(st.lists(updates, max_size=6), st.integers(1, 4))
def test_no_batch_goes_that_a_replay_from_a_kept_checkpoint_needs(saved: list[dict[str, int]], keep: int) -> None:
    newest_first = [manifest(each) for each in reversed(saved)]
    until = collectable(100, newest_first, keep, None).batches_until
    for kept in newest_first[:keep]:
        for policy in set(until) | set(kept):
            assert until.get(policy, 0) <= kept.get(policy, {"update": 0})["update"]


@given(st.integers(0, 100), st.integers(1, 100))
def test_trees_stay_for_so_many_committed_steps_and_no_other_step_is_touched(committed: int, trees: int) -> None:
    until = collectable(committed, [], 2, trees).trees_until
    assert until <= committed
    assert len(range(until + 1, committed + 1)) == min(trees, committed)


def test_without_a_checkpoint_and_a_limit_everything_stays() -> None:
    rule = collectable(100, [], 2, None)
    assert (rule.trees_until, rule.batches_until) == (0, {})


def test_a_checkpoint_beyond_those_that_are_kept_for_replay_keeps_no_batches() -> None:
    best, second, newest = manifest({"p": 3}), manifest({"p": 20}), manifest({"p": 30})
    assert collectable(30, [newest, second, best], 2, None).batches_until == {"p": 20}


def test_only_files_that_we_name_so_and_nobody_lists_are_left_over() -> None:
    listed = {"steps/000001/trees-1.parquet", "checkpoints/step-000001-p"}
    ours = ["steps/000001/trees-2.parquet", "steps/000002/batch-p-1.parquet", "steps/000002/groups/ab-1.parquet"]
    ours += ["steps/000002/.trees-1.parquet.partial", "steps/000002/groups/.ab-1.parquet.partial"]
    ours += [
        "checkpoints/step-000009-p-2",
        "checkpoints/base-p-1",
        "trees/00000003-2.parquet",
        "trees/.00000003-2.parquet.partial",
    ]
    others = ["steps/000001/timeline-1.json", "steps/000001/held-1.parquet", "notes.txt"]
    others += ["checkpoints/.step-000009-p.partial-1234", "steps/000001/mine/trees-1.parquet"]
    assert orphans([*listed, *ours, *others], listed, 2) == sorted(ours)


def test_a_stale_orchestrator_takes_nothing_of_a_later_one_for_left_over() -> None:
    """It may have read its list before the later one wrote and listed these."""
    later = ["steps/000001/trees-8.parquet", "steps/000001/groups/ab-8.parquet", "checkpoints/step-000001-p-8"]
    later += ["steps/000002/.batch-p-8.parquet.partial", "checkpoints/base-p-8", "trees/00000003-8.parquet"]
    assert orphans(later, [], 7) == []
    assert orphans(later, [], 8) == sorted(later)


def test_of_what_is_held_and_of_timelines_that_of_the_highest_token_stays() -> None:
    step = "steps/000001"
    earlier = [f"{step}/held-9.parquet", f"{step}/timeline-9.json"]
    newest = [f"{step}/held-10.parquet", f"{step}/timeline-10.json", "steps/000002/held-9.parquet"]
    listed = [f"{step}/trees-10.parquet"]
    assert orphans([*newest, *earlier, *listed], listed, 11) == earlier
    assert orphans([*newest, *earlier, *listed], listed, 8) == []


def test_a_timeline_without_trees_is_left_over() -> None:
    found = ["steps/000001/timeline-1.json", "steps/000001/held-1.parquet", "steps/000002/timeline-1.json"]
    assert orphans(found, ["steps/000002/trees-1.parquet"], 1) == ["steps/000001/timeline-1.json"]


CONFIG = """
dataset: {train: tasks.jsonl}
steps: 9
stages: [{train: both, steps: 9}]
checkpoint: {every: 2, keep: 2}
"""


def config(trees: str, batches: str = "needed") -> RunConfig:
    return parse_run_config(f"{CONFIG}retention: {{trees: {trees}, batches: {batches}}}\n")


async def commit_steps(database: Database, folder: Path, last: int) -> None:
    """A run of so many committed steps with a checkpoint after every second."""
    await create_run(database, RunRecord("r", RunState.RUNNING, "", "", 9, str(folder), 1.0, None), {})
    for number in range(1, last + 1):
        step = folder / "steps" / f"{number:06d}"
        trees, batch = step / "trees-1.parquet", step / "batch-p-1.parquet"
        step.mkdir(parents=True)
        trees.write_bytes(b"t" * 100)
        batch.write_bytes(b"b" * 10)
        timeline = step / "timeline-1.json"
        timeline.write_bytes(b"l" * 5)
        record = StepRecord(
            "r", number, StepState.ROLLING, ("t",), {}, {}, (BatchRecord("p", number, "", str(batch), 1, {}),)
        )
        await begin_step(database, record)
        for state in (StepState.SEALED, StepState.TRAINED, StepState.SYNCED, StepState.COMMITTED):
            sealed = TreeFile(str(trees), [f"{number:06x}abc"], "", str(timeline))
            listed = sealed if state is StepState.SEALED else None
            await advance_step(database, record, state, trees=listed)
        if number % 2 == 0:
            uri = folder / "checkpoints" / f"step-{number:06d}-p"
            uri.mkdir(parents=True)
            (uri / "weights").write_bytes(b"w" * 1000)
            await record_checkpoint(database, "r", number, {"p": {"uri": str(uri), "update": number}})


def there(folder: Path) -> set[str]:
    return {f"{int(path.parent.name)}{path.name[0]}" for path in (folder / "steps").glob("*/*.parquet")}


def timelines(folder: Path) -> set[int]:
    return {int(path.parent.name) for path in (folder / "steps").glob("*/timeline-*.json")}


async def test_what_no_checkpoint_needs_goes_and_disk_use_says_what_is_left(database: Database, tmp_path: Path) -> None:
    await commit_steps(database, tmp_path, 7)
    before = await get_summary(database, "r")
    assert before is not None
    assert (before.disk.trees, before.disk.batches, before.disk.checkpoints) == (735, 70, 3000)
    await collect(database, "r", 7, config("2"))
    # Two checkpoints are kept for replay, after steps 4 and 6.
    assert there(tmp_path) == {"6t", "7t", "5b", "6b", "7b"}
    assert timelines(tmp_path) == {6, 7}
    after = await get_summary(database, "r")
    assert after is not None
    assert (after.disk.trees, after.disk.batches, after.disk.checkpoints) == (210, 30, 3000)
    (traced,) = await find_execution(database, "000001abc")
    assert traced.collected
    assert [batch.update for batch in await batches_after(database, "r", "p", 4)] == [5, 6, 7]
    with pytest.raises(BatchCollectedError, match="updates 4 to 4 of policy p in run r were collected"):
        await batches_after(database, "r", "p", 3)


async def test_collecting_again_removes_nothing_more(database: Database, tmp_path: Path) -> None:
    await commit_steps(database, tmp_path, 7)
    for _ in range(2):
        await collect(database, "r", 7, config("all"))
        assert there(tmp_path) == {*(f"{step}t" for step in range(1, 8)), "5b", "6b", "7b"}


async def test_all_batches_stay_where_that_is_asked_for(database: Database, tmp_path: Path) -> None:
    await commit_steps(database, tmp_path, 7)
    await collect(database, "r", 7, config("1", "all"))
    assert there(tmp_path) == {"7t", *(f"{step}b" for step in range(1, 8))}
    assert [batch.update for batch in await batches_after(database, "r", "p", 0)] == [1, 2, 3, 4, 5, 6, 7]


async def test_one_that_dies_between_the_list_and_the_file_leaves_a_file_that_the_next_start_removes(
    database: Database, tmp_path: Path
) -> None:
    await commit_steps(database, tmp_path, 4)
    await forget_files(database, "r", 2, {"p": 3})  # and then it is killed
    assert len(there(tmp_path)) == 8
    await sweep(database, "r", tmp_path)
    assert there(tmp_path) == {"3t", "4t", "4b"}
    assert timelines(tmp_path) == {3, 4}


async def test_what_was_written_and_never_listed_is_removed_at_the_next_start_and_nothing_else(
    database: Database, tmp_path: Path
) -> None:
    await commit_steps(database, tmp_path, 2)
    await begin_step(database, StepRecord("r", 3, StepState.ROLLING, ("t",), {}))
    groups = tmp_path / "steps" / "000003" / "groups"
    groups.mkdir(parents=True)
    kept = {
        groups / "aa-1.parquet",
        tmp_path / "checkpoints" / ".step-000003-p.partial-1",
    }
    left_over = {groups / "bb-1.parquet", groups / ".cc-1.parquet.partial", groups.parent / "trees-1.parquet"}
    left_over |= {groups.parent / "timeline-1.json"}
    for file in kept | left_over:
        file.write_bytes(b"")
    unrecorded = tmp_path / "checkpoints" / "step-000003-p"
    unrecorded.mkdir()
    await journal_group(database, "r", 3, "t", JournalledGroup(str(groups / "aa-1.parquet"), {}, ""))
    before = there(tmp_path)
    await sweep(database, "r", tmp_path)
    assert all(file.exists() for file in kept)
    assert not any(file.exists() for file in (*left_over, unrecorded))
    assert before - there(tmp_path) == {"3t"}
    assert {path.name for path in (tmp_path / "checkpoints").glob("step-*")} == {"step-000002-p"}

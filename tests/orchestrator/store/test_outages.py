"""A store that is locked, full, restarted or away: waited for, then one typed error; and nothing is half done."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text
from storage.cutting_proxy import CuttingProxy
from storage.locked_file import locked
from storage.postgres import PostgresServer
from storage.small_disk import SmallDisk, small_disk
from troupe_orchestrator.store import schema
from troupe_orchestrator.store.database import Database, LeaseHeldError, StoreUnavailableError
from troupe_orchestrator.store.engine import StoreUrlError
from troupe_orchestrator.store.files import FileWriteError
from troupe_orchestrator.store.run_events import read_events
from troupe_orchestrator.store.runs import RunRecord, RunState, create_run, get_run, runs_in_state, set_run_state
from troupe_orchestrator.store.steps import StepRecord, StepState, advance_step, begin_step, last_step
from troupe_orchestrator.store.trees import read_trees, write_trees
from troupe_orchestrator.training.events import EventLog
from troupe_orchestrator.tree import Node, NodeKind, TaskPayload, Tree

RUN = RunRecord("run-1", RunState.RUNNING, "", "config", 3, "/nowhere", 1.0, None)
STEP = StepRecord("run-1", 1, StepState.ROLLING, ("t1",), {"seed": 1}, {"p": "a:0"})


async def opened(url: str, patience: float = 0.5) -> Database:
    return await Database.open(url, 30.0, patience_seconds=patience)


async def test_a_sqlite_file_that_another_process_locks_for_long_is_an_outage_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "troupe.db"
    database = await opened(f"sqlite:///{file}")
    with locked(file):
        with pytest.raises(StoreUnavailableError, match=r"troupe\.db is locked .*: end the process that holds it"):
            await create_run(database, RUN, {})
        assert await get_run(database, "run-1") is None  # readers are not kept out
    await create_run(database, RUN, {})
    await database.close()


async def test_a_short_lock_is_waited_out(tmp_path: Path) -> None:
    file = tmp_path / "troupe.db"
    database = await opened(f"sqlite:///{file}", patience=20)
    with locked(file) as process:
        creating = asyncio.create_task(create_run(database, RUN, {}))
        await asyncio.sleep(0.3)
        assert not creating.done()
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)
        await creating
        process.stdin = None
    assert await get_run(database, "run-1") is not None
    await database.close()


async def test_a_server_that_was_restarted_meanwhile_is_not_even_noticed(postgres: PostgresServer) -> None:
    database = await opened(postgres.new_database(), patience=20)
    await create_run(database, RUN, {})
    for end in (postgres.stop, postgres.kill):
        end()
        working = asyncio.gather(
            set_run_state(database, "run-1", RunState.PAUSED, end.__name__), get_run(database, "run-1")
        )
        await asyncio.sleep(0.5)
        assert not working.done()
        postgres.start()
        await working
        run = await get_run(database, "run-1")
        assert run is not None
        assert run.reason == end.__name__
    await database.close()


async def test_a_server_that_stays_away_is_an_outage_for_readers_and_writers_until_it_is_back(
    postgres: PostgresServer,
) -> None:
    database = await opened(postgres.new_database())
    postgres.stop()
    try:
        with pytest.raises(StoreUnavailableError, match=r"cannot be reached .*: start its server, or correct"):
            await create_run(database, RUN, {})
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            await get_run(database, "run-1")
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            await opened(postgres_url(database))
    finally:
        postgres.start()
    await create_run(database, RUN, {})
    with pytest.raises(LeaseHeldError):
        await opened(postgres_url(database))
    await database.close()


def postgres_url(database: Database) -> str:
    return database._engine.url.render_as_string(hide_password=False)


async def test_an_orchestrator_that_ends_while_its_store_is_away_ends_all_the_same(postgres: PostgresServer) -> None:
    database = await opened(postgres.new_database())
    postgres.stop()
    try:
        await database.close()
    finally:
        postgres.start()


async def test_a_transaction_that_the_server_ends_midway_has_done_nothing(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    database = await opened(url)
    with pytest.raises(StoreUnavailableError, match="ended the transaction"):  # noqa: PT012
        async with database.writing() as connection:
            await connection.execute(insert(schema.events).values(run_id="r", event_id=1, payload=b""))
            backend = await connection.scalar(text("SELECT pg_backend_pid()"))
            postgres.execute(f"SELECT pg_terminate_backend({backend})")
            await connection.execute(select(schema.lease))
    assert await read_events(database, "r", 0) == []
    await database.close()


async def test_a_server_that_goes_once_all_is_read_takes_nothing_back(postgres: PostgresServer) -> None:
    database = await opened(postgres.new_database())
    async with database.reading() as connection:
        backend = await connection.scalar(text("SELECT pg_backend_pid()"))
        postgres.execute(f"SELECT pg_terminate_backend({backend})")
    assert await read_events(database, "r", 0) == []
    await database.close()


@pytest.fixture
async def proxy(postgres: PostgresServer) -> AsyncIterator[CuttingProxy]:
    async with CuttingProxy(postgres.folder) as proxy:
        yield proxy


@pytest.mark.parametrize("applied", [True, False])
async def test_after_a_commit_whose_answer_is_lost_the_store_says_how_to_go_on(
    postgres: PostgresServer, proxy: CuttingProxy, applied: bool
) -> None:
    database = await opened(proxy.url(postgres.new_database()))
    await create_run(database, RUN, {})
    await begin_step(database, STEP)
    cut = [True]
    setattr(proxy, "lose_answer" if applied else "lose_request", lambda _: bool(cut) and cut.pop())
    with pytest.raises(StoreUnavailableError, match="whether the last change is in it is not known"):
        await advance_step(database, STEP, StepState.SEALED)
    assert proxy.cuts == 1
    step = await last_step(database, "run-1")
    assert step is not None
    assert step.state is (StepState.SEALED if applied else StepState.ROLLING)
    await database.close()


async def test_a_commit_that_its_server_is_still_doing_is_waited_for_before_the_store_is_read_anew(
    postgres: PostgresServer, proxy: CuttingProxy
) -> None:
    database = await opened(proxy.url(postgres.new_database()), patience=20)
    await create_run(database, RUN, {})
    await begin_step(database, STEP)
    events = await EventLog.open(database, "run-1")
    async with database.writing() as connection:
        await connection.execute(
            text(
                "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql "
                "AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$"
            )
        )
        await connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON steps DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION dawdle()"
            )
        )
    committing = asyncio.Event()
    proxy.lose_request = lambda _: bool(committing.set())
    advancing = asyncio.create_task(advance_step(database, STEP, StepState.SEALED))
    await committing.wait()
    await asyncio.sleep(0.3)  # so that the server has the request
    proxy.cut()
    with pytest.raises(StoreUnavailableError, match="whether the last change is in it is not known"):
        await advancing
    await events.reread()
    step = await last_step(database, "run-1")
    assert step is not None
    assert step.state is StepState.SEALED
    await database.close()


async def test_a_server_that_says_nothing_when_it_is_called_is_away() -> None:
    # As a pod's address is whose pod has just gone.
    away = pytest.raises(StoreUnavailableError, match=r"cannot be reached .*timeout")
    with socket.create_server(("127.0.0.1", 0)) as silent, away:
        await opened(f"postgresql://user@127.0.0.1:{silent.getsockname()[1]}/runs")


def test_a_url_of_another_database_is_refused_by_name() -> None:
    with pytest.raises(StoreUrlError, match=r"is one of mysql: give sqlite:///file or postgresql://"):
        asyncio.run(opened("mysql://localhost/troupe"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", megabytes=4) as disk:
        yield disk


async def test_sqlite_on_a_full_disk_is_an_outage_and_goes_on_when_space_is_freed(disk: SmallDisk) -> None:
    database = await opened(f"sqlite:///{disk.folder}/troupe.db")
    await create_run(database, RUN, {})
    await begin_step(database, STEP)
    disk.fill()
    large = replace(STEP, metrics={f"metric-{number}": float(number) for number in range(20_000)})
    with pytest.raises(StoreUnavailableError, match=r"troupe\.db (has no space left|cannot be read or written)"):
        await advance_step(database, large, StepState.SEALED)
    step = await last_step(database, "run-1")
    assert step == STEP
    disk.free()
    await advance_step(database, large, StepState.SEALED)
    step = await last_step(database, "run-1")
    assert step is not None
    assert (step.state, len(step.metrics)) == (StepState.SEALED, 20_000)
    await database.close()


def tree(question: str) -> Tree:
    return Tree((Node("t", "", NodeKind.TASK, 0, TaskPayload("task-1", "calc", "math", question)),))


def test_a_file_that_does_not_fit_names_the_remedy_and_leaves_the_one_before_and_nothing_else(disk: SmallDisk) -> None:
    file = disk.folder / "trees.parquet"
    write_trees(file, [tree("What is 1 + 2?")])
    disk.fill(leaving=8192)
    incompressible = bytes(range(256)).hex() + "".join(f"{hash((7, number)):x}" for number in range(20_000))
    with pytest.raises(FileWriteError, match=r"trees\.parquet cannot be written \(No space left .*: free space on its"):
        write_trees(file, [tree(incompressible)])
    assert sorted(path.name for path in disk.folder.iterdir()) == ["ballast", "trees.parquet"]
    assert [each.root.payload for each in read_trees(file)] == [tree("What is 1 + 2?").root.payload]
    disk.free()
    write_trees(file, [tree(incompressible)])
    assert [each.root.payload for each in read_trees(file)] == [tree(incompressible).root.payload]


async def test_what_is_committed_survives_the_servers_death_whatever_its_default(postgres: PostgresServer) -> None:
    assert postgres.execute("SHOW synchronous_commit") == [("off",)]
    database = await opened(postgres.new_database())
    for number in range(20):
        await create_run(database, replace(RUN, run_id=f"run-{number}"), {})
    postgres.kill()
    postgres.start()
    assert len(await runs_in_state(database, RunState.RUNNING)) == 20
    await database.close()

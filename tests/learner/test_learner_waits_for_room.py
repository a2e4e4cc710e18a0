"""Ranks that a full disk keeps from starting wait for room, however often it was tried. A real disk; ranks are stand-ins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from learning.disk import Disk, small_disk
from troupe_contracts.errors import Unavailable
from troupe_learner import supervisor
from troupe_learner.gang import GenerationLost, Host, RankPlan
from troupe_learner.local_ranks import LocalHost, OneHost
from troupe_learner.supervisor import Supervisor


class Ranks:
    """A generation that ends when it is told to."""

    was_idle = True

    def __init__(self) -> None:
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def lost(self) -> str:
        return await asyncio.shield(self.end)

    async def close(self) -> None:
        pass


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk", "4m") as disk:
        yield disk


async def test_a_gang_that_a_full_disk_ended_is_formed_again_when_there_is_room(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(supervisor, "ROOM_SECONDS", 0.01)
    formed: list[Ranks] = []
    refused: list[int] = []

    async def launch(number: int, plan: RankPlan, hosts: Sequence[Host]) -> Ranks:
        try:
            (plan.folder / f"rendezvous-{number}").write_bytes(bytes(100_000))
        except OSError as error:
            refused.append(number)
            raise GenerationLost(f"ended with status 1: {error}") from error
        formed.append(Ranks())
        return formed[-1]

    async def nothing(*_: object) -> None:
        pass

    monkeypatch.setattr(supervisor, "launch", launch)
    plan = RankPlan(2, 1, {}, disk.path, 60.0)
    supervised = Supervisor(plan, OneHost(LocalHost(plan)), nothing, nothing, nothing)
    await supervised.start()
    async with asyncio.timeout(30):
        with disk.filled(leaving=0):
            formed[0].end.set_result("killed by SIGKILL")
            while not supervised.disk_full:
                await asyncio.sleep(0.01)
            for part in (str(disk.path), "No space left", "make room", "started again"):
                assert part in supervised.detail
            with pytest.raises(Unavailable, match="make room"):
                supervised.ready()
        while supervised.generation is None:
            await asyncio.sleep(0.01)
    assert supervised.generation is formed[1]
    assert not supervised.disk_full
    assert not supervised.failed
    await supervised.close()

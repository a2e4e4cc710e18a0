"""When a learner stops forming generations, and when it never does. Ranks are stand-ins."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from troupe_contracts.errors import Unavailable
from troupe_learner import supervisor
from troupe_learner.gang import GenerationLost, Host, RankPlan
from troupe_learner.local_ranks import LocalHost, OneHost
from troupe_learner.supervisor import ATTEMPTS, Supervisor


class Ranks:
    """A generation that ends when it is told to."""

    def __init__(self) -> None:
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.was_idle = True

    async def lost(self) -> str:
        return await asyncio.shield(self.end)

    async def close(self) -> None:
        pass

    def ends(self, why: str, *, idle: bool) -> None:
        self.was_idle = idle
        self.end.set_result(why)


class Gang:
    """A supervisor of such generations; those whose numbers are in `unformed` end before they are ready."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.launched: list[int] = []
        self.unformed: set[int] = set()
        self.given_up = asyncio.Event()
        self._current: asyncio.Queue[Ranks] = asyncio.Queue()
        monkeypatch.setattr(supervisor, "BACKOFF_SECONDS", 0.001)
        monkeypatch.setattr(supervisor, "launch", self._launch)
        plan = RankPlan(2, 1, {}, folder, 60.0)
        self.supervisor = Supervisor(plan, OneHost(LocalHost(plan)), _nothing, _nothing, self._give_up)

    async def formed(self) -> Ranks:
        """The next generation that is formed."""
        return await asyncio.wait_for(self._current.get(), 30)

    async def _launch(self, number: int, plan: RankPlan, hosts: Sequence[Host]) -> Ranks:
        self.launched.append(number)
        if number in self.unformed:
            raise GenerationLost(f"killed by SIGKILL (rank 1, pod learner-1, generation {number})")
        ranks = Ranks()
        self._current.put_nowait(ranks)
        return ranks

    async def _give_up(self) -> None:
        self.given_up.set()


async def _nothing(*_: object) -> None:
    pass


@pytest.fixture
async def gang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gang:
    started = Gang(tmp_path, monkeypatch)
    await started.supervisor.start()
    return started


async def test_ranks_that_cannot_be_formed_are_given_up_after_some_attempts(gang: Gang) -> None:
    gang.unformed = set(range(2, 100))
    (await gang.formed()).ends("killed by SIGKILL", idle=True)
    await asyncio.wait_for(gang.given_up.wait(), 30)
    assert len(gang.launched) == 1 + ATTEMPTS
    with pytest.raises(Unavailable, match=r"failed for good.*5 generations.*rank 1, pod learner-1, generation 6"):
        gang.supervisor.ready()


async def test_generations_that_end_at_work_without_a_committed_step_are_given_up(gang: Gang) -> None:
    for _ in range(ATTEMPTS):
        assert not gang.given_up.is_set()
        (await gang.formed()).ends("killed by SIGKILL (rank 1, pod learner-1)", idle=False)
    await asyncio.wait_for(gang.given_up.wait(), 30)
    assert gang.launched == list(range(1, ATTEMPTS + 1))
    assert "rank 1, pod learner-1" in gang.supervisor.detail


async def test_a_committed_step_forgives_what_was_before_it(gang: Gang) -> None:
    for number in range(3 * ATTEMPTS):
        ranks = await gang.formed()
        if number % (ATTEMPTS - 1) == 0:
            gang.supervisor.committed()
        ranks.ends("killed by SIGKILL", idle=False)
    assert await gang.formed()
    assert not gang.supervisor.failed
    await gang.supervisor.close()


async def test_ranks_that_end_with_nothing_to_do_are_always_replaced(gang: Gang) -> None:
    for _ in range(3 * ATTEMPTS):
        (await gang.formed()).ends("killed by SIGKILL", idle=True)
    assert await gang.formed()
    assert not gang.supervisor.failed
    await gang.supervisor.close()

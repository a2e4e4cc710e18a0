"""A generation of ranks that tells of nothing. Its rank is a stand-in: a sleeping process, whose words the test says."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from troupe_learner.channel import FrontChannel, open_front_channel
from troupe_learner.gang import Generation, GenerationLost, RankPlan
from troupe_learner.local_ranks import LocalHost, LocalRank

STALL_SECONDS = 1.0
SLEEP = "import time; time.sleep(600)"


@pytest.fixture
async def gang(tmp_path: Path) -> AsyncIterator[tuple[Generation, FrontChannel]]:
    """A generation, and what its rank says and hears."""
    ours, theirs = socket.socketpair()
    (tmp_path / "log").write_text("the rank's last words")
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SLEEP)
    rank = LocalRank(0, process, await open_front_channel(ours), tmp_path / "log")
    host = LocalHost(RankPlan(1, 1, {}, tmp_path, STALL_SECONDS))
    generation = Generation(3, [host], [rank], STALL_SECONDS)
    yield generation, await open_front_channel(theirs)
    await generation.close()


async def test_ranks_that_give_no_sign_are_ended_and_the_command_says_why(
    gang: tuple[Generation, FrontChannel],
) -> None:
    generation, _ = gang
    with pytest.raises(GenerationLost) as lost:
        await generation.run({"command": "train"})
    for part in ("no rank gave a sign", "'train'", "TROUPE_STALL_SECONDS", "generation 3", "the rank's last words"):
        assert part in str(lost.value)
    assert await generation.lost() == str(lost.value)


async def test_a_command_that_goes_on_may_take_as_long_as_it_needs(gang: tuple[Generation, FrontChannel]) -> None:
    generation, rank = gang
    told: list[float] = []
    command = asyncio.create_task(generation.run({"command": "train"}, told.append))
    assert await rank.receive() == {"command": "train"}
    for number in range(12):
        await asyncio.sleep(STALL_SECONDS / 6)
        await rank.send({"kind": "progress", "value": number / 12})
    await rank.send({"kind": "done", "result": {"metrics": {}}})
    assert await command == {"metrics": {}}
    assert told == [number / 12 for number in range(12)]

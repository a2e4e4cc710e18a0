"""A front without ranks of its own: the learner's real end of the gang, before stand-ins for agents of a second node.

    python gang_front.py       (TROUPE_ settings of a learner with two nodes)

Whoever joins is told to start a rank and to write its part of a checkpoint, so that everything an agent may say is heard.
"""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from troupe_contracts.parent import die_with_parent
from troupe_learner.agents import Agents
from troupe_learner.channel import ChannelClosed
from troupe_learner.gang import Host, RankPlan
from troupe_learner.local_ranks import LocalHost
from troupe_learner.settings import LearnerSettings

COMMON: Final[Mapping[str, str]] = {"build": "fuzzed"}
"""What a member must have."""
GENERATION: Final = 1


async def main() -> None:
    settings = LearnerSettings.load()
    here = LocalHost(RankPlan(2, 1, {}, settings.work_dir, 60.0))
    agents = Agents(settings, here, COMMON)
    await agents.open()
    assert settings.ready_file is not None
    settings.ready_file.write_text(json.dumps({"target": settings.gang_address, "metrics": ""}))
    while True:
        _, there = await agents.gathered()
        await _work(there, settings)


async def _work(there: Host, settings: LearnerSettings) -> None:
    """Has the node's rank write a checkpoint, and hears it to its end."""
    (rank,) = await there.start(GENERATION, range(1, 2))
    with suppress(ChannelClosed):
        await rank.send({"command": "save", "folder": str(settings.work_dir / "checkpoint")})
        while True:
            await rank.receive()


if __name__ == "__main__":
    die_with_parent()
    asyncio.run(main())

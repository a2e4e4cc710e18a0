"""Settings of a gang on several nodes: what contradicts itself stops the start and is named."""

from pathlib import Path

import pytest
from troupe_contracts.settings import SettingsError
from troupe_learner.settings import LearnerSettings

ONE_NODE = {"TROUPE_MODEL": "/model", "TROUPE_WORK_DIR": "/work"}
GANG = ONE_NODE | {"TROUPE_NODES": "2", "TROUPE_RANKS": "4", "TROUPE_GANG_ADDRESS": "127.0.0.1:50052"}


def test_a_gang_is_told_its_nodes_and_where_they_meet() -> None:
    settings = LearnerSettings.read(GANG | {"TROUPE_NODE_RANK": "1", "TROUPE_GANG_INTERFACE": "lo"})
    assert (settings.nodes, settings.node_rank, settings.ranks, settings.all_ranks) == (2, 1, 4, 8)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (ONE_NODE | {"TROUPE_NODE_RANK": "1"}, ("TROUPE_NODE_RANK=1", "TROUPE_NODES=1")),
        (GANG | {"TROUPE_NODE_RANK": "2"}, ("TROUPE_NODE_RANK=2", "TROUPE_NODES=2")),
        (GANG | {"TROUPE_GANG_ADDRESS": ""}, ("TROUPE_GANG_ADDRESS", "meet the front")),
        (GANG | {"TROUPE_GANG_ADDRESS": "learner-0"}, ("TROUPE_GANG_ADDRESS", "host:port")),
        (GANG | {"TROUPE_GANG_ADDRESS": "127.0.0.1:0"}, ("TROUPE_GANG_ADDRESS", "name one")),
        (GANG | {"TROUPE_GANG_INTERFACE": "eth77"}, ("TROUPE_GANG_INTERFACE", "no such interface", "lo")),
        (GANG | {"TROUPE_NODES": "0"}, ("TROUPE_NODES",)),
        (
            GANG | {"TROUPE_GANG_ADDRESS": "learner-0.learner-peers:50052"},
            ("TROUPE_GANG_ADDRESS=", "anyone could call"),
        ),
        (
            ONE_NODE | {"TROUPE_GANG_ADDRESS": "127.0.0.1:50052"},
            ("TROUPE_GANG_ADDRESS", "no meaning", "TROUPE_NODES=1"),
        ),
        (ONE_NODE | {"TROUPE_GANG_INTERFACE": "lo"}, ("TROUPE_GANG_INTERFACE", "no meaning")),
        (ONE_NODE | {"TROUPE_MACHINE": "here"}, ("TROUPE_MACHINE", "no meaning")),
        (
            GANG | {"TROUPE_NODE_RANK": "1", "TROUPE_TOKENS": "/run/tokens"},
            ("TROUPE_NODE_RANK=1", "TROUPE_TOKEN_FILE", "role learner"),
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(
    given: dict[str, str], parts: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as refused:
        LearnerSettings.read(given)
    for part in parts:
        assert part in str(refused.value)

"""Whatever is killed, at whatever moment of a step: nothing is lost, nothing is trained twice, nobody has to step in.

Each test is one run with many kills, one to a step; after each kill the run goes on by itself, and what is checked is in
`killing.checks`. At the end the weights are those that a fresh learner has after the sealed batches.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from killing.deployment import Victim
from killing.points import Point
from killing.run import MATRIX, Ended, Kill, Outcome, run_schedule

pytestmark = pytest.mark.long

# Every victim and every point. An executor takes longest to come back: it is killed where it has most to lose.
DOZEN: tuple[Kill, ...] = (
    (Victim.SANDBOX_ZYGOTE, Point.MID_ROLLOUT),
    (Victim.EXECUTOR, Point.MID_ROLLOUT),
    (Victim.ORCHESTRATOR, Point.AFTER_SEAL),
    (Victim.LEARNER_RANK, Point.DURING_TRAIN_STEP),
    (Victim.LEARNER_FRONT, Point.AFTER_ITS_ACK),
    (Victim.ORCHESTRATOR, Point.MID_SYNC),
    (Victim.DESIGNER, Point.MID_ROLLOUT),
    (Victim.EXECUTOR, Point.MID_SYNC),
    (Victim.ORCHESTRATOR, Point.AFTER_SYNC),
    (Victim.SANDBOX_SERVER, Point.MID_ROLLOUT),
    (Victim.ORCHESTRATOR, Point.DURING_TRAIN_STEP),
    (Victim.ORCHESTRATOR, Point.AFTER_ITS_ACK),
)


# With these a generation depends on its prompt, seed and weights alone, and not on what is computed beside or before it.
APART = {"max_num_seqs": 1, "prefix_caching": False, "min_tokens_per_second": 0.0}


async def through(
    starter: Path,
    folder: Path,
    schedule: tuple[Kill, ...],
    engine: Mapping[str, object] = MappingProxyType({}),
) -> Ended:
    """Runs the schedule; what came of each kill is in the test's output."""
    outcomes: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        print(
            f"{outcome.what:15s} {outcome.when:17s} step {outcome.step:3d} {outcome.state:9s} {outcome.seconds:5.1f} s"
        )

    ended = await run_schedule(starter, folder, schedule, tell, engine=engine)
    assert [(outcome.what, outcome.when) for outcome in outcomes] == [
        (victim.value, point.value) for victim, point in schedule
    ]
    assert ended.record.run_state()[0] == "succeeded"
    return ended


def test_the_dozen_kills_every_process_and_comes_to_every_point() -> None:
    assert len(set(DOZEN)) == 12
    assert {victim for victim, _ in DOZEN} == set(Victim)
    assert {point for _, point in DOZEN} == set(Point)


@pytest.mark.timeout(900)
async def test_a_run_survives_a_dozen_kills(starter: Path, tmp_path: Path) -> None:
    await through(starter, tmp_path, DOZEN)


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_kills_of_orchestrator_and_learner_change_no_bit_of_the_weights(starter: Path, tmp_path: Path) -> None:
    """What serves the rollout lives on, so nothing is tried afresh, and the run is what it would have been."""
    victims = (Victim.ORCHESTRATOR, Victim.LEARNER_FRONT, Victim.LEARNER_RANK)
    schedule = tuple((victim, point) for point in Point for victim in victims)
    killed = await through(starter, tmp_path / "killed", schedule, APART)
    steps = killed.record.committed()
    undisturbed = await run_schedule(
        starter, tmp_path / "undisturbed", (), lambda outcome: None, steps=steps, engine=APART
    )
    assert killed.record.sealed() == undisturbed.record.sealed()
    assert killed.tensors == undisturbed.tensors


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_a_run_survives_a_kill_of_every_process_at_every_point(starter: Path, tmp_path: Path) -> None:
    await through(starter, tmp_path, MATRIX)

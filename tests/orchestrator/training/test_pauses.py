"""How long a run waits for what is away."""

from troupe_orchestrator.training.endurance import pause_seconds


def test_pauses_grow_to_a_limit_however_often_it_failed() -> None:
    assert [pause_seconds(failures) for failures in (1, 2, 3, 100, 100_000)] == [0.5, 1.0, 2.0, 10.0, 10.0]

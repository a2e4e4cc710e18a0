"""When something about the cluster is told, and how often."""

from __future__ import annotations

from troupe_orchestrator.kubernetes.notices import CALM_SECONDS, PATIENCE_SECONDS, Notice, Notices

PENDING = Notice("Unschedulable", "learner-1 Pending: insufficient nvidia.com/gpu", "add a node")
CRASHES = Notice("CrashLoopBackOff", "learner-1 CrashLoopBackOff: …", "look at its log")


class World:
    """Notices, with a clock of their own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.told: list[Notice] = []
        self.notices = Notices(self.told.append, lambda: self.now)

    def look(self, found: Notice | None = None, after: float = 0.0) -> list[str]:
        self.now += after
        self.notices.update({} if found is None else {"pod/learner-1": found})
        return [each.reason for each in self.told]


def test_what_lasts_is_told_once() -> None:
    world = World()
    assert world.look(PENDING) == []
    assert world.look(PENDING, after=PATIENCE_SECONDS) == ["Unschedulable"]
    assert world.look(PENDING, after=1000.0) == ["Unschedulable"]


def test_what_passes_is_not_told() -> None:
    world = World()
    world.look(PENDING)
    world.look(after=PATIENCE_SECONDS / 2)
    assert world.look(PENDING, after=PATIENCE_SECONDS / 2) == []


def test_a_crash_is_told_at_once_and_one_that_repeats_is_one_notice() -> None:
    world = World()
    assert world.look(CRASHES) == ["CrashLoopBackOff"]
    for _ in range(20):
        world.look(after=30.0)
        assert world.look(CRASHES, after=30.0) == ["CrashLoopBackOff"]


def test_what_comes_back_after_a_long_calm_is_told_again() -> None:
    world = World()
    world.look(CRASHES)
    world.look(after=CALM_SECONDS + 1)
    assert world.look(CRASHES) == ["CrashLoopBackOff"] * 2


def test_another_reason_of_the_same_pod_is_told_too() -> None:
    world = World()
    world.look(CRASHES)
    world.look(PENDING)
    assert world.look(PENDING, after=PATIENCE_SECONDS) == ["CrashLoopBackOff", "Unschedulable"]


def test_who_begins_to_listen_gets_what_was_told_and_still_is_the_case() -> None:
    world = World()
    world.look(PENDING)
    assert world.notices.in_force() == []
    world.look(PENDING, after=PATIENCE_SECONDS)
    assert world.notices.in_force() == [PENDING]
    world.look(after=1.0)
    assert world.notices.in_force() == []

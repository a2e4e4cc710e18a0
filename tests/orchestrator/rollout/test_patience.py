"""How long one piece of work asks a service again that has no room, and who hears of it."""

import grpc
import pytest
from troupe_orchestrator.rollout import faults
from troupe_orchestrator.rollout.faults import InfrastructureFaultError, Patience

FULL = InfrastructureFaultError("sandbox", "all slots are taken", retry_after=0.01, full=True, remedy="add slots")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_PAUSE_SECONDS", 0.0)


async def waited(patience: Patience, fault: InfrastructureFaultError) -> InfrastructureFaultError:
    """What ends the waiting."""
    while True:
        try:
            await patience.wait(fault)
        except InfrastructureFaultError as lasting:
            return lasting


async def test_a_service_without_room_for_longer_than_the_limit_is_a_fault_that_says_so_and_may_be_tried_again() -> (
    None
):
    lasting = await waited(Patience(lambda _: None, 0.2), FULL)
    assert str(lasting) == "sandbox: all slots are taken; so for 0.2 s"
    assert (lasting.remedy, lasting.retry_after, lasting.retriable) == ("add slots", 0.01, True)
    assert not lasting.full, "it counts as an attempt from here on"


async def test_the_limit_is_five_minutes_unless_given_and_is_counted_from_the_first_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert faults.PATIENCE_SECONDS == 300
    monkeypatch.setattr(faults, "PATIENCE_SECONDS", 0.05)
    first, second = Patience(lambda _: None), Patience(lambda _: None)
    assert "so for 0.05 s" in str(await waited(first, FULL))
    await second.wait(FULL)


async def test_a_wait_that_lasts_is_told_of_once_and_a_short_one_never(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[InfrastructureFaultError] = []
    monkeypatch.setattr(faults, "NOTICE_SECONDS", 0.1)
    await Patience(told.append).wait(FULL)
    assert told == []
    await waited(Patience(told.append, 0.3), FULL)
    assert told == [FULL]


async def test_an_engine_that_loads_weights_is_waited_for_without_being_called_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[InfrastructureFaultError] = []
    monkeypatch.setattr(faults, "NOTICE_SECONDS", 0.0)
    loading = InfrastructureFaultError("executor", "loads weights", error=_Loading())
    await Patience(told.append).wait(loading)
    assert told == []


class _Loading(grpc.RpcError):
    """A refusal for now."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.FAILED_PRECONDITION

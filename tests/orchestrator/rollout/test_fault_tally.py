"""Faults of one step, told once for each kind."""

from troupe_orchestrator.rollout.faults import FaultTally, InfrastructureFaultError


def test_faults_that_differ_in_numbers_and_ids_are_one_kind() -> None:
    tally = FaultTally()
    for seconds in (1201.5, 1300.25):
        tally.add(InfrastructureFaultError("executor", f"an execution took {seconds:.1f} s, waiting for turns"))
    for design in ("ab12cd", "7fe0"):
        tally.add(InfrastructureFaultError("designer", f"sent design {design!r}, which is not due"))
    tally.add(InfrastructureFaultError("designer", "3 designs never came"))
    assert [fault.text.split()[1] for fault in tally.untold] == ["execution", "design", "designs"]
    assert tally.counts == {"executor": 2, "designer": 3}

"""What is done for an object, by the table."""

from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator.custom_resources.decisions import ACTS, ENDED, Act, decide, decide_for_gone
from troupe_orchestrator.custom_resources.resources import Desired
from troupe_orchestrator.store.runs import RunState

STATES = (None, *RunState)
# What a run is after an act, where nothing goes wrong.
AFTER = {
    Act.CREATE: RunState.RUNNING,
    Act.PAUSE: RunState.PAUSED,
    Act.RESUME: RunState.RUNNING,
    Act.CANCEL: RunState.CANCELLED,
}


def test_the_table_has_each_state_for_each_wish() -> None:
    assert {desired: set(row) for desired, row in ACTS.items()} == {desired: set(STATES) for desired in Desired}


@given(st.sampled_from(list(Desired)), st.sampled_from(STATES), st.booleans(), st.booleans())
def test_after_at_most_two_acts_nothing_is_left_to_do(
    desired: Desired, state: RunState | None, carried_out: bool, refused: bool
) -> None:
    for _ in range(3):
        act = decide(desired, state, carried_out, refused)
        if act is Act.NOTHING:
            return
        state, carried_out = AFTER.get(act, state), True
    raise AssertionError(f"{desired} is never done with: {act}")


@given(st.sampled_from(list(Desired)), st.sampled_from(sorted(ENDED - {RunState.FAILED})), st.booleans())
def test_what_has_ended_is_never_touched_again(desired: Desired, state: RunState, carried_out: bool) -> None:
    assert decide(desired, state, carried_out, refused=False) in (Act.NOTHING, Act.NOTE)


@given(st.sampled_from(list(Desired)), st.sampled_from(STATES), st.booleans())
def test_for_what_was_refused_nothing_is_made(desired: Desired, state: RunState | None, carried_out: bool) -> None:
    assert decide(desired, state, carried_out, refused=True) in (Act.NOTHING, Act.NOTE)


def test_one_that_stopped_by_itself_is_resumed_only_when_that_is_said_anew() -> None:
    assert decide(Desired.RUNNING, RunState.PAUSED, carried_out=True, refused=False) is Act.NOTHING
    assert decide(Desired.RUNNING, RunState.PAUSED, carried_out=False, refused=False) is Act.RESUME


@given(st.sampled_from(STATES))
def test_of_an_object_that_is_no_more_nothing_goes_on(state: RunState | None) -> None:
    goes_on = state in (RunState.QUEUED, RunState.RUNNING, RunState.PAUSED)
    assert decide_for_gone(state) is (Act.CANCEL if goes_on else Act.FORGET)

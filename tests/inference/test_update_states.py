"""The table of an update's phases."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe.v1 import policy_pb2
from troupe_inference.weights.states import (
    TRANSITIONS,
    Event,
    IllegalTransitionError,
    Phase,
    after,
    reported,
)


def test_the_way_through_an_update_is_begin_stage_commit():
    phase = Phase.IDLE
    for event in (Event.BEGIN, Event.STAGE, Event.COMMIT, Event.LOADED):
        phase = after(phase, event)
    assert phase is Phase.IDLE


def test_every_pair_that_is_not_in_the_table_is_illegal():
    for phase, event in itertools.product(Phase, Event):
        if (phase, event) in TRANSITIONS:
            assert after(phase, event) is TRANSITIONS[phase, event]
        else:
            with pytest.raises(IllegalTransitionError, match=event.value):
                after(phase, event)


@given(st.lists(st.sampled_from(Event), max_size=30))
def test_nothing_is_loaded_that_was_not_staged(events):
    phase, staged = Phase.IDLE, False
    for event in events:
        try:
            phase = after(phase, event)
        except IllegalTransitionError:
            continue
        if event in (Event.BEGIN, Event.ABORT):
            staged = False
        elif event is Event.STAGE:
            staged = True
        assert staged or phase is not Phase.COMMITTING


@pytest.mark.parametrize(
    ("phase", "broken", "state"),
    [
        (Phase.IDLE, False, policy_pb2.UPDATE_STATE_SERVING),
        (Phase.BEGUN, False, policy_pb2.UPDATE_STATE_BEGUN),
        (Phase.STAGED, False, policy_pb2.UPDATE_STATE_STAGED),
        (Phase.COMMITTING, True, policy_pb2.UPDATE_STATE_COMMITTING),
        (Phase.IDLE, True, policy_pb2.UPDATE_STATE_BROKEN),
        (Phase.STAGED, True, policy_pb2.UPDATE_STATE_BROKEN),
    ],
)
def test_what_a_replica_reports(phase, broken, state):
    assert reported(phase, broken=broken) == state

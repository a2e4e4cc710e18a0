"""Which loads a probe lets pass."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_inference.weights.probes import (
    MULTIPLE,
    NEARER,
    UNCALIBRATED,
    Agreement,
    Probe,
    ProbeError,
    bound,
    compare,
    floor_of,
    judge,
    noise,
)

FLOOR = floor_of("float32")
CEILING = 0.05
errors = st.floats(0, 10)


def passes(after: float, before: float, baseline: float | None = None, floor: float = FLOOR) -> bool:
    try:
        judge(
            Agreement(after, after),
            Agreement(before, before),
            bound(CEILING, floor, baseline),
            noise(floor, baseline),
        )
    except ProbeError:
        return False
    return True


def test_an_error_is_the_mean_over_all_tokens_of_all_probes() -> None:
    probes = [Probe((1, 2, 3), (-1.0, -2.0)), Probe((1, 2), (-3.0,))]
    assert compare(probes, [[-1.0, -2.5], [-2.0]]) == Agreement(0.5, 1.0)
    assert compare([], []) == Agreement(0.0, 0.0)


def test_the_right_weights_pass_before_and_after_calibration() -> None:
    for dtype, error in (("float32", 1e-6), ("bfloat16", 1.2e-2)):
        floor = floor_of(dtype)
        for moved in (0.0, error, 100 * error, 2.0):
            assert passes(error, max(moved, error), floor=floor)
            assert passes(2 * error, max(moved, 2 * error), baseline=error, floor=floor)


def test_weights_that_are_a_little_wrong_do_not_pass_where_right_ones_agree_to_a_millionth() -> None:
    """Half of them, say, after a step that moved log-probabilities by 0.001 nats: the old bound of 0.05 lets that pass."""
    assert not passes(5e-4, 1e-3, baseline=1e-6)
    assert not passes(6e-4, 1e-3)


@given(moved=st.floats(2 * FLOOR, 10))
def test_a_load_that_changed_nothing_never_passes_where_it_can_be_told(moved: float) -> None:
    assert not passes(moved, moved)
    assert not passes(moved, moved, baseline=1e-6)


@given(after=errors, before=errors, baseline=st.none() | errors)
def test_the_callers_bound_is_never_exceeded(after: float, before: float, baseline: float | None) -> None:
    assert bound(CEILING, FLOOR, baseline) <= CEILING
    if passes(after, before, baseline):
        assert after <= CEILING
        assert before <= noise(FLOOR, baseline) or after <= NEARER * before


@given(error=st.floats(0, FLOOR))
def test_the_same_weights_under_another_name_pass(error: float) -> None:
    assert passes(error, error)
    assert passes(error, error, baseline=1e-7)


def test_a_first_load_calibrates_and_one_that_was_off_does_not_calibrate_without_limit() -> None:
    assert bound(CEILING, FLOOR, None) == UNCALIBRATED * FLOOR
    assert bound(CEILING, FLOOR, 1e-7) == FLOOR
    assert bound(CEILING, FLOOR, 1e-5) == pytest.approx(MULTIPLE * 1e-5)
    assert bound(CEILING, FLOOR, 1.0) == CEILING
    assert bound(1e-7, FLOOR, 1e-5) == 1e-7


def test_what_is_not_a_number_never_passes() -> None:
    assert not passes(math.nan, 1.0)
    assert not passes(math.nan, math.nan)
    assert passes(1e-6, math.nan), "of weights that were broken nothing can be told"

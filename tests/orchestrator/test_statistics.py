"""Means and intervals take the problem as their unit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator.statistics import bootstrap_interval, difference, estimate

SAMPLES = st.dictionaries(
    st.text(min_size=1, max_size=5),
    st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=6),
    min_size=1,
    max_size=12,
)


def test_a_problem_with_more_samples_counts_no_more() -> None:
    result = estimate({"a": [1.0] * 9, "b": [0.0]})
    assert (result.mean, result.problems, result.samples) == (0.5, 2, 10)


@given(SAMPLES)
def test_copies_of_samples_change_no_interval(samples: dict[str, list[float]]) -> None:
    one = estimate(samples, resamples=50)
    many = estimate({problem: values * 3 for problem, values in samples.items()}, resamples=50)
    assert (one.low, one.high) == pytest.approx((many.low, many.high))
    assert one.low - 1e-9 <= one.mean <= one.high + 1e-9 or one.problems > 1


@given(SAMPLES, st.integers(0, 5))
def test_a_seed_gives_one_result_in_any_order(samples: dict[str, list[float]], seed: int) -> None:
    backwards = dict(reversed(samples.items()))
    assert estimate(samples, resamples=50, seed=seed) == estimate(backwards, resamples=50, seed=seed)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        values = (generator.random(100) < 0.4).astype(float)
        low, high = bootstrap_interval(values, 0.9, 400, seed=trial)
        covered += low <= 0.4 <= high
    assert 160 <= covered <= 196


def test_the_standard_error_is_of_the_mean_over_problems() -> None:
    result = estimate({"a": [1.0], "b": [0.0], "c": [1.0], "d": [0.0]})
    assert result.standard_error == pytest.approx(np.sqrt(1 / 3) / 2)
    assert estimate({"a": [1.0]}).standard_error == 0.0


def test_a_difference_is_paired_by_problem() -> None:
    before = {"a": [0.0, 1.0], "b": [0.0]}
    result = difference(before, {"b": [1.0], "a": [1.0]})
    assert result.mean == pytest.approx(0.75)
    with pytest.raises(ValueError, match="on one side only"):
        difference(before, {"a": [1.0]})


def test_nothing_to_estimate_from_is_refused() -> None:
    nothing: list[dict[str, list[float]]] = [{}, {"a": []}]
    for samples in nothing:
        with pytest.raises(ValueError, match="problem"):
            estimate(samples)
    with pytest.raises(ValueError, match="between 0 and 1"):
        estimate({"a": [1.0]}, level=95)

"""Means and intervals over problems. Pure; a seed makes each result reproducible.

The unit is the problem: samples of one problem are averaged first, so that a problem with more samples counts no more, and
intervals resample problems, never samples. Rows are therefore one number per problem.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 22
"""Draws held in memory at once."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems."""

    mean: float
    low: float
    high: float
    """Ends of the bootstrap interval."""
    standard_error: float
    """Of the mean over problems; 0 for a single problem, which says nothing of its spread."""
    problems: int
    samples: int


def problem_means(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Mean of each problem's samples, by problem id.

    Raises:
        ValueError: a problem has no sample.
    """
    for problem, values in samples.items():
        if not values:
            raise ValueError(f"problem {problem} has no sample: leave it out, or grade it first")
    return {problem: float(np.mean(values)) for problem, values in samples.items()}


def estimate(
    samples: Mapping[str, Sequence[float]], level: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Estimate:
    """Mean over problems with its bootstrap percentile interval.

    Args:
        samples: values of each problem, by problem id.
        level: probability mass of the interval, between 0 and 1.

    Raises:
        ValueError: no problem, a problem without samples, or a level outside (0, 1).
    """
    means = problem_means(samples)
    if not means:
        raise ValueError("no problem to estimate from")
    # By id, so that the order of a mapping changes no digit.
    values = np.array([means[problem] for problem in sorted(means)])
    low, high = bootstrap_interval(values, level, resamples, seed)
    return Estimate(
        mean=float(values.mean()),
        low=low,
        high=high,
        standard_error=standard_error(values),
        problems=len(values),
        samples=sum(len(own) for own in samples.values()),
    )


def difference(
    before: Mapping[str, Sequence[float]],
    after: Mapping[str, Sequence[float]],
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Estimate:
    """Mean of after − before, paired by problem.

    Raises:
        ValueError: the two hold different problems.
    """
    first, second = problem_means(before), problem_means(after)
    if first.keys() != second.keys():
        unpaired = sorted(first.keys() ^ second.keys())
        raise ValueError(f"{len(unpaired)} problems are on one side only, {unpaired[0]} among them")
    paired = {problem: [second[problem] - first[problem]] for problem in first}
    return estimate(paired, level, resamples, seed)


def standard_error(values: NDArray[np.float64]) -> float:
    """Standard error of the mean of independent values; 0 for a single one. Shape: [problems]."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def bootstrap_interval(
    values: NDArray[np.float64], level: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over problems, by drawing problems with replacement. Shape: [problems]."""
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval lies between 0 and 1, got {level}")
    if len(values) == 0 or resamples < 1:
        raise ValueError(f"needs a problem and a resample at least, got {len(values)} and {resamples}")
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(values))
    means = np.concatenate(
        [
            values[generator.integers(len(values), size=(min(rows, resamples - start), len(values)))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

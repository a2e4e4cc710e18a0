"""Run conditions: what the metrics of committed steps must not do, or the run is paused. Pure.

A condition looks at the mean of a metric over the last `window` steps that trained the same role (of another role the same
metric means another thing) and have it; with fewer steps it says nothing. One that holds pauses the run. Resuming the run
is the acknowledgement: the condition does not pause it again until it has been clear for such a step, or `repeat_after`
steps later. All of this is a function of the run's own committed metrics, so a restart decides the same, and a fork begins
anew.

A gradient that is not finite never gets here: the learner undoes that step, and the run is paused before it.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from troupe_orchestrator.run_config import Conditions

NON_FINITE = "non_finite/"
"""Prefix of the metrics that stand for one whose value was not finite."""


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What a committed step measured."""

    step: int
    trains: str
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Violation:
    """A condition that holds after a step."""

    reason: str
    """CamelCase, as in the run's events."""
    metric: str
    value: float
    threshold: float
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class _Rule:
    """A threshold of the config, and which metric it is about."""

    option: str
    reason: str
    metric: str
    """With one policy for both roles; of several each has its own, see `_named`."""
    what: str
    beyond: Literal["below", "above"]
    remedy: str

    def broken(self, value: float, threshold: float) -> bool:
        return value < threshold if self.beyond == "below" else value > threshold


_RULES = (
    _Rule(
        "entropy_below",
        "EntropyCollapse",
        "learner_entropy",
        "nats per trained token",
        "below",
        "fork from an earlier step with a lower optimization.learning_rate or a larger rollout",
    ),
    _Rule(
        "valid_scripts_below",
        "FewValidScripts",
        "valid_scripts",
        "share of valid scripts",
        "below",
        "read some with `troupe trace`; fork from an earlier step, or raise sampling.designer.max_tokens if they are cut",
    ),
    _Rule(
        "zero_variance_above",
        "NoVariance",
        "zero_variance",
        "share of the trained role's groups with one reward",
        "above",
        "tasks are too easy or too hard for the policy: choose others, or raise rollout.designs and rollout.executions",
    ),
    _Rule(
        "mismatch_kl_above",
        "LearnerEngineMismatch",
        "learner_mismatch_kl",
        "nats per token between learner and engine",
        "above",
        "compare the dtypes of both, and set optimization.importance_cap",
    ),
    _Rule(
        "probe_error_above",
        "ProbeError",
        "probe_mean_error",
        "nats between learner and engine after the load of the weights",
        "above",
        "compare the dtypes of both; restart the executor if one replica alone is off",
    ),
)


class ConditionWatch:
    """The conditions of one run, told each committed step once, in order. The same steps always give the same answers, also
    where another watch was told the first of them.

    Args:
        state: of the watch before, none of a run's first.
    """

    def __init__(self, conditions: Conditions, state: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._conditions = conditions
        self._windows: dict[tuple[str, str], deque[float]] = {
            (trains, name): deque(values, maxlen=conditions.window) for trains, name, values in state.get("windows", ())
        }
        self._best: dict[tuple[str, str], float] = {
            (trains, name): best for trains, name, best in state.get("best", ())
        }
        self._paused_at: dict[tuple[str, str, str], int] = {
            (trains, reason, metric): step for trains, reason, metric, step in state.get("paused_at", ())
        }
        """(trained role, reason, metric) to the step after which it paused the run last."""

    def state(self) -> dict[str, Any]:
        """All that the steps so far have to do with the answers to come, as JSON; no larger for more steps."""
        return {
            "windows": [[*key, list(values)] for key, values in self._windows.items()],
            "best": [[*key, best] for key, best in self._best.items()],
            "paused_at": [[*key, step] for key, step in self._paused_at.items()],
        }

    def observe(self, step: StepMetrics) -> list[Violation]:
        """The violations after this step that pause the run: those that no earlier pause covers."""
        held = {(step.trains, each.reason, each.metric): each for each in self._violations(step)}
        # Clear for a step of its role, a condition is a new one when it comes back.
        self._paused_at = {key: at for key, at in self._paused_at.items() if key[0] != step.trains or key in held}
        due = {key: violation for key, violation in held.items() if self._due(key, step.step)}
        self._paused_at |= dict.fromkeys(due, step.step)
        return list(due.values())

    def _due(self, key: tuple[str, str, str], step: int) -> bool:
        return key not in self._paused_at or step - self._paused_at[key] >= self._conditions.repeat_after

    def _violations(self, step: StepMetrics) -> list[Violation]:
        found = _non_finite(step) if self._conditions.non_finite else []
        for rule in _RULES:
            threshold = getattr(self._conditions, rule.option)
            for name in _named(rule.metric, step.metrics):
                mean = self._window_mean(step, name)
                if threshold is not None and mean is not None and rule.broken(mean, threshold):
                    found.append(
                        Violation(
                            reason=rule.reason,
                            metric=name,
                            value=mean,
                            threshold=threshold,
                            message=f"{name} ({rule.what}) is {mean:.4g}, {rule.beyond} {threshold:g}, as the mean of "
                            f"the last {self._conditions.window} steps that trained {step.trains} "
                            f"(conditions.{rule.option})",
                            remedy=rule.remedy,
                        )
                    )
        for name in ("reward_designer", "reward_executor"):
            found += self._reward_collapse(step, name)
        return found

    def _reward_collapse(self, step: StepMetrics, name: str) -> list[Violation]:
        """A reward that fell by more than the threshold from its best earlier window."""
        mean = self._window_mean(step, name)
        threshold = self._conditions.reward_fall_above
        if mean is None or threshold is None:
            return []
        best = self._best.get((step.trains, name), mean)
        self._best[step.trains, name] = max(best, mean)
        if best - mean <= threshold:
            return []
        return [
            Violation(
                reason="RewardCollapse",
                metric=name,
                value=best - mean,
                threshold=threshold,
                message=f"{name} is {mean:.4g}, mean of {self._conditions.window} steps that trained {step.trains}, and "
                f"was {best:.4g}: it fell by more than {threshold:g} (conditions.reward_fall_above)",
                remedy="fork from the best step with a lower optimization.learning_rate",
            )
        ]

    def _window_mean(self, step: StepMetrics, name: str) -> float | None:
        """Mean over the window that ends with this step; None where the step has no such metric, or steps are too few."""
        if name not in step.metrics:
            return None
        window = self._windows.setdefault((step.trains, name), deque(maxlen=self._conditions.window))
        window.append(step.metrics[name])
        return sum(window) / len(window) if len(window) == self._conditions.window else None


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics with each value that is infinite or not a number replaced by a mark: stores of JSON hold numbers only."""
    return {
        name if math.isfinite(value) else f"{NON_FINITE}{name}": value if math.isfinite(value) else 1.0
        for name, value in metrics.items()
    }


def _non_finite(step: StepMetrics) -> list[Violation]:
    names = sorted(name.removeprefix(NON_FINITE) for name in step.metrics if name.startswith(NON_FINITE))
    if not names:
        return []
    return [
        Violation(
            reason="NonFinite",
            metric=", ".join(names),
            value=math.nan,
            threshold=math.inf,
            message=f"{', '.join(names)} of step {step.step} is not a finite number (conditions.non_finite)",
            remedy="fork from an earlier step, with a lower optimization.learning_rate, or lower weights of the rewards",
        )
    ]


def _named(metric: str, metrics: Mapping[str, float]) -> list[str]:
    """The metrics of a name, also those of one policy of several: learner_entropy, learner_POLICY/entropy."""
    head, _, tail = metric.partition("_")
    of_policy = [each for each in sorted(metrics) if each.startswith(f"{head}_") and each.endswith(f"/{tail}")]
    return [metric] if metric in metrics else of_policy

"""The drift of the role that is not trained."""

import numpy as np
import pytest
from troupe_orchestrator.run_config import Trains
from troupe_orchestrator.training.batch import TrainingSequence
from troupe_orchestrator.training.drift import drift, idle_role

SHARED = {"designer": "policy", "executor": "policy"}
APART = {"designer": "one", "executor": "other"}


@pytest.mark.parametrize(
    ("trains", "policies", "idle"),
    [
        (Trains.EXECUTOR, SHARED, "designer"),
        (Trains.DESIGNER, SHARED, "executor"),
        (Trains.BOTH, SHARED, None),
        (Trains.EXECUTOR, APART, None),
    ],
)
def test_only_a_role_that_shares_the_trained_policy_drifts(trains: Trains, policies, idle) -> None:
    assert idle_role(trains, policies) == idle


def sequence(log_probs: list[float], sampled: list[int]) -> TrainingSequence:
    count = len(log_probs)
    return TrainingSequence(
        id="c",
        token_ids=np.arange(count, dtype=np.int32),
        weights=np.array(sampled, dtype=np.float32),
        advantages=np.zeros(count, dtype=np.float32),
        behaviour_log_probs=np.array(log_probs, dtype=np.float32),
    )


def test_unchanged_weights_have_no_drift_and_inserted_tokens_do_not_count() -> None:
    held = [sequence([0, 0, -1.0, -2.0], [0, 0, 1, 1])]
    assert drift(held, [np.array([-9.0, -1.0, -2.0], dtype=np.float32)]) == 0.0
    assert drift(held, [np.array([-9.0, -1.5, -2.0], dtype=np.float32)]) > 0.0


def test_the_estimate_is_the_kl_of_the_two_policies() -> None:
    generator = np.random.default_rng(0)
    begin, now = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    tokens = generator.choice(3, size=200_000, p=begin)
    held = [sequence([0.0, *np.log(begin)[tokens]], [0, *np.ones(len(tokens), dtype=int)])]
    estimate = drift(held, [np.log(now)[tokens].astype(np.float32)])
    assert estimate == pytest.approx(float(np.sum(begin * np.log(begin / now))), rel=0.03)

"""What a run's config asks of the services in one step. Pure."""

from collections.abc import Mapping

from google.protobuf.json_format import MessageToDict
from troupe.v1 import common_pb2, learner_pb2

from troupe_orchestrator.rollout.task import RolloutPlan
from troupe_orchestrator.run_config import RunConfig
from troupe_orchestrator.stages import StepPlan
from troupe_orchestrator.training.policies import parse_version


def rollout_plan(scope: str, config: RunConfig, plan: StepPlan, versions: Mapping[str, str]) -> RolloutPlan:
    """How each task of a step is rolled out.

    Args:
        scope: the run's id, which the ids of all nodes are made from.
        versions: role to the version that its turns have to be sampled with.
    """
    return RolloutPlan(
        scope=scope,
        step=plan.step,
        seed=config.seed,
        designs=plan.designs,
        executions=plan.executions,
        max_attempts=config.rollout.max_attempts,
        designer_sampling=_sampling(config.sampling.designer.max_tokens),
        executor_sampling=_sampling(config.sampling.executor.max_tokens),
        designer_version=parse_version(versions["designer"]),
        executor_version=parse_version(versions["executor"]),
        budgets=config.budgets,
        delivery_instruction=config.delivery_instruction,
        rewards=config.rewards,
    )


def _sampling(max_tokens: int) -> common_pb2.Sampling:
    """Temperature 1 and nothing else: what is trained is what was sampled from."""
    return common_pb2.Sampling(temperature=1.0, max_tokens=max_tokens, training=True)


def optimization(config: RunConfig, plan: StepPlan, reset_optimizer: bool) -> dict[str, object]:
    """How a learner turns a step's batch into optimizer steps: the fields of troupe.v1.Optimization."""
    chosen = config.optimization
    return MessageToDict(
        learner_pb2.Optimization(
            learning_rate=plan.learning_rate,
            mini_batches=chosen.mini_batches,
            clip_low=chosen.clip_low,
            clip_high=chosen.clip_high,
            max_grad_norm=chosen.max_grad_norm,
            importance_cap=chosen.importance_cap,
            reset_optimizer=reset_optimizer,
            scale_by_mini_batches=True,
        )
    )

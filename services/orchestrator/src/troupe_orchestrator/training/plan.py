"""What a run would take, reckoned before it starts. Pure: a function of the config, the tasks and what the policies are.

Bounds hold for whatever is kept of a step; attempts that end in faults of ours come on top. Estimates leave out what cannot
be told from here: activations, the engine's own buffers, compression. Each figure carries its formula.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from troupe.v1 import policy_pb2, training_pb2
from troupe_contracts.errors import InvalidArgument

from troupe_orchestrator.run_config import RunConfig, Trains
from troupe_orchestrator.stages import StepPlan, plan_step
from troupe_orchestrator.training.assembly import ROLES
from troupe_orchestrator.training.held_out import HeldOut
from troupe_orchestrator.training.policies import Policy

MAX_STAGES = 100
"""That are listed; the others repeat them."""
_BATCH_TOKEN_BYTES = 16
"""Token id, weight, advantage and behaviour log-probability."""
_BATCH_SEQUENCE_BYTES = 64
"""Id and offsets."""
_BATCH_FILE_BYTES = 65_536
"""Schema, statistics and page headers of a file."""
_TREE_TOKEN_BYTES = 14
"""Token id, log-probability, and about six bytes of text."""
_DTYPE_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True, slots=True)
class PolicyDescription:
    """What an estimate needs to know of a policy."""

    policy_id: str
    roles: tuple[str, ...]
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    context_length: int
    capacity: int
    learner_ranks: int


@dataclass(frozen=True, slots=True)
class StepBounds:
    """Most that one step of a stage can keep."""

    tasks: int
    designer_sequences: int
    executor_sequences: int
    designer_tokens: int
    executor_tokens: int
    trains: Trains

    @property
    def trained_sequences(self) -> int:
        """Sequences of the roles in training."""
        of_role = {"designer": self.designer_sequences, "executor": self.executor_sequences}
        return sum(of_role[role] for role in ROLES[self.trains])


def plan_message(
    config: RunConfig, tasks: int, policies: Sequence[PolicyDescription], held_out: HeldOut | None = None
) -> training_pb2.RunPlan:
    """The plan of a run over so many tasks, validated on the problems held out."""
    every = [(step_bounds(config, plan, tasks), steps) for plan, steps in _steps_of_stages(config)]
    bounds = [each for each, _ in every]
    return training_pb2.RunPlan(
        stages=list(islice(_stages(config, tasks), MAX_STAGES)),
        estimates=[
            _tokens(every),
            *_disk(config, bounds, policies),
            *_validations(config, held_out),
            *_memory(config, policies),
        ],
        steps=config.steps,
        tasks=tasks,
    )


def step_bounds(config: RunConfig, plan: StepPlan, tasks: int) -> StepBounds:
    """What a step can keep at most.

    Every agent call may begin a conversation, and each is a sequence. The turn that overdraws an execution's budget of calls
    or tokens is in its record.
    """
    drawn = min(config.rollout.tasks_per_step, tasks)
    designs = drawn * plan.designs
    executions = designs * plan.executions
    calls = config.budgets.agent_calls + 1
    a_turn = config.sampling.executor.max_tokens
    return StepBounds(
        tasks=drawn,
        designer_sequences=designs,
        executor_sequences=executions * calls,
        designer_tokens=designs * config.sampling.designer.max_tokens,
        executor_tokens=executions * min(config.budgets.tokens + a_turn, calls * a_turn),
        trains=plan.trains,
    )


def _steps_of_stages(config: RunConfig) -> Iterator[tuple[StepPlan, int]]:
    """Each stage of the config that has steps, as the plan of its first one, and how many it has in all rounds."""
    planned = sum(stage.steps for stage in config.stages)
    rounds, rest = divmod(config.steps, planned)
    first = 1
    for stage in config.stages:
        steps = rounds * stage.steps + min(max(rest - (first - 1), 0), stage.steps)
        if steps:
            yield plan_step(config, first), steps
        first += stage.steps


def _stages(config: RunConfig, tasks: int) -> Iterator[training_pb2.StagePlan]:
    """The stages in order, repeats too."""
    first = 1
    for stage in cycle(config.stages):
        if first > config.steps:
            return
        last = min(first + stage.steps - 1, config.steps)
        yield _stage(config, tasks, first, plan_step(config, last))
        first = last + 1


def _stage(config: RunConfig, tasks: int, first: int, last: StepPlan) -> training_pb2.StagePlan:
    bounds = step_bounds(config, last, tasks)
    return training_pb2.StagePlan(
        stage=last.stage,
        trains=last.trains.value,
        first_step=first,
        last_step=last.step,
        learning_rate=last.learning_rate,
        tasks=bounds.tasks,
        designs=last.designs,
        executions=last.executions,
        designer_sequences=_told(bounds.designer_sequences),
        executor_sequences=_told(bounds.executor_sequences),
        trained_sequences=_told(bounds.trained_sequences),
        generated_tokens=_told(bounds.designer_tokens + bounds.executor_tokens),
    )


def _told(count: int) -> int:
    """As much of a count as a message holds."""
    return min(count, 2**64 - 1)


def _tokens(every: Sequence[tuple[StepBounds, int]]) -> training_pb2.PlanEstimate:
    return training_pb2.PlanEstimate(
        name="generated tokens of the steps",
        value=sum((bounds.designer_tokens + bounds.executor_tokens) * steps for bounds, steps in every),
        unit="tokens",
        formula="sum over steps of tasks × designs × (sampling.designer.max_tokens + executions × min(budgets.tokens + "
        "sampling.executor.max_tokens, (budgets.agent_calls + 1) × sampling.executor.max_tokens))",
        bound=True,
    )


def _disk(
    config: RunConfig, every: Sequence[StepBounds], policies: Sequence[PolicyDescription]
) -> Iterator[training_pb2.PlanEstimate]:
    context = max((policy.context_length for policy in policies), default=0)
    if context:
        yield training_pb2.PlanEstimate(
            name="sealed batches of one step",
            value=max(
                bounds.trained_sequences * (context * _BATCH_TOKEN_BYTES + _BATCH_SEQUENCE_BYTES) for bounds in every
            )
            + len(policies) * _BATCH_FILE_BYTES,
            unit="bytes",
            formula=f"trained sequences × (context length × {_BATCH_TOKEN_BYTES} + {_BATCH_SEQUENCE_BYTES}) + "
            f"{_BATCH_FILE_BYTES} a policy",
            bound=True,
        )
    yield training_pb2.PlanEstimate(
        name="rollout trees of one step",
        value=max((bounds.designer_tokens + bounds.executor_tokens) * _TREE_TOKEN_BYTES for bounds in every),
        unit="bytes",
        formula=f"generated tokens × {_TREE_TOKEN_BYTES}; prompts and compression left out",
    )
    for policy in policies:
        one = policy.weight_bytes + 12 * policy.parameters
        yield training_pb2.PlanEstimate(
            name=f"one checkpoint of policy {policy.policy_id}",
            value=one,
            unit="bytes",
            formula="served weights + parameters × (4 master + 8 moments)",
        )
        yield training_pb2.PlanEstimate(
            name=f"checkpoints of policy {policy.policy_id}",
            value=one * (config.checkpoint.keep + 1),
            unit="bytes",
            formula=f"one checkpoint × (checkpoint.keep {config.checkpoint.keep} + 1 while the next is written)",
        )


def _validations(config: RunConfig, held_out: HeldOut | None) -> Iterator[training_pb2.PlanEstimate]:
    """What the validations of the whole run take, beside its steps."""
    if config.validation is None or held_out is None:
        return
    count = config.steps // config.validation.every
    a_turn = config.sampling.executor.max_tokens
    an_execution = min(config.budgets.tokens + a_turn, (config.budgets.agent_calls + 1) * a_turn)
    an_item = config.sampling.designer.max_tokens + an_execution
    tokens = count * held_out.problems * config.validation.samples * an_item
    yield training_pb2.PlanEstimate(
        name="generated tokens of the validations",
        value=tokens,
        unit="tokens",
        formula=f"{count} validations × {held_out.problems} problems × validation.samples × (sampling.designer.max_tokens + "
        "those of an execution, as above)",
        bound=True,
    )
    yield training_pb2.PlanEstimate(
        name="trees and problem files of the validations",
        value=tokens * _TREE_TOKEN_BYTES + len(held_out.content),
        unit="bytes",
        formula=f"generated tokens × {_TREE_TOKEN_BYTES} + the bytes of {held_out.name}; prompts and compression left out",
    )


def _memory(config: RunConfig, policies: Sequence[PolicyDescription]) -> Iterator[training_pb2.PlanEstimate]:
    undo = 12 if config.optimization.mini_batches > 1 or config.optimization.on_switch == "reset" else 0
    for policy in policies:
        per_parameter = 4 + 4 + 8 + undo
        yield training_pb2.PlanEstimate(
            name=f"learner memory of policy {policy.policy_id}, each of {policy.learner_ranks} ranks",
            value=policy.weight_bytes + policy.parameters * per_parameter,
            unit="bytes",
            formula="served weights + parameters × (4 master + 4 gradient + 8 moments"
            + (" + 12 copy to undo a step" if undo else "")
            + "); activations left out, and what ZeRO shares among the ranks",
        )
        if policy.kv_bytes_per_token and policy.context_length and policy.capacity:
            at_once = min(policy.capacity, _generations(config, policy.roles))
            yield training_pb2.PlanEstimate(
                name=f"keys and values of policy {policy.policy_id}",
                value=policy.kv_bytes_per_token * policy.context_length * at_once,
                unit="bytes",
                formula=f"{policy.kv_bytes_per_token} bytes a token × context length {policy.context_length} × "
                f"{at_once} generations at once; an engine with less keeps fewer at once",
            )


def _generations(config: RunConfig, roles: Sequence[str]) -> int:
    """Generations that a step asks a policy for at once, if each execution has one agent at a time."""
    designs = config.rollout.tasks_per_step * max(stage.designs or config.rollout.designs for stage in config.stages)
    executions = designs * max(stage.executions or config.rollout.executions for stage in config.stages)
    return (designs if "designer" in roles else 0) + (executions if "executor" in roles else 0)


async def describe(policies: Sequence[Policy]) -> list[PolicyDescription]:
    """What the services say of the policies."""
    return [await _describe(policy) for policy in policies]


async def _describe(policy: Policy) -> PolicyDescription:
    learner = await policy.learner.get()
    manifest = await policy.learner.manifest()
    replicas = await policy.fleet.known()
    return PolicyDescription(
        policy_id=policy.policy_id,
        roles=policy.roles,
        parameters=sum(_values(tensor) for tensor in manifest.tensors),
        weight_bytes=sum(tensor.byte_size for tensor in manifest.tensors),
        kv_bytes_per_token=kv_bytes_per_token(manifest),
        context_length=min(replica.context_length for replica in replicas),
        capacity=sum(replica.capacity for replica in replicas),
        learner_ranks=max(learner.ranks, 1),
    )


def kv_bytes_per_token(manifest: policy_pb2.WeightManifest) -> int:
    """Keys and values of one token over all layers, by the outputs of the key and value projections; 0 without such."""
    return sum(
        tensor.shape[0] * _DTYPE_BYTES.get(tensor.dtype, 4)
        for tensor in manifest.tensors
        if tensor.name.endswith(("k_proj.weight", "v_proj.weight")) and len(tensor.shape) == 2
    )


def description_of(message: training_pb2.PolicyDescription) -> PolicyDescription:
    """A description that a client gives.

    Raises:
        InvalidArgument: it cannot be one.
    """
    if not message.policy_id:
        raise InvalidArgument("policies.policy_id", "is empty: name the policy")
    unknown = sorted(set(message.roles) - {"designer", "executor"})
    if unknown or not message.roles:
        raise InvalidArgument("policies.roles", f"are {list(message.roles)}: send designer, executor or both")
    return PolicyDescription(
        policy_id=message.policy_id,
        roles=tuple(message.roles),
        parameters=message.parameters,
        weight_bytes=message.weight_bytes,
        kv_bytes_per_token=message.kv_bytes_per_token,
        context_length=message.context_length,
        capacity=message.capacity,
        learner_ranks=max(message.learner_ranks, 1),
    )


def _values(tensor: policy_pb2.TensorSpec) -> int:
    product = 1
    for size in tensor.shape:
        product *= size
    return product

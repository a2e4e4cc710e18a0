"""The config of a training run, as written in YAML. Typed; an unknown key is refused by its full name."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from troupe_contracts.yaml_keys import RepeatedKeysError, load_yaml

from troupe_orchestrator.credit.config import CreditConfig
from troupe_orchestrator.rewards import RewardConfig

MAX_CONFIG_CHARACTERS = 256 * 1024
MOST = 2**31 - 1
"""Of what is counted, as the contracts' numbers hold it."""
Positive = Annotated[int, Field(ge=1, le=MOST)]
MOST_OF_A_GROUP = 10_000
Group = Annotated[int, Field(ge=1, le=MOST_OF_A_GROUP)]
"""Designs of a task, executions of a design."""
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of the config."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Trains(StrEnum):
    """Whose sequences enter the gradient in a stage."""

    EXECUTOR = "executor"
    DESIGNER = "designer"
    BOTH = "both"


class Dataset(Section):
    """Problem files, as the orchestrator sees them."""

    train: Path
    format: str | None = None
    """Name of a format, built in or a plug-in's; None tells it from the first good line."""
    grader: str | None = None
    """Plug-in that grades all answers; None: the strict grader, or the one that a task names."""
    limit: Positive | None = None


class Rollout(Section):
    """The shape of a step's rollout trees."""

    tasks_per_step: Positive = 8
    designs: Group = 4
    """M: designs per task."""
    executions: Group = 4
    """N: executions per valid design."""
    max_attempts: Positive = 3
    """Attempts at an execution or a design whose fault is ours, before the task is dropped from the step."""
    quarantine_after: Positive = 3
    """Drops after which a task is no longer drawn."""


class RoleSampling(Section):
    """How a role's turns are sampled. Temperature is 1 and nothing else: what is trained is what was sampled from."""

    max_tokens: Positive = 1024


class Budgets(Section):
    """What a policy may spend in one execution. Never wall time: waiting for us costs a design nothing."""

    agent_calls: Annotated[int, Field(ge=1, le=10_000)] = 32
    """Turns of all agents together; one more ends the execution."""
    tokens: Positive = 65_536
    """Generated tokens of all agents together; one more ends the execution."""
    turns: Positive = 16
    """Turns of one conversation; the next is refused."""
    cpu_seconds: Annotated[float, Field(gt=0)] = 20.0
    memory_bytes: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Of one program; 0 takes what the sandbox gives, 512 MiB unless it is told otherwise (`--program-memory`)."""
    tool_cpu_seconds: Annotated[float, Field(gt=0, le=450)] = 10.0
    """Of one run of python for an agent. It may take four times as long by the clock."""
    test_cpu_seconds: Annotated[float, Field(gt=0, le=450)] = 10.0
    """Of one hidden test of a code task. It may take four times as long by the clock."""
    idle_wall_seconds: Annotated[float, Field(gt=0, le=1800)] = 300.0
    """Wall clock that a script may take while it waits for no agent: it sleeps or blocks. After four times as much in all an
    execution that waited for us is an infrastructure fault."""


class Sampling(Section):
    designer: RoleSampling = RoleSampling()
    executor: RoleSampling = RoleSampling()


class DeliveryInstruction(Section):
    """Said to every agent after its system prompt. Empty says nothing."""

    math: str = (
        "End with a short summary of your result inside <delivery></delivery>; it is all that later agents see. "
        "Give the final answer there as \\boxed{answer}."
    )
    code: str = (
        "End with a short summary of your result inside <delivery></delivery>; it is all that later agents see. "
        "Give the final program inside <solution></solution>."
    )


class Plateau(Section):
    """When a stage has nothing more to gain: the success of the run's validations no longer grows."""

    window: Positive = 3
    """Validations of the stage, the newest ones, that bring nothing."""
    min_improvement: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """What one of them has to have more than the best of those before, to bring something."""
    min_steps: Positive = 1
    """Steps that the stage has at least."""


def _named_rule(value: Any) -> Any:
    """`until: plateau` is the rule with its defaults."""
    return {} if value == "plateau" else value


class Stage(Section):
    """A span of steps in which one role, or both, is trained. Values that are given override `optimization`."""

    train: Trains
    steps: Positive
    """That it has; with `until` the most."""
    until: Annotated[Plateau | None, BeforeValidator(_named_rule)] = None
    """What ends it before; `plateau`, or that with values."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    warmup_steps: Annotated[int, Field(ge=0, le=MOST)] | None = None
    designs: Group | None = None
    executions: Group | None = None


class Optimization(Section):
    """How a batch becomes optimizer steps."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    warmup_steps: Annotated[int, Field(ge=0, le=MOST)] = 0
    """Steps at the start of every stage over which the rate grows linearly to its value."""
    mini_batches: Positive = 1
    clip_low: Fraction = 0.2
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    importance_cap: Annotated[float, Field(ge=0)] = 0.0
    """Cap of the truncated importance correction of engine against learner; 0 is off."""
    on_switch: Literal["keep", "reset"] = "reset"
    """What happens to the optimizer's moments where a stage begins."""


class Checkpoint(Section):
    """Learner checkpoints. Sealed batches since the last one are kept for replay."""

    every: Positive = 10
    keep: Positive = 2


class Retention(Section):
    """Which files of a run stay. `training.retention` has the rule."""

    batches: Literal["needed", "all"] = "needed"
    """Sealed batches: those that a replay from a kept checkpoint needs, or all, to have each update again later."""
    trees: Literal["all"] | Positive = "all"
    """Committed steps whose rollout trees stay, the newest ones. Traces read them."""


class Validation(Section):
    """Eval jobs inside the run, over problems that it does not train on. The best step by them keeps its checkpoint."""

    dataset: Path
    """Problem file, as the orchestrator sees it. A question that is a training task's too stops the start."""
    format: str | None = None
    every: Positive = 10
    """Steps from one validation to the next."""
    samples: Annotated[int, Field(ge=1, le=256)] = 1
    """Executions per problem."""
    limit: Positive | None = None
    """Only the first so many problems."""
    temperature: Annotated[float, Field(ge=0)] = 1.0


class Conditions(Section):
    """What pauses a run, with an event; null is off. `training.conditions` says how each is reckoned."""

    window: Positive = 5
    """Steps of one trained role whose mean is compared; fewer say nothing."""
    repeat_after: Positive = 10
    """Steps after which a condition that was resumed past and still holds pauses the run again."""
    non_finite: bool = True
    """A metric of a step that is infinite or not a number."""
    entropy_below: Annotated[float, Field(gt=0)] | None = 0.001
    """Nats per trained token."""
    reward_fall_above: Annotated[float, Field(gt=0)] | None = 0.5
    """From the best window before, for each role's mean reward."""
    valid_scripts_below: Fraction | None = 0.02
    zero_variance_above: Fraction | None = 0.98
    """Share of the trained roles' groups in which all samples have one reward."""
    mismatch_kl_above: Annotated[float, Field(gt=0)] | None = 0.1
    """Nats per token between the learner's and the engine's log-probabilities before the update."""
    probe_error_above: Annotated[float, Field(gt=0)] | None = None
    """Nats, mean after a load; a load beyond `probe_bound` is refused without this."""


class RunConfig(Section):
    """One training run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] = "run"
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    dataset: Dataset
    steps: Positive
    """Steps in all; the stage plan repeats or ends before."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=1000)]
    repeat: bool = True
    rollout: Rollout = Rollout()
    sampling: Sampling = Sampling()
    budgets: Budgets = Budgets()
    delivery_instruction: DeliveryInstruction = DeliveryInstruction()
    rewards: RewardConfig = RewardConfig()
    credit: CreditConfig = CreditConfig()
    optimization: Optimization = Optimization()
    checkpoint: Checkpoint = Checkpoint()
    retention: Retention = Retention()
    validation: Validation | None = None
    conditions: Conditions = Conditions()
    probe_bound: Annotated[float, Field(gt=0)] = 0.05
    """Largest mean difference of log-probabilities between learner and engine after a sync, in nats."""

    @model_validator(mode="after")
    def _plan_is_long_enough(self) -> Self:
        planned = sum(stage.steps for stage in self.stages)
        if not self.repeat and planned < self.steps:
            raise ValueError(
                f"stages: the plan has {planned} steps and `steps` asks for {self.steps}; "
                "set `repeat: true` or lengthen the plan"
            )
        return self

    @model_validator(mode="after")
    def _rules_of_stages_can_be_used(self) -> Self:
        for number, stage in enumerate(self.stages):
            if stage.until is None:
                continue
            if self.validation is None:
                raise ValueError(f"stages.{number}.until: looks at validations; add a `validation` section")
            if stage.until.min_steps > stage.steps:
                raise ValueError(
                    f"stages.{number}.until.min_steps: is {stage.until.min_steps}, the stage has {stage.steps} steps at most"
                )
        return self


class ServingConfig(Section):
    """How eval jobs and solving use the policies, where a request does not say."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    sampling: Sampling = Sampling()
    budgets: Budgets = Budgets()
    delivery_instruction: DeliveryInstruction = DeliveryInstruction()
    rewards: RewardConfig = RewardConfig()
    max_attempts: Positive = 3


class ConfigError(ValueError):
    """A config that cannot be used; each problem names its key."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{key}: {message}" for key, message in problems))


Parsed = TypeVar("Parsed", bound=Section)


def parse_run_config(text: str) -> RunConfig:
    """Parse a run's YAML. Raises ConfigError as `parse_config`."""
    return parse_config(text, RunConfig)


def parse_config(text: str, model: type[Parsed]) -> Parsed:
    """Parse YAML into a config.

    Raises:
        ConfigError: not YAML, not a mapping, or keys that are given twice, unknown or out of range, all of them named.
    """
    try:
        return model.model_validate(parse_mapping(text))
    except ValidationError as error:
        raise ConfigError(
            [(".".join(str(part) for part in item["loc"]) or "config", _message(item)) for item in error.errors()]
        ) from error


def parse_mapping(text: str) -> dict[str, Any]:
    """YAML that must be a mapping, its values unchecked.

    Raises:
        ConfigError: it is not, or has keys twice.
    """
    if len(text) > MAX_CONFIG_CHARACTERS:
        # Parsing takes 20 µs a character.
        raise ConfigError([("config", f"has {len(text)} characters, the maximum is {MAX_CONFIG_CHARACTERS}")])
    try:
        loaded = load_yaml(text)
        json.dumps(loaded, ensure_ascii=False, default=str, skipkeys=True).encode()
    except RepeatedKeysError as error:
        raise ConfigError(error.problems) from error
    except UnicodeEncodeError as error:
        raise ConfigError([("config", "has a text with half a surrogate pair, which is no character")]) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError([("config", f"not YAML: {error}")]) from error
    except RecursionError as error:
        raise ConfigError([("config", "is nested too deeply")]) from error
    if not isinstance(loaded, dict):
        raise ConfigError([("config", "must be a mapping of keys, see examples/")])
    return loaded


def _message(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "unknown key"
    return str(item["msg"])


def dump_run_config(config: RunConfig) -> str:
    """The effective config as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)

"""A local deployment as a YAML file: which services run on this machine, with which models.

    name: starter
    executor: {engine: vllm, model: model, policy_id: starter, context_length: 512}
    designer: {engine: remote, policy_id: starter, prompt: prompt}   # forwards to the executor's engine
    learner: {engine: torch}
    sandbox: {workflow_slots: 8, test_slots: 2}

Paths of models and prompts are relative to the file; what is not a path beside it is a hub id or a built-in
name. Unknown keys are refused. `settings` of a service are more of its own settings (TROUPE_ variables
without the prefix); the service itself refuses those that it does not know.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from troupe_contracts.plugins import installed

from troupe_client.reading import UnreadableError, read_yaml

Scalar = str | int | float | bool
Positive = Annotated[int, Field(ge=1)]
# Engines that hold no weights: another service does.
FORWARDING: Final = ("remote", "openai")


def _is_engine(name: str) -> str:
    """Refuses a name that no engine has; whether a plug-in's can be loaded, the service says that runs it."""
    plugins = installed("engine")
    if name not in ("vllm", *FORWARDING) and name not in {plugin.name for plugin in plugins}:
        known = ["vllm", *FORWARDING, *(f"{plugin.name} (of {plugin.distribution})" for plugin in plugins)]
        raise ValueError(f"no engine is named {name!r}; known: {', '.join(known)}")
    return name


Engine = Annotated[str, AfterValidator(_is_engine)]

# Set by the supervisor for every service; a profile that sets them too would break the wiring.
SUPERVISED: Final = frozenset(
    {
        "listen",
        "metrics",
        "ready_file",
        "die_with_parent",
        "drain_seconds",
        "tokens",
        "token_file",
        "tls_cert",
        "tls_key",
        "tls_ca",
        "tls_server_name",
        "insecure",
        "remote_target",
        "designer",
        "executor",
        "sandbox",
        "learner",
        "designer_learner",
        "data_dir",
        "work_dir",
        "replica_id",
    }
)


class ProfileError(ValueError):
    """A profile that cannot be used: which file, which keys, and why."""


class Section(BaseModel):
    """A part of a profile."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Process(Section):
    """What any process can be given. Nothing else of the supervisor's environment reaches it but what it needs."""

    environment: dict[str, str] = {}
    """Variables that are not ours, such as VLLM_CPU_KVCACHE_SPACE."""
    inherit: tuple[str, ...] = ()
    """Names of variables to hand on from the supervisor's own environment, such as an API key."""


class Service(Process):
    """What any Python service can be given."""

    settings: dict[str, Scalar] = {}

    @field_validator("settings")
    @classmethod
    def _leaves_the_wiring_alone(cls, settings: dict[str, Scalar]) -> dict[str, Scalar]:
        supervised = sorted(SUPERVISED & settings.keys())
        if supervised:
            raise ValueError(f"{', '.join(supervised)} is set by the supervisor: remove it")
        keys = sorted(cls.model_fields.keys() & settings.keys())
        if keys:
            raise ValueError(f"{', '.join(keys)} is a key of the service itself: move it up, out of settings")
        return settings


class Policy(Service):
    """A service that serves `Policy`: the executor, or the designer."""

    engine: Engine = "vllm"
    """vllm, openai, or a plug-in's name; remote forwards to the executor's engine."""
    policy_id: str = Field(min_length=1)
    model: str | None = None
    lineage: str | None = None
    """Lineage of the weights that vllm loads, which are its number 0; named after policy and model unless given."""
    context_length: Positive | None = None


class Designer(Policy):
    """The designer: its own engine, or a forwarder to the executor's."""

    engine: Engine = "remote"
    prompt: str | None = None
    """Name of a built-in prompt, or a folder with one."""


class Learner(Service):
    """One learner; model and policy are those of the role that it trains."""

    engine: Literal["torch", "deepspeed"] = "torch"
    ranks: Positive = 1


class Sandbox(Process):
    """The sandbox; the numbers are programs that run at once."""

    workflow_slots: Positive = 8
    test_slots: Positive = 2
    profile: Annotated[str, Field(min_length=1)] = "auto"
    nodes: tuple[str, ...] = ()
    """Workflow nodes of plug-ins that scripts can import."""


class Profile(Section):
    """One local deployment."""

    name: Annotated[str, Field(min_length=1)] = "local"
    executor: Policy
    designer: Designer
    learner: Learner | None = None
    """Trains the executor's policy, and the designer's where they share one. None: no training."""
    designer_learner: Learner | None = None
    """Trains the designer's policy where it has its own."""
    sandbox: Sandbox = Sandbox()
    orchestrator: Service = Service()
    start_seconds: Annotated[float, Field(gt=0)] = 300.0
    """How long a service may take from its start until it serves."""
    restart_limit: Annotated[int, Field(ge=0)] = 5
    """How often within ten minutes a service that ends by itself is started again; once more ends all."""

    @model_validator(mode="after")
    def _policies_fit_together(self) -> Self:
        if self.executor.engine == "remote":
            raise ValueError("executor.engine is remote: only the designer can forward; use vllm or openai")
        shared = self.designer.engine == "remote"
        if shared and self.designer.policy_id != self.executor.policy_id:
            raise ValueError(
                f"designer.policy_id is {self.designer.policy_id} and executor.policy_id {self.executor.policy_id}, "
                "but designer.engine remote forwards to the executor: give both the same"
            )
        if shared and self.designer_learner is not None:
            raise ValueError("designer_learner is set, but the designer has no engine of its own: remove it")
        for role, policy in (("executor", self.executor), ("designer", self.designer)):
            if policy.engine not in FORWARDING and policy.model is None:
                raise ValueError(f"{role}.model is missing: name the folder or hub id that {policy.engine} loads")
        if self.learner is not None and self.executor.model is None:
            raise ValueError("learner is set, but executor.model is missing: name the folder or hub id to train")
        return self

    def resolved(self, folder: Path) -> "Profile":
        """The same with each model and prompt that lies in `folder` as an absolute path."""

        def located(name: str | None) -> str | None:
            return str((folder / name).resolve()) if name is not None and (folder / name).exists() else name

        executor = self.executor.model_copy(update={"model": located(self.executor.model)})
        designer = self.designer.model_copy(
            update={"model": located(self.designer.model), "prompt": located(self.designer.prompt)}
        )
        return self.model_copy(update={"executor": executor, "designer": designer})


def load_profile(path: Path) -> Profile:
    """The profile in a file, with its paths resolved.

    Raises:
        ProfileError: no such file, not YAML, or keys that are unknown, missing or wrong, all of them named.
    """
    try:
        loaded = read_yaml(path)
    except UnreadableError as error:
        raise ProfileError(str(error)) from error
    if not isinstance(loaded, dict):
        raise ProfileError(f"{path} must hold a mapping of keys: name, executor, designer, learner, …")
    try:
        return Profile.model_validate(loaded).resolved(path.resolve().parent)
    except ValidationError as error:
        raise ProfileError("\n".join(f"{path}: {line}" for line in _lines(error))) from error


def _lines(error: ValidationError) -> Iterator[str]:
    for each in error.errors():
        key = ".".join(str(part) for part in each["loc"]) or "profile"
        yield f"{key}: {'unknown key' if each['type'] == 'extra_forbidden' else each['msg']}"

"""What the orchestrator process is told at start: where its store is and who the other services are."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from troupe_contracts.settings import ServiceSettings

from troupe_orchestrator.fleet import OUTAGE_SECONDS, TURN_SECONDS
from troupe_orchestrator.host_names import names_host, parse_host
from troupe_orchestrator.kubernetes.addresses import names_service, parse_address
from troupe_orchestrator.training.learner import STALL_SECONDS


class OrchestratorSettings(ServiceSettings):
    """Read from `TROUPE_*` environment variables. Targets are `host:port`; several replicas are separated by commas.

    On Kubernetes those of designer, executor and sandbox may name a Service instead, `k8s:///SERVICE[.NAMESPACE][:PORT]`
    with the name of a port, `grpc` unless given: its pods come and go, each with a channel of its own. Elsewhere
    `dns:///NAME:PORT` does the same for the addresses that a name has.
    """

    store_url: str = ""
    """The metadata store: sqlite:///file or postgresql://user:password@host/database; empty is SQLite in `data_dir`."""
    data_dir: Path = Path(".troupe/data")
    """Folder of runs and eval jobs: trees, batches, checkpoints' names."""
    designer: str = ""
    executor: str = ""
    sandbox: str = ""
    """All three, or none: then the orchestrator only shows what earlier runs and jobs left."""
    learner: str = ""
    """Empty: evaluation and solving only."""
    designer_learner: str = ""
    """Learner of the designer's policy where the roles have one policy each; empty where they share one."""
    serving: Path | None = None
    """YAML with how eval jobs and solving sample and what they may spend (`ServingConfig`); empty takes the defaults."""
    grading_workers: int = 1
    outage_seconds: float = Field(OUTAGE_SECONDS, gt=0)
    """How long work waits for a service of which no replica serves, before it is a fault."""
    turn_seconds: float = Field(TURN_SECONDS, gt=0)
    """How long an engine may take for one turn before that is a fault."""
    patience_seconds: float = 120.0
    """How long a run waits for a service that fails before it is paused."""
    stall_seconds: float = Field(STALL_SECONDS, gt=0)
    """How long a learner's operation may tell of no progress before that is a fault: more than the learner's own
    TROUPE_STALL_SECONDS, after which it starts its ranks again."""
    lease_seconds: float = 15.0
    """How long the store stays ours after the last renewal."""
    kubeconfig: Path | None = None
    """Where the API server is, for targets that name a Service and for custom resources; without it the service account of
    this pod says so."""
    custom_resources: bool = False
    """true: TrainingRuns and EvalJobs of this namespace are requests, which k8s/components/crds lets it read."""
    scaling: Literal["none", "stage"] = "none"
    """`stage`: this orchestrator, and nobody else, sets the replicas of its engines and sandboxes, by what a run trains."""
    replicas: Path | None = None
    """YAML with how many there are to be in which stage (`kubernetes.scaling.ReplicaPlan`)."""

    @field_validator("data_dir", mode="before")
    @classmethod
    def _is_a_folder(cls, value: object) -> object:
        if "://" in str(value):
            raise ValueError(
                f"{value} is a URL: files here become whole by a rename, which only a file system has; name a folder"
            )
        return value

    @model_validator(mode="after")
    def _names_all_engines_or_none(self) -> Self:
        engines = {"TROUPE_DESIGNER": self.designer, "TROUPE_EXECUTOR": self.executor, "TROUPE_SANDBOX": self.sandbox}
        missing = [name for name, value in engines.items() if not targets(value)]
        if missing and (len(missing) < len(engines) or self.learner):
            raise ValueError(f"{', '.join(missing)} needs at least one host:port, as the others have")
        return self

    @model_validator(mode="after")
    def _names_services_where_it_may(self) -> Self:
        for name in ("learner", "designer_learner"):
            if any(names_service(target) for target in targets(getattr(self, name))):
                raise ValueError(f"TROUPE_{name.upper()} is one process: name its Service by DNS, learner:50051")
        for name in ("designer", "executor", "sandbox"):
            given = targets(getattr(self, name))
            for target in given:
                parse = parse_address if names_service(target) else parse_host if names_host(target) else None
                if parse is None:
                    continue
                if len(given) > 1:
                    raise ValueError(f"TROUPE_{name.upper()} names all replicas, {target}, and others: name it alone")
                parse(target)
        if self.kubeconfig is not None and not self.watches and not self.custom_resources:
            raise ValueError(
                "TROUPE_KUBECONFIG is set, no target names a Service (k8s:///…), and TROUPE_CUSTOM_RESOURCES is not true: "
                "unset it"
            )
        if self.custom_resources and self.records_only:
            raise ValueError("TROUPE_CUSTOM_RESOURCES=true needs TROUPE_EXECUTOR, TROUPE_DESIGNER and TROUPE_SANDBOX")
        if self.scaling == "stage" and not self.watches:
            raise ValueError(
                "TROUPE_SCALING=stage needs targets that name a Service (k8s:///…): others cannot be scaled"
            )
        if (self.scaling == "stage") != (self.replicas is not None):
            raise ValueError("TROUPE_SCALING=stage and TROUPE_REPLICAS come together: set both or neither")
        return self

    @property
    def watches(self) -> bool:
        """Some of the services have members that are endpoints of a Service."""
        return any(names_service(each) for each in (self.designer, self.executor, self.sandbox))

    @property
    def members_come_and_go(self) -> bool:
        """Some of the services have members that are not listed here."""
        return self.watches or any(names_host(each) for each in (self.designer, self.executor, self.sandbox))

    @property
    def records_only(self) -> bool:
        """Started without engines."""
        return not self.executor

    def database_url(self) -> str:
        """The URL to connect to, with SQLite in the data folder as the default."""
        return self.store_url or f"sqlite+aiosqlite:///{self.data_dir.resolve()}/troupe.db"


def targets(value: str) -> tuple[str, ...]:
    """Split a comma-separated list of targets."""
    return tuple(part.strip() for part in value.split(",") if part.strip())

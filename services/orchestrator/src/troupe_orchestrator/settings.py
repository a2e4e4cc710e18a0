"""What the orchestrator process is told at start: where its store is and who the other services are."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from troupe_contracts.settings import ServiceSettings

from troupe_orchestrator.fleet import OUTAGE_SECONDS, TURN_SECONDS
from troupe_orchestrator.training.learner import STALL_SECONDS


class OrchestratorSettings(ServiceSettings):
    """Read from `TROUPE_*` environment variables. Targets are `host:port`; several replicas are separated by commas."""

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

    @model_validator(mode="after")
    def _names_all_engines_or_none(self) -> Self:
        engines = {"TROUPE_DESIGNER": self.designer, "TROUPE_EXECUTOR": self.executor, "TROUPE_SANDBOX": self.sandbox}
        missing = [name for name, value in engines.items() if not targets(value)]
        if missing and (len(missing) < len(engines) or self.learner):
            raise ValueError(f"{', '.join(missing)} needs at least one host:port, as the others have")
        return self

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

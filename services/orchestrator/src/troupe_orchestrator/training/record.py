"""What a run came from: source, packages, data, services; recorded when it is created and compared when it is resumed.

The record is JSON in the store. Data that changed under a run ends the comparison: a run goes on with the tasks that it
began with, or not at all. Everything else that changed is told as an event, and the run goes on.
"""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any, Final

import grpc
from troupe_contracts.errors import Unavailable
from troupe_contracts.plugins import GROUPS, installed

from troupe_orchestrator.datasets.task import Task
from troupe_orchestrator.engines import Engines
from troupe_orchestrator.run_config import RunConfig, Trains, dump_run_config
from troupe_orchestrator.training.held_out import HeldOut

_DISTRIBUTION = "troupe-orchestrator"
_RETRY_SECONDS: Final = 5.0
IMAGE_REVISION = Path(sys.prefix) / "troupe-revision"
"""Written when an image is built: the commit, in one line."""


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """A part that another distribution adds."""

    kind: str
    name: str
    distribution: str
    version: str


@dataclass(frozen=True, slots=True)
class Source:
    """The code that runs."""

    revision: str
    """Commit of the checkout or of the image; empty where neither is known."""
    dirty: bool
    version: str
    lock_digest: str
    """SHA-256, hex."""
    lock_source: str
    """`uv.lock`, or `installed distributions`."""
    plugins: tuple[PluginRecord, ...] = ()
    """All that are installed beside the orchestrator, used or not."""


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """A policy as its services describe it."""

    policy_id: str
    roles: tuple[str, ...]
    model: str
    tokenizer_digest: str
    chat_template_digest: str
    architecture_digest: str
    learner_engine: str
    serving_engine: str
    weights_digest: str = ""
    """Of the learner's initial weights; empty where it did not tell."""


@dataclass(frozen=True, slots=True)
class Fork:
    """Where a fork left its parent."""

    parent: str
    step: int
    """Of the parent; 0 is its start."""
    plan_start: int
    """Step after which the stage plan of the fork's config begins; 0 where that is still the first run's."""
    before_plan: Trains | None
    """What that step trained; None at 0."""
    plan_continued: bool
    """The plan goes on where the parent's stood."""
    tasks_continued: bool
    tasks_reason: str
    queue: dict[str, Any] | None
    """Where the parent's task queue stood, if the tasks go on from there."""
    stages_ended: tuple[int, ...] = ()
    """Steps before the fork with which stages of the plan that it goes on with ended early."""
    validated: tuple[float, ...] = ()
    """Success of the parent's validations in the stage that the fork goes on with, in order."""
    updated: tuple[str, ...] = ()
    """Policies that the parent had updated in the stage that the fork goes on with: their moments are that stage's."""


@dataclass(frozen=True, slots=True)
class RunOrigin:
    """Provenance of a run."""

    source: Source
    data_digest: str
    """SHA-256 of the training file, hex."""
    data_tasks: int
    config_digest: str
    seed: int
    policies: tuple[PolicyRecord, ...]
    isolation_profile: str
    fork: Fork | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "RunOrigin":
        fork = value["fork"]
        if fork is not None:
            before_plan = None if fork["before_plan"] is None else Trains(fork["before_plan"])
            lists = {name: tuple(fork.get(name, ())) for name in ("stages_ended", "validated", "updated")}
            fork = Fork(**{**fork, "before_plan": before_plan, **lists})
        policies = tuple(PolicyRecord(**{**each, "roles": tuple(each["roles"])}) for each in value["policies"])
        plugins = tuple(PluginRecord(**each) for each in value["source"].get("plugins", ()))
        source = Source(**{**value["source"], "plugins": plugins})
        return RunOrigin(**{**value, "source": source, "policies": policies, "fork": fork})


def origin_of(provenance: dict[str, Any]) -> RunOrigin | None:
    """The provenance that a store has; None for a run that was created without."""
    return RunOrigin.from_json(provenance) if provenance else None


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The tasks that a run draws from."""

    tasks: tuple[Task, ...]
    digest: str
    """SHA-256 of the file, hex."""
    held_out: HeldOut | None = None
    """What it is validated on."""


async def origin(
    source: Source, config: RunConfig, data: TrainingData, engines: Engines, fork: Fork | None = None
) -> RunOrigin:
    """The provenance of a run that is created, or resumed, now."""
    return RunOrigin(
        source=source,
        data_digest=data.digest,
        data_tasks=len(data.tasks),
        config_digest=hashlib.sha256(dump_run_config(config).encode()).hexdigest(),
        seed=config.seed,
        policies=await _policies(engines),
        isolation_profile=engines.sandboxes.profile,
        fork=fork,
    )


async def _policies(engines: Engines) -> tuple[PolicyRecord, ...]:
    records = []
    for policy in sorted(engines.policies, key=lambda policy: policy.policy_id):
        try:
            learner = await policy.learner.get()
            # A run may be asked for while engines come and go: it waits for one.
            replicas = await policy.fleet.known()
        except grpc.aio.AioRpcError as error:
            raise Unavailable(
                f"policy {policy.policy_id!r}: its learner or an engine does not answer ({error.details()}); call again "
                "when `troupe status` shows them ready",
                retry_after_seconds=_RETRY_SECONDS,
            ) from error
        records.append(
            PolicyRecord(
                policy_id=policy.policy_id,
                roles=policy.roles,
                model=learner.model,
                tokenizer_digest=learner.tokenizer_digest,
                chat_template_digest=replicas[0].chat_template_digest,
                architecture_digest=learner.architecture_digest,
                learner_engine=learner.engine,
                serving_engine=", ".join(sorted({replica.engine for replica in replicas})),
                weights_digest=learner.weights_digest,
            )
        )
    return tuple(records)


def changes(before: RunOrigin, now: RunOrigin) -> list[str]:
    """What differs, each as `name: from → to`. Data, config and fork do not change under a run."""
    found = _differences(_of_source(before.source), _of_source(now.source))
    found += _differences({"isolation_profile": before.isolation_profile}, {"isolation_profile": now.isolation_profile})
    ours, theirs = ({each.policy_id: each for each in side.policies} for side in (before, now))
    for policy_id in sorted(ours.keys() | theirs.keys()):
        sides = (asdict(side[policy_id]) if policy_id in side else {} for side in (ours, theirs))
        found += _differences(*(_flat(side, policy_id) for side in sides))
    return found


def _differences(before: dict[str, object], now: dict[str, object]) -> list[str]:
    return [
        f"{name}: {_short(before.get(name))} → {_short(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _of_source(source: Source) -> dict[str, object]:
    values = asdict(source)
    del values["plugins"]
    plugins = {f"plugin.{each.kind} {each.name}": f"{each.distribution} {each.version}" for each in source.plugins}
    return _flat({**values, **plugins}, "source")


def _flat(values: dict[str, object], prefix: str) -> dict[str, object]:
    return {f"{prefix}.{name}": value for name, value in values.items()}


def _short(value: object) -> str:
    """A value in an event; of a digest its first 12 digits."""
    text = "nothing" if value in (None, "") else str(value)
    return text[:12] if len(text) in (40, 64) else text


@cache
def source_of_process() -> Source:
    """The code of this process; read once, when the process starts. Reads files and asks git."""
    root = _checkout()
    revision, dirty = ("", False) if root is None else _git(root)
    if not revision and IMAGE_REVISION.is_file():
        revision = IMAGE_REVISION.read_text().strip()
    lock = None if root is None else root / "uv.lock"
    if lock is not None and lock.is_file():
        digest, lock_source = hashlib.sha256(lock.read_bytes()).hexdigest(), "uv.lock"
    else:
        digest, lock_source = _installed_digest(), "installed distributions"
    return Source(revision, dirty, version(_DISTRIBUTION), digest, lock_source, installed_plugins())


def installed_plugins() -> tuple[PluginRecord, ...]:
    """All plug-ins of this environment, by kind and name."""
    return tuple(
        PluginRecord(kind, plugin.name, *(("", "") if owner is None else (owner.name, owner.version)))
        for kind in GROUPS
        for plugin in installed(kind)
        for owner in [plugin.entry_point.dist]
    )


def _checkout() -> Path | None:
    """The checkout that this file is in; None where it is installed."""
    here = Path(__file__).resolve()
    # A .git above an environment that this is installed in is somebody else's.
    folders = (folder for folder in here.parents if here.is_relative_to(folder / "services" / "orchestrator"))
    return next((folder for folder in folders if (folder / ".git").exists()), None)


def _git(root: Path) -> tuple[str, bool]:
    """Commit of a checkout, and whether tracked files differ from it; empty where git cannot tell."""
    try:
        revision = _git_says(root, "rev-parse", "HEAD").strip()
        return revision, bool(_git_says(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "", False


def _git_says(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def _installed_digest() -> str:
    """SHA-256 over `name==version` of all installed distributions."""
    names: Sequence[str] = sorted({f"{each.name}=={each.version}" for each in distributions()})
    return hashlib.sha256("\n".join(names).encode()).hexdigest()

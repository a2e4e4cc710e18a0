"""How each service of a profile is started: its command, its environment, and whose target it needs.

This is the one table between profile keys and the services' settings. Pure: nothing is started here.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from troupe_contracts.access import Role

from troupe_client.credentials import token_file, tokens_file
from troupe_client.profile import FORWARDING, Learner, Policy, Process, Profile, Service

SANDBOX, LEARNER, DESIGNER_LEARNER = "sandbox", "learner", "designer_learner"
EXECUTOR, DESIGNER, ORCHESTRATOR = "executor", "designer", "orchestrator"
LEARNERS: Final = frozenset({LEARNER, DESIGNER_LEARNER})

# The role in which a service calls others; the rest call nobody.
ROLE_OF: Final[Mapping[str, Role]] = {
    EXECUTOR: Role.ENGINE,
    DESIGNER: Role.ENGINE,
    ORCHESTRATOR: Role.ORCHESTRATOR,
}

# What a child may see of our own environment. Everything else stays here: a service is told what it needs.
INHERITED: Final = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
# For those that load models: caches, the hub, devices, and the way to hub and endpoints.
INHERITED_WITH_MODELS: Final = (
    *INHERITED,
    *("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "CUDA_VISIBLE_DEVICES", "CUDA_HOME"),
    *("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"),
)
# Short, so that stopping everything stays within five seconds.
DRAIN_SECONDS: Final = 1.0


class Purpose(Enum):
    """What services are started for."""

    RECORDS = "reading what earlier runs and jobs left: the orchestrator alone"
    INFERENCE = "solving and evaluating: no learners"
    TRAINING = "everything"


@dataclass(frozen=True)
class Addresses:
    """Where a service listens: on free ports, or where it did before, so that those who know it need not be told."""

    listen: str = "127.0.0.1:0"
    metrics: str = "127.0.0.1:0"


FREE: Final = Addresses()


@dataclass(frozen=True)
class Launch:
    """One service to start."""

    service: str
    command: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Folders:
    """Where a local deployment keeps its files."""

    state: Path

    def ready_file(self, service: str) -> Path:
        return self.state / "run" / f"{service}.json"

    def log(self, service: str) -> Path:
        return self.state / "logs" / f"{service}.log"

    def work(self, service: str) -> Path:
        return self.state / "work" / service

    @property
    def credentials(self) -> Path:
        """Tokens of the services and of their callers (`credentials`)."""
        return self.state / "credentials"

    @property
    def data(self) -> Path:
        """The orchestrator's: runs, eval jobs, store."""
        return self.state / "data"


def services_of(profile: Profile, purpose: Purpose) -> tuple[str, ...]:
    """The services that a purpose needs."""
    if purpose is Purpose.RECORDS:
        return (ORCHESTRATOR,)
    learners = []
    if purpose is Purpose.TRAINING and profile.learner is not None:
        learners.append(LEARNER)
    if purpose is Purpose.TRAINING and profile.designer_learner is not None:
        learners.append(DESIGNER_LEARNER)
    return (SANDBOX, *learners, EXECUTOR, DESIGNER, ORCHESTRATOR)


def needs(service: str, services: Iterable[str], profile: Profile) -> frozenset[str]:
    """The services whose targets `service` is started with."""
    if service == DESIGNER and profile.designer.engine == "remote":
        return frozenset({EXECUTOR})
    if service == ORCHESTRATOR:
        return frozenset(services) - {ORCHESTRATOR}
    return frozenset()


def launch(
    service: str,
    profile: Profile,
    folders: Folders,
    targets: Mapping[str, str],
    own: Mapping[str, str],
    addresses: Addresses = FREE,
    guarded: bool = False,
) -> Launch:
    """How to start `service`.

    Args:
        targets: of the services that `needs` names.
        own: the supervisor's environment.
        guarded: callers have to show one of the deployment's tokens, which have been issued.
    """
    folders = Folders(folders.state.resolve())
    if service == SANDBOX:
        command = _sandbox(profile, folders, addresses)
        if guarded:
            command += ("--tokens", str(tokens_file(folders.credentials)))
        return Launch(service, command, _environment(profile.sandbox, own))
    section: Service
    match service:
        case "executor":
            section, wired = profile.executor, _policy(profile.executor, service)
        case "designer":
            section, wired = profile.designer, _designer(profile, targets)
        case "learner":
            assert profile.learner is not None
            section, wired = profile.learner, _learner(profile.learner, profile.executor, folders.work(service))
        case "designer_learner":
            assert profile.designer_learner is not None
            section = profile.designer_learner
            wired = _learner(section, profile.designer, folders.work(service))
        case "orchestrator":
            section, wired = profile.orchestrator, _orchestrator(targets, folders)
        case _:
            raise ValueError(f"there is no service {service!r}")
    settings: dict[str, object] = {**section.settings, **wired, **_supervised(service, folders, addresses)}
    if guarded:
        settings |= _credentials(service, folders.credentials)
    environment = _environment(section, own)
    environment |= {f"TROUPE_{name.upper()}": _text(value) for name, value in settings.items()}
    module = "learner" if service in LEARNERS else service
    return Launch(service, (sys.executable, "-m", f"troupe_{module}"), environment)


def _environment(process: Process, own: Mapping[str, str]) -> dict[str, str]:
    needed = INHERITED_WITH_MODELS if isinstance(process, Policy | Learner) else INHERITED
    passed = {name: own[name] for name in (*needed, *process.inherit) if name in own}
    return passed | process.environment


def _supervised(service: str, folders: Folders, addresses: Addresses) -> dict[str, object]:
    return {
        "listen": addresses.listen,
        "metrics": addresses.metrics,
        "ready_file": folders.ready_file(service),
        "die_with_parent": True,
        "drain_seconds": DRAIN_SECONDS,
    }


def _credentials(service: str, folder: Path) -> dict[str, object]:
    wired: dict[str, object] = {"tokens": tokens_file(folder)}
    if service in ROLE_OF:
        wired["token_file"] = token_file(folder, ROLE_OF[service])
    return wired


def _sandbox(profile: Profile, folders: Folders, addresses: Addresses) -> tuple[str, ...]:
    return (
        *(sys.executable, "-m", "troupe_sandbox"),
        *("--listen", addresses.listen),
        *("--metrics", addresses.metrics),
        *("--ready-file", str(folders.ready_file(SANDBOX))),
        *("--drain-seconds", f"{DRAIN_SECONDS:g}"),
        "--die-with-parent",
        *("--workflow-slots", str(profile.sandbox.workflow_slots)),
        *("--test-slots", str(profile.sandbox.test_slots)),
        *("--profile", profile.sandbox.profile),
        *(("--nodes", ",".join(profile.sandbox.nodes)) if profile.sandbox.nodes else ()),
    )


def _policy(policy: Policy, service: str) -> dict[str, object]:
    wired: dict[str, object] = {
        "engine": policy.engine,
        "policy_id": policy.policy_id,
        "replica_id": f"{service}-0",
    }
    if policy.model is not None:
        wired["model"] = policy.model
    if policy.engine not in FORWARDING:
        wired["lineage"] = policy.lineage or _lineage(policy)
    if policy.context_length is not None:
        wired["context_length"] = policy.context_length
    return wired


def _lineage(policy: Policy) -> str:
    """Tells the weights of two model folders apart, so that their versions never look the same."""
    return f"{policy.policy_id}-{hashlib.sha256(str(policy.model).encode()).hexdigest()[:8]}"


def _designer(profile: Profile, targets: Mapping[str, str]) -> dict[str, object]:
    wired = _policy(profile.designer, DESIGNER)
    if profile.designer.engine == "remote":
        wired["remote_target"] = targets[EXECUTOR]
    if profile.designer.prompt is not None:
        wired["prompt"] = profile.designer.prompt
    return wired


def _learner(learner: Learner, policy: Policy, work: Path) -> dict[str, object]:
    return {
        "engine": learner.engine,
        "ranks": learner.ranks,
        "model": policy.model or "",
        "policy_id": policy.policy_id,
        "work_dir": work,
    }


def _orchestrator(targets: Mapping[str, str], folders: Folders) -> dict[str, object]:
    return {**targets, "data_dir": folders.data}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def own_environment() -> dict[str, str]:
    """The environment of this process."""
    return dict(os.environ)

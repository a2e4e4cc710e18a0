"""What each service is started with, as the table says."""

from pathlib import Path
from typing import Any

import pytest
from troupe_client.profile import Profile
from troupe_client.wiring import Folders, Launch, Purpose, launch, needs, services_of

SHARED = Profile.model_validate(
    {
        "executor": {
            "model": "/m",
            "policy_id": "p",
            "context_length": 512,
            "settings": {"max_wait": 3, "eager": True},
        },
        "designer": {"policy_id": "p", "prompt": "starter", "inherit": ["OPENAI_API_KEY"]},
        "learner": {"engine": "deepspeed", "ranks": 2, "environment": {"OMP_NUM_THREADS": "1"}},
    }
)
APART = Profile.model_validate(
    {
        "executor": {"model": "/m", "policy_id": "x"},
        "designer": {"engine": "vllm", "model": "/n", "policy_id": "d"},
        "learner": {},
        "designer_learner": {},
    }
)
TARGETS = {"executor": "h:1", "designer": "h:2", "sandbox": "h:3", "learner": "h:4"}
OWN = {
    "PATH": "/bin",
    "HOME": "/home/me",
    "OPENAI_API_KEY": "secret",
    "AWS_SECRET": "never",
    "HF_TOKEN": "hub",
    "TROUPE_LISTEN": "h:9",
}


def started(service: str, profile: Profile = SHARED) -> Launch:
    return launch(service, profile, Folders(Path("/state")), TARGETS, OWN)


def troupe_variables(launched: Launch) -> dict[str, str]:
    common = {"READY_FILE", "LISTEN", "METRICS", "DIE_WITH_PARENT", "DRAIN_SECONDS"}
    names = {name.removeprefix("TROUPE_"): value for name, value in launched.environment.items() if "TROUPE_" in name}
    assert names.keys() >= common
    return {name: value for name, value in names.items() if name not in common}


@pytest.mark.parametrize(
    ("service", "variables"),
    [
        (
            "executor",
            {
                "ENGINE": "vllm",
                "MODEL": "/m",
                "POLICY_ID": "p",
                "LINEAGE": "p-4da12da3",
                "REPLICA_ID": "executor-0",
                "CONTEXT_LENGTH": "512",
                "MAX_WAIT": "3",
                "EAGER": "true",
            },
        ),
        (
            "designer",
            {
                "ENGINE": "remote",
                "POLICY_ID": "p",
                "REPLICA_ID": "designer-0",
                "REMOTE_TARGET": "h:1",
                "PROMPT": "starter",
            },
        ),
        (
            "learner",
            {
                "ENGINE": "deepspeed",
                "RANKS": "2",
                "MODEL": "/m",
                "POLICY_ID": "p",
                "WORK_DIR": "/state/work/learner",
            },
        ),
        (
            "orchestrator",
            {
                "DESIGNER": "h:2",
                "EXECUTOR": "h:1",
                "SANDBOX": "h:3",
                "LEARNER": "h:4",
                "DATA_DIR": "/state/data",
            },
        ),
    ],
)
def test_a_service_gets_exactly_its_settings(service: str, variables: dict[str, str]) -> None:
    assert troupe_variables(started(service)) == variables


def test_the_sandbox_is_told_by_flags() -> None:
    command = started("sandbox").command
    assert command[1:3] == ("-m", "troupe_sandbox")
    assert "--die-with-parent" in command
    assert command[command.index("--workflow-slots") + 1] == "8"
    assert not any(name.startswith("TROUPE_") for name in started("sandbox").environment)


def test_a_service_sees_nothing_of_our_environment_but_what_it_needs() -> None:
    assert "AWS_SECRET" not in started("executor").environment
    assert "OPENAI_API_KEY" not in started("executor").environment
    assert started("executor").environment["HF_TOKEN"] == "hub"
    assert "HF_TOKEN" not in started("sandbox").environment
    assert started("designer").environment["OPENAI_API_KEY"] == "secret"
    assert started("learner").environment["OMP_NUM_THREADS"] == "1"
    assert started("executor").environment["PATH"] == "/bin"
    assert started("executor").environment["TROUPE_LISTEN"] == "127.0.0.1:0"


def test_the_weights_of_two_folders_are_never_of_one_lineage() -> None:
    executor, designer = started("executor", APART), started("designer", APART)
    assert executor.environment["TROUPE_LINEAGE"] != designer.environment["TROUPE_LINEAGE"]
    assert "TROUPE_LINEAGE" not in started("designer").environment


def test_a_second_policy_has_its_own_learner_with_its_own_model() -> None:
    variables = troupe_variables(started("designer_learner", APART))
    assert variables["MODEL"] == "/n"
    assert variables["POLICY_ID"] == "d"
    assert variables["WORK_DIR"] == "/state/work/designer_learner"
    assert started("designer_learner", APART).command[-1] == "troupe_learner"


@pytest.mark.parametrize(
    ("profile", "purpose", "services"),
    [
        (SHARED, Purpose.TRAINING, ["sandbox", "learner", "executor", "designer", "orchestrator"]),
        (SHARED, Purpose.INFERENCE, ["sandbox", "executor", "designer", "orchestrator"]),
        (SHARED, Purpose.RECORDS, ["orchestrator"]),
        (
            APART,
            Purpose.TRAINING,
            ["sandbox", "learner", "designer_learner", "executor", "designer", "orchestrator"],
        ),
    ],
)
def test_a_purpose_starts_only_what_it_needs(profile: Profile, purpose: Purpose, services: list[Any]) -> None:
    assert list(services_of(profile, purpose)) == services


def test_a_service_waits_only_for_the_targets_that_it_is_given() -> None:
    services = services_of(SHARED, Purpose.TRAINING)
    assert needs("executor", services, SHARED) == frozenset()
    assert needs("designer", services, SHARED) == {"executor"}
    assert needs("designer", services, APART) == frozenset()
    assert needs("orchestrator", services, SHARED) == set(services) - {"orchestrator"}

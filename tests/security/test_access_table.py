"""The table of who may call what: complete, and never without the sentences that it stands for."""

import pytest
from guarded.calls import HEALTH, REFLECTION, SERVED, contracts, rpcs_at, rpcs_of
from troupe_contracts.access import ACCESS, Role, callers, read_table


def test_every_call_of_the_contracts_has_a_row_and_every_row_a_call() -> None:
    services = [*contracts().values(), HEALTH, REFLECTION]
    calls = {rpc.name for service in services for rpc in rpcs_of(service)}
    calls |= {name.replace("v1alpha", "v1") for name in calls}  # the sandbox serves both versions of reflection
    assert set(ACCESS) - {"http/metrics", "http/healthz"} == calls


def test_every_service_of_the_contracts_is_served_by_some_process() -> None:
    assert {name for names in SERVED.values() for name in names} == set(contracts())


def test_every_row_names_somebody() -> None:
    assert [method for method, roles in ACCESS.items() if not roles] == []


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ('{"a.B": {"Call": ["client"], "Other": ["client"], "Call": ["observer"]}}', "'Call'"),
        ('{"a.B": {"Call": ["client"]}, "a.B": {"Other": ["client"]}}', "'a.B'"),
    ],
)
def test_a_row_or_a_service_that_is_there_twice_is_refused_by_name(table: str, named: str) -> None:
    with pytest.raises(ValueError, match=rf"access\.json has {named} twice: remove one"):
        read_table(table)


def test_what_has_no_row_nobody_may_call() -> None:
    assert callers("troupe.v1.Policy/Teach") == frozenset()
    assert callers("/troupe.v1.Policy/Generate") == callers("troupe.v1.Policy/Generate") != frozenset()


def test_who_submits_jobs_cannot_push_weights_train_run_code_or_generate() -> None:
    for rpc in (
        "Policy/BeginUpdate", "Policy/StageWeights", "Policy/CommitUpdate", "Policy/AbortUpdate", "Policy/Generate",
        "Learner/SubmitBatch", "Learner/TrainStep", "Learner/RestoreCheckpoint", "Learner/BindRun", "Learner/Score",
        "Learner/ExportWeights", "Learner/SaveCheckpoint", "Sandbox/RunWorkflow", "Sandbox/RunTests",
        "Designer/ProposeDesigns",
    ):  # fmt: skip
        assert not {Role.CLIENT, Role.OBSERVER, Role.ANONYMOUS} & callers(f"troupe.v1.{rpc}"), rpc


def test_who_only_looks_changes_nothing() -> None:
    looks = {rpc for process in SERVED for rpc in rpcs_at(process) if Role.OBSERVER in callers(rpc.name)}
    verbs = ("Get", "List", "Watch", "ServerReflectionInfo")
    assert [rpc.name for rpc in looks if not rpc.method.startswith(verbs)] == []


def test_an_engine_neither_trains_nor_updates_another_nor_sees_runs() -> None:
    reachable = {rpc.name for process in SERVED for rpc in rpcs_at(process) if Role.ENGINE in callers(rpc.name)}
    assert {name for name in reachable if name.startswith("troupe.")} == {
        "troupe.v1.Policy/Generate",
        "troupe.v1.Policy/GetPolicy",
        "troupe.v1.Learner/ExportWeights",
        "troupe.v1.Learner/GetLearner",
    }


def test_the_orchestrator_creates_no_work_for_itself() -> None:
    for rpc in rpcs_at("orchestrator"):
        if rpc.service.startswith("troupe."):
            assert Role.ORCHESTRATOR not in callers(rpc.name)


def test_without_a_credential_only_health_answers() -> None:
    everything = {rpc for process in SERVED for rpc in rpcs_at(process)}
    open_to_all = {rpc.service for rpc in everything if Role.ANONYMOUS in callers(rpc.name)}
    assert open_to_all == {"grpc.health.v1.Health"}

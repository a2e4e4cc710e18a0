"""A local deployment is its owner's: other users of the machine reach its ports and get nowhere."""

import stat
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from standin.deployment import troupe, write_profile
from troupe_client import credentials
from troupe_client.profile import Profile
from troupe_client.state import StateFolder
from troupe_client.wiring import Folders, launch
from troupe_contracts.access import Role
from troupe_contracts.tokens import parse_known, read_token, role_of

PROFILE = Profile.model_validate(
    {"executor": {"model": "/m", "policy_id": "p"}, "designer": {"policy_id": "p"}, "learner": {}}
)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running deployment."""
    folder = tmp_path_factory.mktemp("deployment")
    started = troupe("up", "--detach", "--profile", write_profile(folder), "--state", folder / "state")
    assert started.returncode == 0, started.stderr
    yield folder / "state"
    troupe("down", "--state", folder / "state")


def token(state: Path, role: Role) -> Path:
    return credentials.token_file(Folders(state).credentials, role)


def code(target: str, call: str, shown: str | None) -> grpc.StatusCode:
    """The status of a unary call with an empty message."""
    metadata = () if shown is None else (("authorization", f"Bearer {shown}"),)
    with grpc.insecure_channel(target) as channel:
        try:
            channel.unary_unary(f"/troupe.v1.{call}", request_serializer=bytes)(b"", metadata=metadata, timeout=10)
        except grpc.RpcError as error:
            refused: grpc.StatusCode = error.code()  # type: ignore[attr-defined]
            return refused
    return grpc.StatusCode.OK


def test_only_the_owner_can_read_the_tokens_and_the_services_files_hold_none(tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    credentials.issue(folder)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes.pop("credentials") == 0o700
    assert set(modes.values()) == {0o600}
    known = parse_known(credentials.tokens_file(folder).read_text())
    for role in credentials.ROLES:
        secret = read_token(credentials.token_file(folder, role))
        assert role_of(known, secret) is role
        assert secret not in credentials.tokens_file(folder).read_text()


def test_tokens_are_new_each_time(tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    seen = set()
    for _ in range(2):
        credentials.issue(folder)
        seen |= {path.read_text() for path in folder.glob("*.token")}
    assert len(seen) == 2 * len(credentials.ROLES)


def test_each_service_gets_the_token_of_its_role_and_no_other(tmp_path: Path) -> None:
    targets = {"executor": "h:1", "designer": "h:2", "sandbox": "h:3", "learner": "h:4"}
    folder = Folders(tmp_path).credentials
    given = {}
    for service in (*targets, "orchestrator"):
        started = launch(service, PROFILE, Folders(tmp_path), targets, {}, guarded=True)
        told = [*started.command, *started.environment.values()]
        assert str(credentials.tokens_file(folder)) in told
        given[service] = [role for role in Role if str(credentials.token_file(folder, role)) in told]
    assert given == {
        "executor": [Role.ENGINE],
        "designer": [Role.ENGINE],
        "sandbox": [],
        "learner": [],
        "orchestrator": [Role.ORCHESTRATOR],
    }


def test_who_cannot_read_the_state_folder_cannot_call_any_service(state: Path) -> None:
    deployment = StateFolder(state).read()
    assert deployment is not None
    calls = {
        "executor": "Policy/CommitUpdate",
        "designer": "Policy/Generate",
        "sandbox": "Sandbox/GetIsolation",
        "learner": "Learner/GetLearner",
        "orchestrator": "Training/ListRuns",
    }
    assert deployment.services.keys() == calls.keys()
    for service, call in calls.items():
        for shown in (None, "a-guess" * 8):
            assert code(deployment.services[service].target, call, shown) is grpc.StatusCode.UNAUTHENTICATED


def test_the_token_that_submits_jobs_does_not_push_weights(state: Path) -> None:
    deployment = StateFolder(state).read()
    assert deployment is not None
    services = deployment.services
    client, orchestrator = (read_token(token(state, role)) for role in (Role.CLIENT, Role.ORCHESTRATOR))
    assert code(services["orchestrator"].target, "Training/ListRuns", client) is grpc.StatusCode.OK
    for service, call in (("executor", "Policy/BeginUpdate"), ("learner", "Learner/TrainStep")):
        assert code(services[service].target, call, client) is grpc.StatusCode.PERMISSION_DENIED
        assert code(services[service].target, call, orchestrator) is grpc.StatusCode.UNIMPLEMENTED  # a stand-in


def test_a_command_with_a_target_shows_the_token_that_it_is_given(state: Path) -> None:
    deployment = StateFolder(state).read()
    assert deployment is not None
    target = deployment.services["orchestrator"].target
    without = troupe("runs", "list", "--target", target)
    assert without.returncode == 1
    assert "UNAUTHENTICATED: troupe.v1.Training/ListRuns needs a token" in without.stderr
    assert "TROUPE_TOKEN_FILE" in without.stderr
    given = troupe("--token-file", token(state, Role.CLIENT), "runs", "list", "--target", target)
    assert given.returncode == 0, given.stderr
    wrong = troupe("--token-file", token(state, Role.ENGINE), "runs", "list", "--target", target)
    assert wrong.returncode == 1
    assert "PERMISSION_DENIED" in wrong.stderr
    assert "this credential's role is engine" in wrong.stderr


def test_a_token_file_that_cannot_be_used_is_an_error_of_one_line(tmp_path: Path) -> None:
    ended = troupe("--token-file", tmp_path / "none", "runs", "list", "--target", "127.0.0.1:1")
    assert ended.returncode == 1
    assert ended.stderr == f"troupe: {tmp_path / 'none'}: No such file or directory\n"

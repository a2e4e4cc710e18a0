"""The programs that the manifests carry, run as pods run them: one issues credentials, one waits for services."""

import base64
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from guarded.authority import Authority
from rendered.overlays import K8S
from rendered.standin_api import StandinApi, serve
from troupe_contracts.access import Role
from troupe_contracts.tokens import parse_known, role_of

ISSUE: Final = K8S / "components" / "credentials" / "issue.py"
WAIT: Final = K8S / "base" / "orchestrator" / "wait_for_services.py"
MOUNTED: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
SECRETS: Final = {f"{role}-token" for role in ("observer", "client", "engine", "learner", "orchestrator")} | {
    "postgres-password"
}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[StandinApi]:
    authority = Authority.new(tmp_path)
    access = tmp_path / "access"
    access.mkdir()
    (access / "token").write_text("token-of-the-job")
    (access / "namespace").write_text("troupe")
    (access / "ca.crt").write_bytes(authority.certificate.read_bytes())
    with serve(StandinApi("token-of-the-job"), authority.sign("server")) as served:
        yield served


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The program, looking for its token where the test has put it."""
    text = ISSUE.read_text()
    assert MOUNTED in text
    copy = tmp_path / "issue.py"
    copy.write_text(text.replace(MOUNTED, str(tmp_path / "access")))
    return copy


def issue(program: Path, api: StandinApi) -> subprocess.CompletedProcess[str]:
    address = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(api.port)}
    command = [sys.executable, str(program)]
    return subprocess.run(command, env=address, capture_output=True, text=True, check=False, timeout=60)


def value(api: StandinApi, name: str, key: str = "token") -> str:
    return base64.b64decode(api.held[f"secrets/{name}"]["data"][key]).decode()


def test_each_role_gets_a_token_that_the_services_take_for_that_role(program: Path, api: StandinApi) -> None:
    done = issue(program, api)
    assert done.returncode == 0, done.stderr
    assert {key.removeprefix("secrets/") for key in api.held if key.startswith("secrets/")} == SECRETS
    known = parse_known(api.held["configmaps/callers"]["data"]["tokens"])
    for role in (Role.OBSERVER, Role.CLIENT, Role.ENGINE, Role.LEARNER, Role.ORCHESTRATOR):
        assert role_of(known, value(api, f"{role}-token")) is role
    assert len(value(api, "postgres-password", "password")) >= 32


def test_a_second_run_changes_nothing_and_one_that_was_cut_short_is_completed(program: Path, api: StandinApi) -> None:
    issue(program, api)
    before = {key: dict(held["data"]) for key, held in api.held.items()}
    assert issue(program, api).returncode == 0
    assert {key: held["data"] for key, held in api.held.items()} == before
    del api.held["secrets/engine-token"], api.held["configmaps/callers"]
    assert issue(program, api).returncode == 0
    assert value(api, "client-token") == base64.b64decode(before["secrets/client-token"]["token"]).decode()
    known = parse_known(api.held["configmaps/callers"]["data"]["tokens"])
    assert role_of(known, value(api, "engine-token")) is Role.ENGINE


def test_a_token_that_was_deleted_is_made_anew_and_the_old_one_is_taken_no_more(program: Path, api: StandinApi) -> None:
    issue(program, api)
    old = value(api, "client-token")
    del api.held["secrets/client-token"]
    issue(program, api)
    known = parse_known(api.held["configmaps/callers"]["data"]["tokens"])
    assert role_of(known, old) is None
    assert role_of(known, value(api, "client-token")) is Role.CLIENT


def test_no_secret_is_printed_and_none_but_its_own_are_asked_for(program: Path, api: StandinApi) -> None:
    done = issue(program, api)
    shown = done.stdout + done.stderr
    assert "troupe-token-" not in shown
    assert value(api, "postgres-password", "password") not in shown
    assert {key for _, key in api.asked} == {"secrets", "configmaps"} | {f"secrets/{name}" for name in SECRETS}


def test_a_right_that_is_missing_ends_it_with_what_was_refused(program: Path, api: StandinApi) -> None:
    api.forbidden = {"POST"}
    done = issue(program, api)
    assert done.returncode != 0
    assert "POST secrets: 403" in done.stderr


def waiting(**environ: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-u", str(WAIT)], env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True
    )


def test_the_orchestrator_waits_until_everything_that_it_will_call_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sandbox, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        process = waiting(
            TROUPE_SANDBOX=f"127.0.0.1:{sandbox.getsockname()[1]}",
            TROUPE_EXECUTOR="k8s:///executor",
            TROUPE_STORE_URL=f"postgresql://troupe@127.0.0.1:{port}/troupe",
        )
        assert process.stdout is not None
        try:
            said = [process.stdout.readline() for _ in range(2)]
            assert "127.0.0.1" in said[0]
            assert said[1] == f"waiting for 127.0.0.1:{port}\n"
            assert process.poll() is None
            with socket.create_server(("127.0.0.1", port)):
                assert process.wait(timeout=30) == 0
        finally:
            process.kill()
            process.wait()


def test_nothing_is_waited_for_where_nothing_is_named() -> None:
    assert waiting(TROUPE_STORE_URL="sqlite:///store.db").wait(timeout=30) == 0

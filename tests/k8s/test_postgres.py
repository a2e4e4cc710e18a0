"""PostgreSQL as its component starts it, with the files, settings and certificates that its pod would have."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from guarded.authority import Authority
from rendered.overlays import K8S, Manifests, Workload, render
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from storage.postgres import binaries, demoted, unprivileged
from troupe_orchestrator.store.engine import connect

IMAGE: Final = K8S / "components" / "postgres" / "image"
PASSWORD: Final = "a-password-of-a-test"
SECONDS: Final = 60.0


class Pods:
    """The pods of PostgreSQL and orchestrator, as processes here: each volume is a folder, wherever it is mounted."""

    def __init__(self, folder: Path, programs: Path, certificates: Path) -> None:
        self.folder = folder
        self._programs = programs
        self.authority = Authority.new(certificates)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        for volume in ("password", "database", "sockets", "tls", "postgres-password"):
            (folder / volume).mkdir()
        (folder / "password" / "password").write_text(PASSWORD)
        for program in ("start", "reload"):
            own = (IMAGE / program).read_text().replace("$(echo /usr/lib/postgresql/*/bin)", str(programs))
            own = own.replace("/run/postgresql", str(folder / "sockets")).replace("sleep 3600", "sleep 0.1")
            (folder / program).write_text(own)
        for path in (folder, *folder.rglob("*")):
            self._give(path)

    def issue(self, manifests: Manifests, authority: Authority) -> None:
        """What the certificate's Secret would hold, with its owner and mode."""
        (volume,) = [each for each in one(manifests, "postgres").pod["volumes"] if each["name"] == "tls"]
        hosts = manifests.one("Certificate", "postgres")["spec"]["dnsNames"]
        pair = authority.sign("postgres", hosts=hosts)
        for name, source in {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority.certificate}.items():
            new = self.folder / "tls" / f"{name}.new"
            shutil.copyfile(source, new)
            # Root's files for the pod's group; where we are not root our own, which PostgreSQL wants for itself alone.
            if user := unprivileged():
                os.chown(new, 0, user[1])
            new.chmod(volume["secret"]["defaultMode"] if user else 0o400)
            new.replace(self.folder / "tls" / name)

    @contextlib.contextmanager
    def serving(self, manifests: Manifests) -> Iterator[None]:
        """The database of these manifests, until it is stopped as its image says."""
        workload = one(manifests, "postgres")
        environment = self._environment(manifests, workload)
        (container,) = workload.pod["containers"]
        ready = [self._here(workload, each) for each in container["readinessProbe"]["exec"]["command"]]
        process = subprocess.Popen(
            demoted(["sh", str(self.folder / "start")], "--pdeathsig", "INT"), env=environment, cwd=self.folder
        )
        try:
            give_up = time.monotonic() + SECONDS
            while subprocess.run(ready, env=environment, check=False).returncode != 0:
                assert process.poll() is None
                assert time.monotonic() < give_up
                time.sleep(0.1)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(SECONDS)

    @contextlib.contextmanager
    def reloading(self, manifests: Manifests) -> Iterator[None]:
        """The sidecar, in a hurry."""
        workload = one(manifests, "postgres")
        (sidecar,) = workload.pod["initContainers"]
        assert sidecar["command"] == ["reload"]
        environment = self._environment(manifests, workload)
        process = subprocess.Popen(demoted(["sh", str(self.folder / "reload")], "--pdeathsig", "TERM"), env=environment)
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(SECONDS) == 0

    def caller(self, manifests: Manifests) -> dict[str, str]:
        """The orchestrator's environment, once its init container has made the password file."""
        workload = one(manifests, "orchestrator")
        (makes,) = [each for each in workload.pod["initContainers"] if each["name"] == "database-password"]
        command = makes["command"][-1].replace("/run/troupe/secret", str(self.folder / "password"))
        command = command.replace("/run/troupe/postgres", str(self.folder / "postgres-password"))
        subprocess.run([*makes["command"][:-1], command], check=True)
        return self._environment(manifests, workload) | {"PGHOSTADDR": "127.0.0.1"}

    def _environment(self, manifests: Manifests, workload: Workload) -> dict[str, str]:
        given = manifests.environment(workload, workload.pod["containers"][0])
        path = os.pathsep.join((str(self._programs), os.environ["PATH"]))
        here = {name: self._here(workload, value) for name, value in given.items()}
        return {"PATH": path, "PGPORT": str(self._port)} | here

    def _here(self, workload: Workload, said: str) -> str:
        for mount in workload.pod["containers"][0]["volumeMounts"]:
            if mount["name"] not in ("home", "tmp", "shm", "store"):
                said = said.replace(mount["mountPath"], str(self.folder / mount["name"]))
        return said

    def _give(self, path: Path) -> None:
        if user := unprivileged():
            shutil.chown(path, *user)


def one(manifests: Manifests, name: str) -> Workload:
    (found,) = [each for each in manifests.workloads if each.name == name]
    return found


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    found = binaries()
    if found is None:
        pytest.skip("PostgreSQL is not installed: `make postgres` installs it from the distribution's packages")
    # A socket's path has at most 107 characters: not below pytest's own folders.
    folder = Path(tempfile.mkdtemp(prefix="troupe-pg-"))
    yield Pods(folder, found, tmp_path)
    shutil.rmtree(folder)


async def encrypted(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the store, connected as the orchestrator connects, is connected with TLS."""
    with monkeypatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        engine = connect(environment["TROUPE_STORE_URL"], 15, 15)
        try:
            async with engine.connect() as connection:
                asked = text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
                return bool(await connection.scalar(asked))
        finally:
            await engine.dispose()


async def trusted(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the certificate is of the authority that the orchestrator knows."""
    try:
        return await encrypted(environment, monkeypatch)
    except OperationalError as error:
        if "SSL error" in str(error):
            return False
        raise


async def test_a_database_that_was_made_without_tls_is_reached_only_with_it_once_it_has_it(
    pods: Pods, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, with_tls = render("local"), render("local+tls-cert-manager")
    with pods.serving(plain):
        assert not await encrypted(pods.caller(plain), monkeypatch)
    pods.issue(with_tls, pods.authority)
    with pods.serving(with_tls):
        caller = pods.caller(with_tls)
        assert await encrypted(caller, monkeypatch)
        with pytest.raises(OperationalError, match=r"no pg_hba\.conf entry .* no encryption"):
            await encrypted({**caller, "PGSSLMODE": "disable"}, monkeypatch)
        elsewhere = caller["TROUPE_STORE_URL"].replace("@postgres", "@elsewhere")
        with pytest.raises(OperationalError, match='does not match host name "elsewhere"'):
            await encrypted({**caller, "TROUPE_STORE_URL": elsewhere}, monkeypatch)
        (tmp_path / "strangers").mkdir()
        stranger = Authority.new(tmp_path / "strangers")
        assert not await trusted({**caller, "PGSSLROOTCERT": str(stranger.certificate)}, monkeypatch)


async def test_a_renewed_certificate_is_used_without_a_restart(
    pods: Pods, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = render("local+tls-cert-manager")
    pods.issue(manifests, pods.authority)
    (tmp_path / "next").mkdir()
    following = Authority.new(tmp_path / "next")
    with pods.serving(manifests), pods.reloading(manifests):
        caller = pods.caller(manifests)
        assert await encrypted(caller, monkeypatch)
        pods.issue(manifests, following)
        give_up = time.monotonic() + SECONDS
        while not await trusted(caller, monkeypatch):
            assert time.monotonic() < give_up
            time.sleep(0.1)

"""Credentials whose files change under a running server and a running caller."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from guarded.authority import Authority, Pair
from guarded.servers import certificates, idle, sandbox
from troupe_contracts.access import Role
from troupe_contracts.channel import connect
from troupe_contracts.followed import Followed, look_at_all
from troupe_contracts.guard import ROLE_NAME
from troupe_contracts.identity import Identity, read_identity
from troupe_contracts.server_credentials import Tls
from troupe_contracts.tokens import CredentialError, line_for, new_token, read_known

GET = "/troupe.v1.Learner/GetLearner"
ISOLATION = "/troupe.v1.Sandbox/GetIsolation"
LOOKED_SECONDS = 60.0


def linked(folder: Path, name: str) -> tuple[Path, Callable[[str], None]]:
    """A file as a Secret is mounted, behind a link to a folder; and what swaps the link for one to other content."""
    versions = iter(range(100))

    def put(text: str) -> None:
        version = folder / f"..{next(versions)}"
        version.mkdir()
        (version / name).write_text(text)
        (folder / "..new").symlink_to(version.name)
        (folder / "..new").replace(folder / "..data")

    put("nothing")
    (folder / name).symlink_to(f"..data/{name}")
    return folder / name, put


def caller(authority: Authority, role: str) -> Identity:
    """Trusts the authority as it is now, whatever its file will hold."""
    mine = authority.sign(role, f"{ROLE_NAME}{role}")
    trusted = mine.certificate.with_suffix(".trusted")
    trusted.write_bytes(authority.certificate.read_bytes())
    return read_identity(authority=trusted, certificate=mine.certificate, key=mine.key)


async def called(channel: grpc.aio.Channel, method: str = GET) -> grpc.StatusCode:
    try:
        await channel.unary_unary(method, request_serializer=bytes)(b"", timeout=10)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_a_token_is_rotated_without_a_restart_of_either_side(tmp_path: Path) -> None:
    old, new = new_token(), new_token()
    (tmp_path / "server").mkdir()
    (tmp_path / "caller").mkdir()
    known, now_known = linked(tmp_path / "server", "tokens")
    shown, now_shown = linked(tmp_path / "caller", "token")
    now_known(line_for(Role.OBSERVER, old))
    now_shown(old)
    async with (
        idle("learner", {"tokens": known}) as learner,
        connect(learner.target, read_identity(shown)) as channel,
        connect(learner.target, Identity(old)) as behind,
    ):
        assert await called(channel) is grpc.StatusCode.OK
        now_known(f"{line_for(Role.OBSERVER, old)}\n{line_for(Role.OBSERVER, new)}")
        look_at_all()
        now_shown(new)
        look_at_all()
        assert [await called(each) for each in (channel, behind)] == [grpc.StatusCode.OK] * 2
        now_known(line_for(Role.OBSERVER, new))
        look_at_all()
        assert await called(channel) is grpc.StatusCode.OK
        assert await called(behind) is grpc.StatusCode.UNAUTHENTICATED


def test_a_changed_file_that_cannot_be_used_leaves_what_was_until_it_can(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(line_for(Role.OBSERVER, new_token()))
    followed = Followed([file], lambda: read_known(file))
    before = followed.value
    file.write_text("observer sha256:")
    look_at_all()
    assert followed.value is before
    file.unlink()
    look_at_all()
    assert followed.value is before
    file.write_text(line_for(Role.CLIENT, new_token()))
    look_at_all()
    assert [known.role for known in followed.value] == [Role.CLIENT]


def replace(own: Pair, by: Pair) -> None:
    own.certificate.write_bytes(by.certificate.read_bytes())
    own.key.write_bytes(by.key.read_bytes())
    look_at_all()


async def test_a_servers_certificate_and_the_authority_of_its_callers_are_replaced_while_it_serves(
    tmp_path: Path,
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old, new = Authority.new(tmp_path / "old"), Authority.new(tmp_path / "new")
    settings = certificates(old, "rotated")
    pair = Pair(Path(str(settings["tls_cert"])), Path(str(settings["tls_key"])))

    async with idle("learner", settings) as learner:

        async def outcome(identity: Identity) -> grpc.StatusCode:
            async with connect(learner.target, identity) as channel:
                return await called(channel)

        before, after = caller(old, "observer"), caller(new, "observer")
        outcomes = [await outcome(each) for each in (before, after)]
        assert outcomes == [grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE]
        replace(pair, new.sign("rotated"))
        old.certificate.write_bytes(new.certificate.read_bytes())
        look_at_all()
        outcomes = [await outcome(each) for each in (before, after)]
        assert outcomes == [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK]


async def becomes(expected: object, ask: Callable[[], Awaitable[object]]) -> None:
    """Waits until a process of its own has looked at its files."""
    deadline = time.monotonic() + LOOKED_SECONDS
    while (answer := await ask()) != expected:
        assert time.monotonic() < deadline, f"{answer} does not become {expected}"
        await asyncio.sleep(0.1)


async def test_the_sandbox_follows_its_tokens(tmp_path: Path) -> None:
    old, new = new_token(), new_token()
    known, now_known = linked(tmp_path, "tokens")
    now_known(line_for(Role.ORCHESTRATOR, old))
    with sandbox(tmp_path / "sandbox", "--tokens", known) as service:
        async with (
            connect(service.target, Identity(old)) as before,
            connect(service.target, Identity(new)) as after,
        ):

            async def both() -> list[grpc.StatusCode]:
                return [await called(channel, ISOLATION) for channel in (before, after)]

            assert await both() == [grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED]
            now_known(line_for(Role.ORCHESTRATOR, new))
            await becomes([grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.OK], both)


async def test_the_sandbox_follows_its_certificate_and_its_callers_authority_and_uses_no_half_of_a_pair(
    tmp_path: Path,
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old, new = Authority.new(tmp_path / "old"), Authority.new(tmp_path / "new")
    own, replacement = old.sign("rotated"), new.sign("rotated")
    options = ("--tls-cert", own.certificate, "--tls-key", own.key, "--tls-ca", old.certificate)

    before, after = caller(old, "orchestrator"), caller(new, "orchestrator")
    with sandbox(tmp_path / "sandbox", *options) as service:

        async def outcome(identity: Identity) -> grpc.StatusCode:
            async with connect(service.target, identity) as channel:
                return await called(channel, ISOLATION)

        async def both() -> list[grpc.StatusCode]:
            return [await outcome(each) for each in (before, after)]

        async def refused() -> bool:
            return "changed credentials cannot be used" in (tmp_path / "sandbox" / "log").read_text()

        assert await both() == [grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE]
        async with connect(service.target, before) as open_before:
            assert await called(open_before, ISOLATION) is grpc.StatusCode.OK
            own.certificate.write_bytes(replacement.certificate.read_bytes())
            await becomes(True, refused)
            assert await both() == [grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE]
            own.key.write_bytes(replacement.key.read_bytes())
            old.certificate.write_bytes(new.certificate.read_bytes())
            await becomes([grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK], both)
            assert await called(open_before, ISOLATION) is grpc.StatusCode.OK
        host, port = service.metrics.split(":")
        shown_to_probes = await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))
        assert shown_to_probes.strip() in replacement.certificate.read_text()


async def test_a_callers_certificate_and_authority_are_replaced_under_its_channel(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old, new = Authority.new(tmp_path / "old"), Authority.new(tmp_path / "new")
    settings = certificates(old, "served")
    served = Pair(Path(str(settings["tls_cert"])), Path(str(settings["tls_key"])))
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(old.certificate.read_bytes())
    # The old one may not call what the new one may, so that the answer says which was shown.
    mine, other = old.sign("mine", f"{ROLE_NAME}client"), new.sign("mine", f"{ROLE_NAME}observer")
    identity = read_identity(authority=trusted, certificate=mine.certificate, key=mine.key)
    async with idle("learner", settings) as learner, connect(learner.target, identity) as channel:
        get = channel.unary_unary(GET, request_serializer=bytes)

        async def outcome() -> grpc.StatusCode:
            try:
                await get(b"", timeout=10)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        assert await outcome() is grpc.StatusCode.PERMISSION_DENIED
        mine.certificate.write_bytes(other.certificate.read_bytes())
        look_at_all()  # between the two halves
        assert await outcome() is grpc.StatusCode.PERMISSION_DENIED
        mine.key.write_bytes(other.key.read_bytes())
        trusted.write_bytes(new.certificate.read_bytes())
        old.certificate.write_bytes(new.certificate.read_bytes())
        replace(served, new.sign("served"))
        assert await outcome() is grpc.StatusCode.OK


async def test_what_was_called_before_a_rotation_goes_on(tmp_path: Path) -> None:
    authority = Authority.new(tmp_path)
    mine = authority.sign("mine", f"{ROLE_NAME}observer")
    identity = read_identity(authority=authority.certificate, certificate=mine.certificate, key=mine.key)
    settings = certificates(authority, "served")
    async with idle("learner", settings) as learner, connect(learner.target, identity) as channel:
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        replace(mine, authority.sign("again", f"{ROLE_NAME}observer"))
        assert await called(channel) is grpc.StatusCode.OK
        assert not watching.done()


def test_a_pair_of_which_one_half_is_new_is_not_used(authority: Authority) -> None:
    own, other = authority.sign("half"), authority.sign("other-half")
    context = Tls(own.certificate, own.key, None).for_http()
    own.certificate.write_bytes(other.certificate.read_bytes())
    look_at_all()
    assert shown(context) != ssl.PEM_cert_to_DER_cert(other.certificate.read_text())
    own.key.write_bytes(other.key.read_bytes())
    look_at_all()
    assert shown(context) == ssl.PEM_cert_to_DER_cert(other.certificate.read_text())
    own.key.write_bytes(authority.sign("third").key.read_bytes())
    with pytest.raises(CredentialError, match="half"):
        Tls(own.certificate, own.key, None).for_grpc()


def shown(server: ssl.SSLContext) -> bytes | None:
    """The certificate that a server's context shows to one who asks without a name; in memory, without a socket."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (asking, answering, asking):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return asking.getpeercert(binary_form=True)

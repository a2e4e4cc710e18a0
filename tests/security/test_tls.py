"""Encrypted connections: whose certificate is taken, on either side, and tokens over them."""

from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from guarded.authority import Authority
from guarded.calls import Rpc, outcome
from guarded.servers import Address, certificates, idle, sandbox
from troupe_contracts.channel import connect
from troupe_contracts.guard import ROLE_NAME
from troupe_contracts.identity import NOBODY, Identity, read_identity

SANDBOX_REPORT = "troupe.v1.Sandbox/GetIsolation"


async def test_a_certificate_of_another_authority_or_none_does_not_connect(
    authority: Authority,
    with_tokens: tuple[Path, dict[str, Identity]],
    sandbox_with_certificates: Address,
    tmp_path: Path,
) -> None:
    foreign = Authority.new(tmp_path).sign("orchestrator", f"{ROLE_NAME}orchestrator")
    strangers = [
        read_identity(authority=authority.certificate, certificate=foreign.certificate, key=foreign.key),
        replace(read_identity(authority=authority.certificate), token=with_tokens[1]["orchestrator"].token),
        NOBODY,
    ]
    async with idle("learner", certificates(authority, "learner")) as learner:
        for address, rpc in ((learner, "troupe.v1.Learner/GetLearner"), (sandbox_with_certificates, SANDBOX_REPORT)):
            for identity in strangers:
                async with connect(address.target, identity) as channel:
                    get = channel.unary_unary(f"/{rpc}", request_serializer=bytes)
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await get(b"", timeout=10)
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert learner.reached == []


async def test_tokens_travel_over_tls_without_a_certificate_of_the_callers(
    authority: Authority, with_tokens: tuple[Path, dict[str, Identity]], tmp_path: Path
) -> None:
    known, holders = with_tokens
    pair = authority.sign("with-tokens")
    without = read_identity(authority=authority.certificate)
    caller = replace(without, token=holders["observer"].token)
    options = ("--tokens", known, "--tls-cert", pair.certificate, "--tls-key", pair.key)
    settings = {"tokens": known, "tls_cert": pair.certificate, "tls_key": pair.key}
    async with idle("learner", settings | {"tls_ca": authority.certificate}) as learner:
        with sandbox(tmp_path / "sandbox", *options, "--tls-ca", authority.certificate) as served:
            for address, rpc in ((learner, "troupe.v1.Learner/GetLearner"), (served, SANDBOX_REPORT)):
                async with connect(address.target, caller) as channel:
                    await channel.unary_unary(f"/{rpc}", request_serializer=bytes)(b"")
                async with connect(address.target, without) as channel:
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await channel.unary_unary(f"/{rpc}", request_serializer=bytes)(b"")
                    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_server_whose_certificate_names_another_host_is_not_trusted_unless_that_name_is_asked_for(
    authority: Authority, with_certificates: dict[str, Identity]
) -> None:
    observer = with_certificates["observer"]
    async with idle("learner", certificates(authority, "learner")) as learner:
        for name, code in (("elsewhere", grpc.StatusCode.UNAVAILABLE), ("localhost", grpc.StatusCode.OK)):
            async with connect(learner.target, replace(observer, server_name=name)) as channel:
                rpc = Rpc("troupe.v1.Learner", "GetLearner", False, False)
                assert await outcome(channel, rpc) is code

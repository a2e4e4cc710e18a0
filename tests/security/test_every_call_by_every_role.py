"""Each RPC of each of the five services, tried by each role, by nobody and by a stranger: with tokens, and with mTLS."""

from pathlib import Path

import grpc
import pytest
from guarded.authority import Authority
from guarded.calls import ROLES, SERVED, Rpc, outcome, rpcs_at
from guarded.servers import Address, certificates, idle
from troupe_contracts.access import Role, callers
from troupe_contracts.channel import connect
from troupe_contracts.identity import Identity

PYTHON_PROCESSES = [process for process in SERVED if process != "sandbox"]
REFUSALS = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


def expected(rpc: Rpc, holder: str) -> grpc.StatusCode:
    """What the table says."""
    allowed = callers(rpc.name)
    if Role.ANONYMOUS in allowed:
        return grpc.StatusCode.OK
    if holder not in [role.value for role in ROLES]:
        return grpc.StatusCode.UNAUTHENTICATED
    return grpc.StatusCode.OK if Role(holder) in allowed else grpc.StatusCode.PERMISSION_DENIED


async def tried(process: str, address: Address, holders: dict[str, Identity]) -> dict[tuple[str, str], object]:
    """The status of each RPC for each holder."""
    found: dict[tuple[str, str], object] = {}
    for holder, identity in holders.items():
        async with connect(address.target, identity) as channel:
            for rpc in rpcs_at(process):
                found[holder, rpc.name] = await outcome(channel, rpc)
    return found


def wanted(process: str, holders: dict[str, Identity]) -> dict[tuple[str, str], object]:
    return {(holder, rpc.name): expected(rpc, holder) for holder in holders for rpc in rpcs_at(process)}


def admitted(process: str, holders: dict[str, Identity]) -> list[str]:
    """The calls that reach a servicer of ours."""
    return [
        rpc
        for (_, rpc), code in wanted(process, holders).items()
        if code is grpc.StatusCode.OK and rpc.startswith("troupe.")
    ]


def admitted_as_ok(found: dict[tuple[str, str], object]) -> dict[tuple[str, str], object]:
    """An empty request may be wrong, a method of grpc's own not there: both were admitted."""
    return {call: code if code in REFUSALS else grpc.StatusCode.OK for call, code in found.items()}


@pytest.mark.parametrize("process", PYTHON_PROCESSES)
async def test_with_tokens_each_role_may_call_what_the_table_says_and_nothing_else(
    process: str, with_tokens: tuple[Path, dict[str, Identity]]
) -> None:
    known, holders = with_tokens
    async with idle(process, {"tokens": known}) as address:
        found = await tried(process, address, holders)
    assert admitted_as_ok(found) == wanted(process, holders)
    assert sorted(address.reached) == sorted(admitted(process, holders))


@pytest.mark.parametrize("process", PYTHON_PROCESSES)
async def test_with_certificates_each_role_may_call_what_the_table_says_and_nothing_else(
    process: str, authority: Authority, with_certificates: dict[str, Identity]
) -> None:
    async with idle(process, certificates(authority, process)) as address:
        found = await tried(process, address, with_certificates)
    assert admitted_as_ok(found) == wanted(process, with_certificates)
    assert sorted(address.reached) == sorted(admitted(process, with_certificates))


async def test_the_sandbox_with_tokens_keeps_the_same_table(
    sandbox_with_tokens: Address, with_tokens: tuple[Path, dict[str, Identity]]
) -> None:
    found = await tried("sandbox", sandbox_with_tokens, with_tokens[1])
    assert admitted_as_ok(found) == wanted("sandbox", with_tokens[1])


async def test_the_sandbox_with_certificates_keeps_the_same_table(
    sandbox_with_certificates: Address, with_certificates: dict[str, Identity]
) -> None:
    found = await tried("sandbox", sandbox_with_certificates, with_certificates)
    assert admitted_as_ok(found) == wanted("sandbox", with_certificates)

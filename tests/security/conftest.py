"""Servers of all five services that ask for credentials, and callers with each role."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "harness"))

from guarded.authority import Authority
from guarded.calls import ROLES
from guarded.servers import Address, sandbox
from troupe_contracts.guard import ROLE_NAME
from troupe_contracts.identity import NOBODY, Identity, read_identity
from troupe_contracts.tokens import line_for, new_token


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority of this test run's own."""
    return Authority.new(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def with_tokens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Identity]]:
    """A file of known tokens, and who holds which; the stranger's is not among them."""
    tokens = {role: new_token() for role in ROLES}
    known = tmp_path_factory.mktemp("tokens") / "tokens"
    known.write_text("\n".join(line_for(role, token) for role, token in tokens.items()))
    holders = {role.value: Identity(token) for role, token in tokens.items()}
    return known, holders | {"nobody": NOBODY, "stranger": Identity(new_token())}


@pytest.fixture(scope="session")
def with_certificates(authority: Authority) -> dict[str, Identity]:
    """Who holds which certificate; the stranger's is the authority's, and names no role."""
    named = {role.value: [f"{ROLE_NAME}{role}"] for role in ROLES}
    named |= {"stranger": [], "double": [f"{ROLE_NAME}client", f"{ROLE_NAME}orchestrator"]}
    holders = {}
    for name, uris in named.items():
        pair = authority.sign(name, *uris)
        holders[name] = read_identity(authority=authority.certificate, certificate=pair.certificate, key=pair.key)
    return holders


@pytest.fixture(scope="session")
def sandbox_with_tokens(
    with_tokens: tuple[Path, dict[str, Identity]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Address]:
    with sandbox(tmp_path_factory.mktemp("sandbox"), "--tokens", with_tokens[0]) as address:
        yield address


@pytest.fixture(scope="session")
def sandbox_with_certificates(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    pair = authority.sign("sandbox")
    options = ("--tls-cert", pair.certificate, "--tls-key", pair.key, "--tls-ca", authority.certificate)
    with sandbox(tmp_path_factory.mktemp("sandbox"), *options) as address:
        yield address

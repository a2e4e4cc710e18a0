"""What is shown to a deployment that is reached through its API server."""

from __future__ import annotations

import base64

import pytest
from standin_api.server import StandInApi
from troupe_client.kubernetes.place import assume_role, identity_for
from troupe_contracts.followed import Followed
from troupe_contracts.identity import Certificates, Identity, assume, own
from troupe_kubernetes.api import Api

SECRETS = "/api/v1/namespaces/troupe/secrets"


def keep(standin: StandInApi, role: str, token: str) -> None:
    standin.put(
        SECRETS, {"metadata": {"name": f"{role}-token"}, "data": {"token": base64.b64encode(token.encode()).decode()}}
    )


async def test_the_deployments_own_token_is_shown_where_none_was_given(standin: StandInApi, api: Api) -> None:
    keep(standin, "client", "secret")
    await assume_role(api, "client")
    assert own().token == "secret"


async def test_a_token_that_was_given_is_kept(standin: StandInApi, api: Api) -> None:
    keep(standin, "client", "secret")
    assume(Identity(token="mine"))
    await assume_role(api, "client")
    assert own().token == "mine"


async def test_who_may_not_read_the_token_shows_none(standin: StandInApi, api: Api) -> None:
    await assume_role(api, "client")
    assert own().token is None


@pytest.mark.parametrize(("given", "expected"), [(None, "orchestrator"), ("troupe", "troupe")])
def test_a_certificate_is_to_have_the_name_of_the_service(
    given: str | None, expected: str, standin: StandInApi
) -> None:
    certificates = Followed([], lambda: Certificates(b"pem", None, None))
    assume(Identity(server_name=given, certificates=certificates))
    assert identity_for("orchestrator").server_name == expected


def test_without_tls_no_name_is_looked_for(standin: StandInApi) -> None:
    assert identity_for("orchestrator").server_name is None

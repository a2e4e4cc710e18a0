"""The HTTP port of both languages: metrics for who may look, a probe for everyone."""

import asyncio
import contextlib
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from guarded.authority import Authority
from guarded.servers import Address, certificates, idle
from troupe_contracts.guard import ROLE_NAME
from troupe_contracts.identity import Identity
from troupe_contracts.server import start
from troupe_contracts.settings import ServiceSettings

METRIC = {"learner": "troupe_rpc_calls_total", "sandbox": "troupe_sandbox_slots"}


def read(url: str, token: str | None, context: ssl.SSLContext | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={} if token is None else {"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with contextlib.closing(error):
            return error.code, error.read().decode()


async def test_with_tokens_only_an_observer_reads_metrics_and_everyone_may_probe(
    with_tokens: tuple[Path, dict[str, Identity]], sandbox_with_tokens: Address
) -> None:
    known, holders = with_tokens
    async with idle("learner", {"tokens": known}) as learner:
        for process, address in (("learner", learner), ("sandbox", sandbox_with_tokens)):
            for holder, identity in holders.items():
                status, text = await asyncio.to_thread(read, f"http://{address.metrics}/metrics", identity.token)
                wanted = {"observer": 200, "nobody": 401, "stranger": 401}.get(holder, 403)
                assert status == wanted, (process, holder, text)
                assert (METRIC[process] in text) == (status == 200)
                probed = await asyncio.to_thread(read, f"http://{address.metrics}/healthz", identity.token)
                assert probed == (200, "ok\n")
            assert (await asyncio.to_thread(read, f"http://{address.metrics}/other", None))[0] == 404


async def test_with_certificates_the_port_is_https_and_a_probe_needs_none(
    authority: Authority, sandbox_with_certificates: Address
) -> None:
    observer = authority.sign("http-observer", f"{ROLE_NAME}observer")
    client = authority.sign("http-client", f"{ROLE_NAME}client")
    async with idle("learner", certificates(authority, "learner")) as learner:
        for process, address in (("learner", learner), ("sandbox", sandbox_with_certificates)):
            for pair, wanted in ((observer, 200), (client, 403), (None, 401)):
                context = ssl.create_default_context(cafile=str(authority.certificate))
                if pair is not None:
                    context.load_cert_chain(pair.certificate, pair.key)
                status, text = await asyncio.to_thread(read, f"https://{address.metrics}/metrics", None, context)
                assert status == wanted, (process, text)
                assert (METRIC[process] in text) == (status == 200)
                assert await asyncio.to_thread(read, f"https://{address.metrics}/healthz", None, context) == (
                    200,
                    "ok\n",
                )


async def test_a_service_out_of_rotation_says_so_to_probes() -> None:
    running = await start(ServiceSettings(), lambda _server: None, ())
    assert (await asyncio.to_thread(read, f"http://{running.metrics}/healthz", None))[0] == 200
    await running.health.set_serving(False)
    assert (await asyncio.to_thread(read, f"http://{running.metrics}/healthz", None))[0] == 503
    await running.drain(0)


async def test_a_client_that_dawdles_keeps_nobody_waiting(authority: Authority) -> None:
    async with idle("learner", certificates(authority, "learner")) as learner:
        host, port = learner.metrics.split(":")
        with socket.create_connection((host, int(port))):
            context = ssl.create_default_context(cafile=str(authority.certificate))
            assert (await asyncio.to_thread(read, f"https://{learner.metrics}/healthz", None, context))[0] == 200

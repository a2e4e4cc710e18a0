"""What services write, read back from real processes: no credential of any kind, whoever logs it and however."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from guarded.calls import Rpc, outcome
from guarded.servers import sandbox
from troupe_contracts.access import Role
from troupe_contracts.channel import connect
from troupe_contracts.identity import Identity
from troupe_contracts.tokens import line_for, new_token

TOKEN = new_token()
HUB = "hub-credential-4711-abcdef"
PASSWORD = "correct-horse"
KEY = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----\n"
SECRETS = (TOKEN, HUB, PASSWORD, "MIGHAgEAMBMGByqGSM49", "hf_0123456789abcdefghij", "another-bearer-credential")

# Logs secrets in every way that came to mind, fails a call with one, and then ends with one in an uncaught error.
CARELESS = """
import asyncio, logging, os, sys
from pathlib import Path
from troupe.v1 import policy_pb2_grpc
from troupe_contracts.log import get_logger
from troupe_contracts.server import serve
from troupe_contracts.settings import ServiceSettings

class Policy(policy_pb2_grpc.PolicyServicer):
    async def GetPolicy(self, request, context):
        shown = dict(context.invocation_metadata())["authorization"]
        url = f"postgresql+psycopg://troupe:{os.environ['PASSWORD']}@db.example:5432/runs"
        key = Path(os.environ["KEY_PATH"]).read_text()
        log = get_logger(url=url)
        log.info("called", metadata=dict(context.invocation_metadata()), authorization=shown, key=key, note="kept")
        log.warning(f"text with {shown} and {os.environ['HF_TOKEN']}", tokens=512, token=7)
        log.info("nested", inside={"list": [shown, {"password": "x" * 9, "deep": [key]}]}, thing=ValueError(url))
        logging.getLogger("a library").warning("GET %s with hf_0123456789abcdefghij and %s", url, shown)
        raise RuntimeError(f"cannot reach {url} with {shown}")

class Settings(ServiceSettings):
    pass

def register(server):
    policy_pb2_grpc.add_PolicyServicer_to_server(Policy(), server)

asyncio.run(serve("careless", Settings.load(), register, ["troupe.v1.Policy"]))
raise SystemError(f"over and out: {os.environ['HF_TOKEN']} {Path(os.environ['TROUPE_TOKEN_FILE']).read_text()}")
"""


@pytest.mark.parametrize("style", ["json", "console"])
async def test_no_secret_that_a_service_logs_is_written(tmp_path: Path, style: str) -> None:
    ready, token_file, key = tmp_path / "ready.json", tmp_path / "token", tmp_path / "key"
    token_file.write_text(TOKEN)
    key.write_text(KEY)
    environment = {
        "PATH": os.environ["PATH"],
        "HF_TOKEN": HUB,
        "PASSWORD": PASSWORD,
        "KEY_PATH": str(key),
        "TROUPE_READY_FILE": str(ready),
        "TROUPE_TOKEN_FILE": str(token_file),
        "TROUPE_LOG_LEVEL": "debug",
        "TROUPE_LOG_FORMAT": style,
        "TROUPE_DIE_WITH_PARENT": "true",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", CARELESS], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        async with asyncio.timeout(60):
            while not ready.exists():
                assert process.poll() is None, process.communicate()
                await asyncio.sleep(0.05)
        target = json.loads(ready.read_text())["target"]
        for token in (TOKEN, "another-bearer-credential"):
            async with connect(target, Identity(token)) as channel:
                await outcome(channel, Rpc("troupe.v1.Policy", "GetPolicy", False, False))
    finally:
        process.terminate()
        written, _ = await asyncio.to_thread(process.communicate)
    assert [secret for secret in SECRETS if secret in written] == []
    for kept in ("called", "kept", "512", "GET postgresql", "db.example:5432/runs", "cannot reach", "over and out"):
        assert kept in written, f"{kept!r} is missing from:\n{written}"


def test_a_setting_that_is_refused_is_shown_without_its_password(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "TROUPE_STOER_URL": "x", "TROUPE_LISTEN": f"http://me:{PASSWORD}@host"}
    ended = subprocess.run(
        [sys.executable, "-c", CARELESS], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert "TROUPE_LISTEN is" in ended.stderr
    assert PASSWORD not in ended.stderr


def test_a_store_that_cannot_be_reached_is_told_without_its_password(tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "TROUPE_STORE_URL": f"postgresql+psycopg://troupe:{PASSWORD}@127.0.0.1:1/runs",
        "TROUPE_DATA_DIR": str(tmp_path),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "troupe_orchestrator"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode != 0
    assert "127.0.0.1" in ended.stderr
    assert PASSWORD not in ended.stderr + ended.stdout


async def test_the_sandbox_writes_no_token_even_when_it_logs_everything(tmp_path: Path) -> None:
    known = tmp_path / "tokens"
    known.write_text(line_for(Role.OBSERVER, TOKEN))
    with sandbox(tmp_path / "sandbox", "--tokens", known, log="trace") as address:
        async with connect(address.target, Identity(TOKEN)) as channel:
            for method, streams in (("GetIsolation", False), ("RunTests", True)):
                await outcome(channel, Rpc("troupe.v1.Sandbox", method, False, streams))
        async with connect(address.target, Identity("another-bearer-credential")) as channel:
            await outcome(channel, Rpc("troupe.v1.Sandbox", "GetIsolation", False, False))
    written = (tmp_path / "sandbox" / "log").read_text()
    assert written.count("refused a call") == 2
    assert [secret for secret in SECRETS if secret in written] == []

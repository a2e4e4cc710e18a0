"""The sandbox keeps the rule that the settings of the other services keep: no door open to others without a word."""

import subprocess
import sys
from pathlib import Path

import pytest
from guarded.calls import Rpc, outcome
from guarded.servers import sandbox
from troupe_contracts.channel import connect

OUTSIDE = "0.0.0.0:0"


def refused(*options: object) -> str:
    """What the sandbox says when it does not start."""
    command = [sys.executable, "-m", "troupe_sandbox", "--listen", "127.0.0.1:0", *map(str, options)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1, ended
    return ended.stderr


@pytest.mark.parametrize("option", ["--listen", "--metrics"])
def test_an_address_that_others_reach_is_refused_without_credentials(option: str) -> None:
    said = refused(option, OUTSIDE)
    assert f"{option} {OUTSIDE} can be reached from other machines, and anyone could call: set --tokens" in said


def test_options_that_would_not_be_used_are_refused(tmp_path: Path) -> None:
    assert "--insecure changes nothing" in refused("--insecure")
    assert "come together" in refused("--tls-cert", tmp_path)
    assert "without --tls-cert" in refused("--tls-ca", tmp_path)


def test_a_file_of_credentials_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "tokens"
    assert f"{bad}: No such file" in refused("--tokens", bad)
    bad.write_text("orchestrator the-token-itself-instead-of-its-digest\n")
    said = refused("--tokens", bad)
    assert f"{bad}: line 1: needs sha256:" in said
    assert "the-token-itself" not in said


async def test_an_insecure_sandbox_serves_everyone_and_says_so(tmp_path: Path) -> None:
    with sandbox(tmp_path, "--listen", OUTSIDE, "--insecure") as address:
        port = address.target.rpartition(":")[2]
        async with connect(f"127.0.0.1:{port}") as channel:
            rpc = Rpc("troupe.v1.Sandbox", "GetIsolation", False, False)
            assert (await outcome(channel, rpc)).name == "OK"
    assert "--insecure lets everyone who can reach it call everything" in (tmp_path / "log").read_text()

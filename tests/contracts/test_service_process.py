"""A service as a process of its own: ready file, draining on a signal, end with its parent, bad settings."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from troupe.v1 import policy_pb2, policy_pb2_grpc
from troupe_contracts.channel import connect

SERVICE = """
import asyncio
from troupe.v1 import policy_pb2, policy_pb2_grpc
from troupe_contracts.server import serve
from troupe_contracts.settings import ServiceSettings

class Settings(ServiceSettings):
    load_seconds: float = 0

class Policy(policy_pb2_grpc.PolicyServicer):
    async def Generate(self, request, context):
        await asyncio.sleep(float(request.conversation_id))
        return policy_pb2.GenerateResponse(text="finished")

settings = Settings.load()

async def register(server):
    if settings.load_seconds:
        print("loading", flush=True)
        await asyncio.sleep(settings.load_seconds)
    policy_pb2_grpc.add_PolicyServicer_to_server(Policy(), server)

asyncio.run(serve("policy", settings, register, ["troupe.v1.Policy"], lambda: print("drained", flush=True)))
"""
PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(60)"


def start(ready: Path, *command: str, **settings: str) -> "subprocess.Popen[str]":
    environment = {"PATH": os.environ["PATH"], "TROUPE_READY_FILE": str(ready)}
    environment |= {f"TROUPE_{name.upper()}": value for name, value in settings.items()}
    arguments = command or (sys.executable, "-c", SERVICE)
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextlib.contextmanager
def ended(process: "subprocess.Popen[str]") -> Iterator[None]:
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(ready: Path, process: "subprocess.Popen[str]") -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while not ready.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return dict(json.loads(ready.read_text()))


async def generate(target: str, seconds: float) -> str:
    async with connect(target) as channel:
        stub: Any = policy_pb2_grpc.PolicyStub(channel)
        return str((await stub.Generate(policy_pb2.GenerateRequest(conversation_id=str(seconds)))).text)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_calls_in_flight_finish_and_then_ends_the_process(
    tmp_path: Path, signum: signal.Signals
) -> None:
    ready = tmp_path / "ready.json"
    process = start(ready, drain_seconds="5")
    with ended(process):
        told = await asyncio.to_thread(wait_for, ready, process)
        assert told["pid"] == process.pid
        assert told["service"] == "policy"
        call = asyncio.create_task(generate(told["target"], 0.6))
        await asyncio.sleep(0.3)
        process.send_signal(signum)
        assert await call == "finished"
        assert await asyncio.to_thread(process.wait, 3) == 0
        assert not ready.exists()
        assert process.stdout is not None
        assert process.stdout.read() == "drained\n"


async def test_calls_that_outlast_the_grace_are_cancelled(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    process = start(ready, drain_seconds="0.2")
    with ended(process):
        told = await asyncio.to_thread(wait_for, ready, process)
        call = asyncio.create_task(generate(told["target"], 30))
        await asyncio.sleep(0.3)
        process.terminate()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
        assert await asyncio.to_thread(process.wait, 3) == 0


async def test_a_second_signal_ends_the_grace(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    process = start(ready, drain_seconds="60")
    with ended(process):
        told = await asyncio.to_thread(wait_for, ready, process)
        call = asyncio.create_task(generate(told["target"], 30))
        await asyncio.sleep(0.3)
        process.terminate()
        await asyncio.sleep(0.3)
        assert process.poll() is None
        process.terminate()
        assert await asyncio.to_thread(process.wait, 3) == 0
        with pytest.raises(grpc.aio.AioRpcError):
            await call


def test_a_signal_while_a_service_still_loads_ends_it(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    process = start(ready, load_seconds="60", log_level="debug")
    with ended(process):
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.terminate()
        assert process.wait(10) == 0
        assert not ready.exists()


def test_a_service_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    parent = start(ready, sys.executable, "-c", PARENT, SERVICE, die_with_parent="1")
    with ended(parent):
        service = psutil.Process(wait_for(ready, parent)["pid"])
        parent.kill()
        service.wait(5)
        assert not ready.exists()


def test_an_unknown_variable_stops_the_start_with_status_2(tmp_path: Path) -> None:
    process = start(tmp_path / "ready.json", lisen="127.0.0.1:1")
    with ended(process):
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 2
        assert "TROUPE_LISEN is not known to this service: did you mean TROUPE_LISTEN?" in errors
        assert "Traceback" not in errors


@pytest.mark.parametrize("variable", ["listen", "metrics"])
def test_an_open_door_to_others_stops_the_start_and_says_what_closes_it(tmp_path: Path, variable: str) -> None:
    process = start(tmp_path / "ready.json", **{variable: "0.0.0.0:0"})
    with ended(process):
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 2
        assert "anyone could call: set TROUPE_TOKENS" in errors


async def test_an_insecure_service_says_so_at_each_start(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    process = start(ready, listen="0.0.0.0:0", insecure="true")
    with ended(process):
        told = await asyncio.to_thread(wait_for, ready, process)
        assert await generate(told["target"], 0) == "finished"
        process.terminate()
        _, errors = process.communicate(timeout=20)
        lines = [json.loads(line) for line in errors.splitlines()]
        said = [line["event"] for line in lines if line["level"] == "warning"]
        assert said == ["TROUPE_LISTEN=0.0.0.0:0: TROUPE_INSECURE lets everyone who can reach it call everything"]


@pytest.mark.parametrize("setting", ["tokens", "token_file", "tls_cert"])
def test_a_file_of_credentials_that_is_not_there_stops_the_start(tmp_path: Path, setting: str) -> None:
    missing = str(tmp_path / "missing")
    settings = {setting: missing} | ({"tls_key": missing} if setting == "tls_cert" else {})
    process = start(tmp_path / "ready.json", **settings)
    with ended(process):
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 1
        assert f"policy: {missing}: No such file or directory" in errors
        assert "Traceback" not in errors

"""What the service writes to standard error: lines like the other services', which say whose call they are about."""

import json
from pathlib import Path

import grpc
import pytest
from troupe.v1 import sandbox_pb2

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
IDS = (
    ("troupe-run-id", "a%20run"),
    ("troupe-step", "3"),
    ("troupe-task-id", "t/1"),
    ("troupe-execution-id", "e"),
    ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"),
)


def test_each_line_is_an_event_of_the_service_and_one_about_a_call_has_its_ids(launch, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"orchestrator sha256:{'0' * 64}\n")
    server = launch(tmp_path, "--tokens", str(tokens), "--log", "info", check=False)
    with pytest.raises(grpc.RpcError) as refused:
        server.stub.GetIsolation(sandbox_pb2.GetIsolationRequest(), metadata=IDS, timeout=30)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.process.stderr.read().splitlines()]
    assert all({"event", "level", "timestamp", "service"} <= line.keys() for line in lines)
    assert {line["service"] for line in lines} == {"sandbox"}
    by_event = {line["event"]: line for line in lines}
    about_it = by_event["refused a call"]
    ids = {"run": "a run", "step": "3", "task": "t/1", "execution": "e", "trace": TRACE}
    assert ids.items() <= about_it.items()
    assert about_it["level"] == "warn"
    assert not ids.keys() & by_event["serving"].keys()

"""Peers that connect and say nothing, and the files that the service may open."""

import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from sandboxed import stdin_tests
from troupe.v1 import sandbox_pb2_grpc

DEADLINE = 60.0
OPEN_FILES = 256
"""Of which a fourth may be connections."""
SUM = stdin_tests("print(sum(map(int, input().split())))", *[("1 2", "3")] * 20)


def passes(stub: sandbox_pb2_grpc.SandboxStub) -> bool:
    answers = list(stub.RunTests(SUM, timeout=DEADLINE, wait_for_ready=True))
    return answers[-1].outcome.passed


def test_peers_that_say_nothing_disturb_no_job_and_are_cut_off(tmp_path: Path, launch: Callable[..., object]) -> None:
    server = launch(tmp_path, open_files=OPEN_FILES)
    host, port = server.target.split(":")
    assert passes(server.stub)
    silent = [socket.create_connection((host, int(port))) for _ in range(OPEN_FILES // 3)]
    # A letter now and then is no beginning of HTTP/2 either.
    silent[0].sendall(b"P")
    try:
        assert passes(server.stub)
        assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) < OPEN_FILES / 2
        with grpc.insecure_channel(server.target) as channel:
            assert passes(sandbox_pb2_grpc.SandboxStub(channel))
        deadline = time.monotonic() + DEADLINE
        for peer in silent[:3]:
            peer.settimeout(max(0.1, deadline - time.monotonic()))
            assert hears_the_end(peer)
    finally:
        for peer in silent:
            peer.close()
        assert server.stop() == 0


def hears_the_end(peer: socket.socket) -> bool:
    """Whether the other side closes; what it says before does not count."""
    try:
        while peer.recv(4096):
            pass
    except ConnectionResetError:
        return True
    return True


def test_the_service_may_open_as_many_files_as_its_operator_allows(
    tmp_path: Path, launch: Callable[..., object]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = hard if hard != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, hard))
    try:
        server = launch(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    assert server.stop() == 0
    (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    assert int(line.split()[3]) == min(allowed, 1 << 20)

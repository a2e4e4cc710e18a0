"""What GetIsolation says of what is around the sandbox, and what may be required of it."""

import subprocess
import sys

import grpc
import pytest
from sandboxed import failure, stdin_tests
from troupe.v1 import sandbox_pb2

OUTER = ("gvisor", "outer_user_namespace", "outer_seccomp", "outer_no_new_privs", "memory_headroom")


def test_what_is_around_the_sandbox_is_reported(server):
    report = server.stub.GetIsolation(sandbox_pb2.GetIsolationRequest(), timeout=30)
    assert tuple(layer.name for layer in report.outer_layers) == OUTER
    for layer in report.outer_layers:
        assert layer.detail
        assert (layer.state == sandbox_pb2.LAYER_STATE_ACTIVE) == (not layer.remedy)


def test_a_job_that_requires_an_outer_layer_that_is_missing_is_refused_by_name(server):
    report = server.stub.GetIsolation(sandbox_pb2.GetIsolationRequest(), timeout=30)
    state = {layer.name: layer.state for layer in report.outer_layers}
    if state["gvisor"] == sandbox_pb2.LAYER_STATE_ACTIVE:
        pytest.skip("this machine is a gVisor sandbox")
    error = failure(server.stub.RunTests(stdin_tests("print(1)", ("", "1"), required_layers=["gvisor"]), timeout=30))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "gvisor" in error.details()
    assert "runtimeClassName" in error.details()


def test_a_service_that_lacks_a_required_outer_layer_does_not_start(launch, tmp_path):
    with pytest.raises(RuntimeError, match=r"layer memory_headroom is missing.*raise the container.s memory limit"):
        launch(tmp_path, "--require-layers", "memory_headroom", "--workflow-slots", "100000", check=False)


def test_slots_that_fit_into_memory_have_headroom(launch, tmp_path):
    server = launch(
        tmp_path, "--require-layers", "memory_headroom", "--workflow-slots", "2", "--test-slots", "1",
        "--program-memory", "32",
    )  # fmt: skip
    outcome = server.run_workflow("x = bytearray(200 << 20)").outcome
    assert outcome.verdict == sandbox_pb2.VERDICT_MEMORY_LIMIT
    assert "33554432 bytes" in outcome.error
    assert server.stop() == 0


def test_a_service_that_cannot_see_its_own_programs_does_not_start():
    # A /proc is shown all the same to whoever is in group 0.
    ordinary = "setpriv --regid 65534 --clear-groups --bounding-set=-all --inh-caps=-all"
    hidden = f'mount -t proc -o hidepid=invisible proc /proc && exec {ordinary} "$0" "$@"'
    own_mounts = ["unshare", "--mount", "sh", "-c", hidden]
    if subprocess.run([*own_mounts, "true"], capture_output=True).returncode:
        pytest.skip("cannot mount a /proc here that hides processes")
    command = [*own_mounts, sys.executable, "-m", "troupe_sandbox", "--listen", "127.0.0.1:0", "--profile", "pod"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "layer process_table is missing" in done.stderr
    assert "hidepid" in done.stderr

"""The switch of layers is in no build but that of the tests, and that build cannot be taken for another."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hostile.attack import PROFILES, Attack, Family, Form, Verdict
from hostile.outside import Outside
from hostile.service import Service, serving
from hostile.weakened import VARIABLE
from troupe.v1 import sandbox_pb2
from troupe_sandbox import _native

# The socket is kept: Python asks for the address of one that nobody closes, which is another call.
PROGRAM = "import socket\nkept = socket.socket()\nsucceeded()\n"
ATTACK = Attack(42, "network", Family.ESCAPE, PROGRAM, Verdict.POLICY_VIOLATION)
OFF = "seccomp:socket"


def test_the_installed_module_does_not_know_the_switch() -> None:
    assert VARIABLE.encode() not in Path(_native.__file__).read_bytes()


def test_the_installed_service_ignores_the_switch(tmp_path: Path, outside: Outside) -> None:
    with serving(tmp_path, "pod", {VARIABLE: OFF}) as service:
        assert service.stub.GetIsolation(sandbox_pb2.GetIsolationRequest()).profile == "pod"
        assert service.run(ATTACK, Form.STDIN, outside).verdict == Verdict.POLICY_VIOLATION


@pytest.mark.long
@pytest.mark.parametrize("profile", PROFILES)
def test_a_weakened_build_says_so_in_its_profile_and_names_the_layer(
    without: Callable[[str, tuple[str, ...]], Service], outside: Outside, profile: str
) -> None:
    service = without(profile, ("capabilities", OFF))
    report = service.stub.GetIsolation(sandbox_pb2.GetIsolationRequest())
    assert report.profile == f"weakened-{profile}"
    capabilities = next(layer for layer in report.layers if layer.name == "capabilities")
    assert capabilities.state != sandbox_pb2.LAYER_STATE_ACTIVE
    assert service.run(ATTACK, Form.STDIN, outside).printed_success()

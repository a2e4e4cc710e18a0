"""The cluster of the current context, for tests that were asked to use it."""

import os
import shutil
import subprocess
from typing import Final

import pytest

ASKED: Final = "TROUPE_TEST_CLUSTER"


def kubectl(
    *arguments: str, stdin: str = "", check: bool = True, seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """Runs kubectl; skips the test where no cluster may be used."""
    if not os.environ.get(ASKED):
        pytest.skip("uses a Kubernetes cluster: `make test-cluster`, on the current context of kubectl")
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on the PATH")
    done = subprocess.run(
        ["kubectl", *arguments], input=stdin, capture_output=True, text=True, timeout=seconds, check=False
    )
    if check:
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done

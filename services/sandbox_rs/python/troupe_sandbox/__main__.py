"""The sandbox service: `python -m troupe_sandbox --listen HOST:PORT …`.

Serves `troupe.v1.Sandbox` with health, reflection and metrics, from Rust; this file only reads the command line. The
service refuses to start when a layer that the profile or `--require-layers` needs is missing, and says what would bring it.

Each option is also a variable, as other services have them: `--work-dir` is TROUPE_WORK_DIR. The command line goes first.
"""

import argparse
import ipaddress
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from troupe_workflow.nodes import library

from . import _native, settings

_PREFIX: Final = "TROUPE_"
# More than any machine has room for.
_MOST: Final = 1_000_000
_MOST_MEBIBYTES: Final = 1 << 40


def _whole(least: int = 1, most: int = _MOST) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not least <= (number := int(text)) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not from {least} to {most}")
        return number

    return whole


def _seconds(text: str) -> float:
    if not 0 <= (seconds := float(text)) <= _MOST:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to {_MOST} seconds")
    return seconds


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare)
        if (address.version == 6) == (bare != host) and 0 <= int(port) < 1 << 16:
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no IP:PORT such as 0.0.0.0:50054 or [::]:50054")


def parse_arguments(arguments: list[str] | None = None, environ: Mapping[str, str] | None = None) -> argparse.Namespace:
    """The options, with their defaults."""
    parser = _parser()
    given = sys.argv[1:] if arguments is None else arguments
    return parser.parse_args([*_from_environment(parser, os.environ if environ is None else environ), *given])


def _parser() -> argparse.ArgumentParser:
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="python -m troupe_sandbox", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--listen", type=_address, default="127.0.0.1:50054", help="address of the gRPC service")
    parser.add_argument("--metrics", type=_address, default="127.0.0.1:0", help="address of the Prometheus metrics")
    parser.add_argument(
        "--tokens", type=Path, help="file with a line `ROLE sha256:HEX` for each token callers may show"
    )
    parser.add_argument("--tls-cert", type=Path, help="PEM file with this service's certificate chain")
    parser.add_argument("--tls-key", type=Path, help="PEM file with the certificate's private key")
    parser.add_argument("--tls-ca", type=Path, help="PEM file of the authority that callers' certificates must have")
    parser.add_argument(
        "--insecure", action="store_true", help="serve everyone who can reach an address that is not loopback"
    )
    parser.add_argument("--ready-file", type=Path, help="written as JSON once the service serves")
    parser.add_argument("--workflow-slots", type=_whole(), default=128, help="workflow scripts at once")
    parser.add_argument("--test-slots", type=_whole(), default=cores, help="test cases at once")
    parser.add_argument(
        "--tool-slots", type=_whole(), help="runs of python for agents at once (default: two for each core)"
    )
    parser.add_argument(
        "--workflow-queue",
        type=_whole(least=0),
        help="scripts of one caller that may wait (default: four for each slot)",
    )
    parser.add_argument(
        "--test-queue", type=_whole(least=0), help="jobs of tests of one caller that may wait (default: 4096)"
    )
    parser.add_argument(
        "--request-memory",
        type=_whole(most=_MOST_MEBIBYTES),
        help="MiB of requests that may come, wait and run (default: a tenth of the memory there is)",
    )
    parser.add_argument(
        "--program-memory",
        type=_whole(most=_MOST_MEBIBYTES),
        help="MiB of memory that no program may have more of (default: as limits.rs says)",
    )
    parser.add_argument("--profile", choices=("auto", "full", "pod"), default="auto")
    parser.add_argument(
        "--require-layers", default="", help="layers, outer ones too, that must be in force, separated by commas"
    )
    parser.add_argument("--work-dir", type=Path, help="where work directories are made (default: the system's)")
    parser.add_argument("--python", type=Path, help="interpreter of sandboxed programs (default: this one's base)")
    parser.add_argument("--preload", default="", help="modules that tests find loaded, such as numpy,sympy")
    parser.add_argument(
        "--programs-per-zygote",
        type=_whole(most=_MOST_MEBIBYTES),
        default=settings.PROGRAMS_PER_ZYGOTE,
        help="programs after which a zygote is replaced",
    )
    parser.add_argument("--nodes", default="", help="workflow nodes of plug-ins for scripts, separated by commas")
    parser.add_argument("--drain-seconds", type=_seconds, default=20.0, help="grace for what runs, on SIGTERM")
    parser.add_argument("--die-with-parent", action="store_true", help="end when the starting process ends")
    parser.add_argument("--log", default="info", help="log filter, such as info or debug")
    return parser


def _from_environment(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> list[str]:
    """What the variables say, as options; an unknown one is refused as an unknown option is."""
    defaults = {f"{_PREFIX}{name.upper()}": value for name, value in vars(parser.parse_args([])).items()}
    arguments: list[str] = []
    for variable, value in environ.items():
        if not variable.startswith(_PREFIX):
            continue
        if variable not in defaults:
            parser.error(f"{variable} is not known to the sandbox: unset it. Known: {', '.join(sorted(defaults))}")
        option = f"--{variable.removeprefix(_PREFIX).lower().replace('_', '-')}"
        if defaults[variable] is not False:
            arguments.append(f"{option}={value}")
        elif value not in ("true", "false"):
            parser.error(f"{variable} is {value!r}: wanted: true or false")
        elif value == "true":
            arguments.append(option)
    return arguments


def main() -> int:
    """Serves until a signal; the exit status."""
    options = parse_arguments()
    required = [name for name in options.require_layers.split(",") if name]
    nodes = [name for name in options.nodes.split(",") if name]
    work_root = options.work_dir or Path(tempfile.gettempdir())
    preload = [name for name in options.preload.split(",") if name]
    listening = {
        "listen": options.listen,
        "metrics": options.metrics,
        "tokens": _path(options.tokens),
        "tls_cert": _path(options.tls_cert),
        "tls_key": _path(options.tls_key),
        "tls_ca": _path(options.tls_ca),
        "insecure": options.insecure,
    }
    serving = {
        "listening": listening,
        "ready_file": _path(options.ready_file),
        "drain_seconds": options.drain_seconds,
        "die_with_parent": options.die_with_parent,
        "workflow_queue": options.workflow_queue,
        "test_queue": options.test_queue,
        "request_memory": options.request_memory,
        "tool_slots": options.tool_slots,
        "program_memory": options.program_memory,
        "log": options.log,
    }
    try:
        with library(nodes, work_root, options.python or settings.base_interpreter()) as scripting_library:
            collected = settings.collect(
                options.profile,
                required,
                options.workflow_slots,
                options.test_slots,
                work_root,
                options.python,
                scripting_library,
                preload,
                options.programs_per_zygote,
            )
            _native.serve(json.dumps(serving), collected)
    except (RuntimeError, ValueError, OSError) as error:
        print(f"troupe_sandbox: {error}", file=sys.stderr)
        return 1
    return 0


def _path(path: Path | None) -> str | None:
    # Not resolved: a mounted Secret is a link that leads elsewhere once it has changed.
    return None if path is None else str(path.absolute())


if __name__ == "__main__":
    sys.exit(main())

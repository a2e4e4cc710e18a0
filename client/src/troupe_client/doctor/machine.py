"""The machine: processor, memory, room on file systems, limits of a process, ports, clock."""

import ctypes
import errno
import os
import platform
import re
import resource
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

from troupe_client.doctor.findings import Finding, error, ok, size, warning
from troupe_client.state import Deployment

# A local deployment of five services and a hundred scripts at once has about 1,500.
OPEN_FILES_WANTED: Final = 4096
OPEN_FILES_NEEDED: Final = 1024
_TIME_ERROR: Final = 5
_LONGS_OF_TIMEX: Final = 64


def processor(cpuinfo: Path = Path("/proc/cpuinfo"), machine: str = platform.machine()) -> Finding:
    """Whether vLLM's CPU build runs here: it needs x86-64 with AVX2, and is made for AVX-512."""
    if machine != "x86_64":
        return error("processor", f"is {machine}", "take a machine with x86-64: the lock has packages for no other")
    found = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    cores = len(os.sched_getaffinity(0))
    if "avx2" not in flags:
        return error(
            "processor", f"{cores} cores without AVX2", "take a newer processor, or engines that are elsewhere"
        )
    if "avx512f" not in flags:
        return warning(
            "processor", f"{cores} cores, AVX2 and no AVX-512", "CPU engines are slower; a GPU does not care"
        )
    return ok("processor", f"{cores} cores, AVX2, AVX-512" + (", AMX" if "amx_tile" in flags else ""))


def memory(needed: int, available: int | None = None) -> Finding:
    """Whether the services of the profile fit into what is free.

    Args:
        needed: bytes, an estimate.
        available: bytes; None asks the machine, and the control group that this process is in.
    """
    free = _available() if available is None else available
    if free < needed:
        return error(
            "memory",
            f"{size(free)} available, about {size(needed)} needed",
            "end other programs, or take a smaller model",
        )
    return ok("memory", f"{size(free)} available, about {size(needed)} needed")


def _available() -> int:
    free = int(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such controller, or "max"
            continue
    return free


def disk(name: str, folder: Path, needed: int) -> Finding:
    """Whether a folder, which need not be there yet, has room and can be written."""
    check = f"disk: {name}"
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return error(check, f"{existing} is not a folder", "name another")
    if not os.access(existing, os.W_OK):
        return error(check, f"{existing} cannot be written", "name another, or give it to this user")
    status = os.statvfs(existing)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        return error(
            check, f"{size(free)} free at {existing}, {size(needed)} needed", "free space, or name another folder"
        )
    if status.f_files and status.f_favail < 10_000:
        return error(
            check, f"{status.f_favail} files can be made at {existing}", "remove files, or name another folder"
        )
    return ok(check, f"{size(free)} free at {existing}, {size(needed)} needed")


def open_files() -> Finding:
    """The limit of open files, which services inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    remedy = f"ulimit -n {min(OPEN_FILES_WANTED, hard) if hard != resource.RLIM_INFINITY else OPEN_FILES_WANTED}"
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_NEEDED:
        return error("open files", f"limit {soft}, {OPEN_FILES_NEEDED} needed", remedy)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_WANTED:
        return warning("open files", f"limit {soft}, {OPEN_FILES_WANTED} wanted for many executions at once", remedy)
    return ok("open files", f"limit {soft}")


def ports(wanted: Iterable[int] = ()) -> list[Finding]:
    """Whether services can listen: on some port of loopback, where local ones do, and on those that are to be fixed."""
    found = []
    for port in (0, *wanted):
        with socket.socket() as listening:
            try:
                listening.bind(("127.0.0.1", port))
            except OSError as failure:
                if port == 0:
                    found.append(error("ports", f"loopback has none: {failure.strerror}", "look at `ip addr show lo`"))
                else:
                    text = f"is held by {holder(port)}" if failure.errno == errno.EADDRINUSE else failure.strerror
                    found.append(error(f"port {port}", str(text), "end it, or give the service another port"))
            else:
                found.append(ok(f"port {port}", "is free") if port else ok("ports", "loopback has free ones"))
    return found


def holder(port: int) -> str:
    """Who listens on a port, as far as this user may know."""
    pid = listener(port)
    return "a process of another user" if pid is None else f"process {pid} ({_name(pid)})"


def listener(port: int) -> int | None:
    """The process that listens on a port; None if this user may not know, or there is none."""
    for connection in psutil.net_connections("tcp"):
        if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
            return None if connection.pid is None else int(connection.pid)
    return None


def _name(pid: int) -> str:
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "unknown"


def deployment(running: Deployment | None, held: bool, state: Path) -> list[Finding]:
    """What the state folder says of running services: each lives and has its port."""
    if running is None:
        return [ok("services", f"none are running in {state}")]
    if not held:
        left = [service for service, its in running.services.items() if its.identity.alive()]
        if left:
            return [error("services", f"the supervisor of {state} is gone and left {', '.join(left)}", "`troupe down`")]
        return [ok("services", f"none are running in {state}")]
    found = []
    for service, its in running.services.items():
        owner = listener(port_of(its.target)) if its.target else None
        if not its.identity.alive():
            remedy = "`troupe status` says more; `troupe down` ends the others"
            found.append(error("services", f"{service} of {state} has ended", remedy))
        elif owner is not None and owner not in {its.pid, *_descendants(its.pid)}:
            text = f"the port of {service}, {its.target}, is held by process {owner} ({_name(owner)})"
            found.append(error("services", text, "end that process, then `troupe down` and `troupe up`"))
    targets = (f"{service} {its.target}" for service, its in running.services.items())
    return found or [ok("services", f"{len(running.services)} run in {state}: {', '.join(targets)}")]


def port_of(target: str) -> int:
    return int(target.rpartition(":")[2])


def _descendants(pid: int) -> set[int]:
    try:
        return {child.pid for child in psutil.Process(pid).children(recursive=True)}
    except psutil.Error:
        return set()


def clock(newest: float, now: float | None = None, synchronised: bool | None = None) -> Finding:
    """Whether the time can be right, and is kept so: leases and tokens of several machines are compared.

    Args:
        newest: when something that is there was made; Unix seconds.
    """
    reading = time.time() if now is None else now
    if reading < newest - 60:
        return error(
            "clock", f"is {newest - reading:.0f} s before files that are there", "set it, and start an NTP service"
        )
    if not (_synchronised() if synchronised is None else synchronised):
        return warning("clock", "is not kept by NTP", "start an NTP service where several machines work together")
    return ok("clock", "is kept by NTP")


def _synchronised() -> bool:
    """What the kernel knows; a container is told of its host's clock."""
    state = (ctypes.c_long * _LONGS_OF_TIMEX)()
    return int(ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(state))) not in (_TIME_ERROR, -1)

"""All checks for one state folder and profile."""

from collections.abc import Sequence
from pathlib import Path

from troupe_client.doctor import installation, machine
from troupe_client.doctor.findings import Finding, error, ok, warning
from troupe_client.doctor.needs import SHARED_MEMORY_BYTES, needs
from troupe_client.processes import SHARED_MEMORY
from troupe_client.profile import Profile, ProfileError, load_profile
from troupe_client.state import StateFolder, StateFolderError


def examine(state: Path, profile_file: Path | None, ports: Sequence[int] = ()) -> list[Finding]:
    """What every check says, in the order in which a reader wants it.

    Args:
        ports: that are to be free, for services with fixed ones.
    """
    profile, found = _profile(state, profile_file)
    lock = installation.find_lock()
    needed = needs(profile)
    return [
        installation.interpreter(),
        installation.packages(lock),
        machine.processor(),
        *installation.devices(),
        machine.memory(needed.memory),
        machine.disk("state folder", state, needed.disk),
        machine.disk("shared memory", SHARED_MEMORY, SHARED_MEMORY_BYTES),
        *found,
        *(
            error("model", f"{name} is not there", "`make quickstart` makes the starter's")
            for name in needed.missing_models
        ),
        *(warning("model", f"{name} is a hub id: not looked at", "fetch it before") for name in needed.hub_models),
        machine.open_files(),
        *machine.ports(ports),
        *_services(state),
        machine.clock(Path(__file__).stat().st_mtime),
        *installation.isolation(),
        *installation.plugins(),
    ]


def _profile(state: Path, named: Path | None) -> tuple[Profile | None, list[Finding]]:
    path = named or state / "profile.yaml"
    if named is None and not path.exists():
        return None, [
            warning("profile", f"there is no {path}", "`make quickstart` writes one, or name one with --profile")
        ]
    try:
        profile = load_profile(path)
    except ProfileError as failure:
        return None, [error("profile", str(failure), "mend the file")]
    return profile, [ok("profile", f"{profile.name} of {path}")]


def _services(state: Path) -> list[Finding]:
    folder = StateFolder(state)
    try:
        return machine.deployment(folder.read(), folder.is_held(), state)
    except StateFolderError as failure:
        return [error("services", str(failure), "name another folder with --state")]

"""Checkpoints as the front sees them: made beside their final place, checked, published by one rename.

A folder that has its final name is whole: every file and folder in it was fsynced before the rename, and the record lists
each with size and SHA-256, and its own. Restoring checks all of them before a rank reads anything. A half-made folder (the
learner was killed) keeps a name that starts with a dot and is removed by the next save to that place.
"""

import base64
import hashlib
import json
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from troupe_contracts.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound

from troupe_learner.checkpoint_layout import MODEL, RECORD, STATE
from troupe_learner.disk import fsync, writing
from troupe_learner.ledger import AppliedStep, Ledger, Version
from troupe_learner.weight_file import sha256_of

SCHEMA_VERSION: Final = 2


@dataclass(frozen=True)
class Layout:
    """How the state was cut into files: a learner restores what one of the same layout saved."""

    engine: str
    ranks: int
    zero_stage: int
    dtype: str


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint and what its record says."""

    folder: Path
    policy_id: str
    layout: Layout
    architecture_digest: str
    ledger: Ledger
    byte_size: int


def local_folder(uri: str) -> Path:
    """The folder that a URI names.

    Raises:
        InvalidArgument: it is not an absolute path on this machine.
    """
    parts = urlsplit(uri)
    path = Path(unquote(parts.path) if parts.scheme else uri)
    if parts.scheme not in ("", "file") or parts.netloc or not path.is_absolute():
        raise InvalidArgument(
            "uri", f"is {uri!r}: send an absolute path, or file:///…; checkpoints are published by a rename"
        )
    return path


class Draft:
    """A folder beside `target` that is filled, then published or discarded."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._folder = target.parent / f".{target.name}.partial-{uuid.uuid4().hex[:8]}"

    def create(self) -> Path:
        """The empty folder; what a killed learner left for the same target is removed.

        Raises:
            Exhausted: the disk is full.
            FailedPrecondition: there is no place for it.
        """
        with writing(self._target.parent):
            self._target.parent.mkdir(parents=True, exist_ok=True)
            for left_over in self._target.parent.glob(f".{self._target.name}.partial-*"):
                shutil.rmtree(left_over)
            for each in (self._folder, self._folder / MODEL, self._folder / STATE):
                each.mkdir()
        return self._folder

    def publish(self, policy_id: str, layout: Layout, architecture_digest: str, ledger: Ledger) -> Checkpoint:
        """Writes the record, makes everything durable, and gives the folder its name.

        Raises:
            Exhausted: the disk is full; nothing is at the target then.
            FailedPrecondition: it cannot be written.
        """
        with writing(self._target):
            self._finish(_record(self._folder, policy_id, layout, architecture_digest, ledger))
        return read(self._target)

    def _finish(self, record: dict[str, Any]) -> None:
        (self._folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        for path in (*self._folder.rglob("*"), self._folder):
            fsync(path)
        self._folder.rename(self._target)
        fsync(self._target.parent)

    def discard(self) -> None:
        """Removes the folder if it was not published."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _record(folder: Path, policy_id: str, layout: Layout, architecture_digest: str, ledger: Ledger) -> dict[str, Any]:
    record = {
        "schema_version": SCHEMA_VERSION,
        "policy_id": policy_id,
        "layout": asdict(layout),
        "architecture_digest": architecture_digest,
        "ledger": _ledger_as_json(ledger),
        "files": {
            str(path.relative_to(folder)): {"byte_size": path.stat().st_size, "sha256": sha256_of(path).hex()}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }
    return record | {"sha256": _own_sha256(record)}


def _own_sha256(record: dict[str, Any]) -> str:
    """Of the record without this entry, as canonical JSON."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read(folder: Path) -> Checkpoint:
    """What a folder's record says; the files are not looked at.

    Raises:
        NotFound: there is no checkpoint.
        FailedPrecondition: another schema.
        DataLoss: the record cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        raise NotFound("checkpoint", str(folder), "a checkpoint is a folder that SaveCheckpoint has made")
    try:
        record = json.loads(path.read_text())
        schema = record["schema_version"]
        if schema != SCHEMA_VERSION:
            raise FailedPrecondition(str(folder), f"has schema version {schema}, this learner reads {SCHEMA_VERSION}")
        if record["sha256"] != _own_sha256(record):
            raise ValueError("its SHA-256 is not its own")
        return Checkpoint(
            folder=folder,
            policy_id=record["policy_id"],
            layout=Layout(**record["layout"]),
            architecture_digest=record["architecture_digest"],
            ledger=_ledger_from_json(record["ledger"]),
            byte_size=sum(each["byte_size"] for each in record["files"].values()) + path.stat().st_size,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataLoss(f"{path} is damaged ({error!r}): restore another checkpoint") from error


def verify(folder: Path) -> None:
    """Compares every file with the record.

    Raises:
        DataLoss: a file is missing, or its bytes are not those that were saved.
    """
    files: dict[str, dict[str, Any]] = json.loads((folder / RECORD).read_text())["files"]
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise DataLoss(f"{path} is missing: restore another checkpoint")
        if path.stat().st_size != expected["byte_size"] or sha256_of(path).hex() != expected["sha256"]:
            raise DataLoss(f"{path} is not what was saved (size or SHA-256): restore another checkpoint")


def _ledger_as_json(ledger: Ledger) -> dict[str, Any]:
    return {
        "run_id": ledger.run_id,
        "lineage": ledger.lineage,
        "steps": [
            {
                "step": each.step,
                "digest": base64.b64encode(each.digest).decode(),
                "version": asdict(each.version),
            }
            for each in ledger.steps
        ],
        "last_metrics": dict(ledger.steps[-1].metrics) if ledger.steps else {},
    }


def _ledger_from_json(stored: dict[str, Any]) -> Ledger:
    steps = [
        AppliedStep(each["step"], base64.b64decode(each["digest"]), Version(**each["version"]))
        for each in stored["steps"]
    ]
    if steps:
        last = steps[-1]
        steps[-1] = AppliedStep(last.step, last.digest, last.version, stored["last_metrics"])
    return Ledger(stored["run_id"], stored["lineage"], tuple(steps))

"""What bad lines name: files of all kinds, and targets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HUGE_BYTES = 50 * 2**20


@dataclass(frozen=True)
class Place:
    """What cases need: files of all kinds, and targets."""

    folder: Path
    orchestrator: str
    """A real one, without engines."""
    sandbox: str
    """Another service."""
    silent: str
    """Takes connections and says nothing."""

    def file(self, name: str) -> str:
        return str(self.folder / name)


def write_files(folder: Path) -> None:
    """The files that cases name."""
    (folder / "folder").mkdir()
    (folder / "torn").mkdir()
    files = {
        "file.yaml": b"steps: 1\n",
        "run.yaml": b"steps: 1\nstages: [{train: both, steps: 1}]\ndataset: {train: nowhere.jsonl}\n",
        "cert.pem": b"-----BEGIN CERTIFICATE-----\n",
        "key.pem": b"-----BEGIN PRIVATE KEY-----\n",
        "empty": b"",
        "binary": b"\x89PNG\r\n\x1a\n\xff\xfe\x00\x01",
        "broken.yaml": b"a: [1, 2\n",
        "list.yaml": b"- 1\n",
        "deep.yaml": b"a: " + b"[" * 1_000 + b"]" * 1_000,
        "date.yaml": b"name: 2020-13-45\n",
        "unknown.yaml": b"colour: red\nexecutor: {policy_id: p, model: m, color: red}\ndesigner: {policy_id: p}\n",
        "types.yaml": b"executor: {policy_id: [1], model: m}\ndesigner: {policy_id: p}\n",
        "torn/local.json": b'{"boot_id": "',
        "torn/profile.yaml": b"",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with (folder / "huge").open("wb") as huge:
        huge.truncate(HUGE_BYTES)

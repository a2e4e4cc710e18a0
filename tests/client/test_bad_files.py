"""Configs and files of problems that cannot be used: each is refused naming what is wrong in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from refusable.lines import assert_refused, run
from refusable.place import Place

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("nothing_is_left_behind")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", ("must be a mapping",)),
        (b"\x00\x01\xff", ("UTF-8",)),
        (b"a: [1", ("not YAML",)),
        (b"[" * 3_000, ("nested",)),
        (b"steps: many\nstages: 7\n", ("steps", "stages", "dataset")),
        (b"name: ../../etc\nsteps: 1\nstages: [{train: both, steps: 1}]\ndataset: {train: t}\n", ("name",)),
        (b"steps: 1\nstages: [{train: both, steps: 1}]\ndataset: {train: t}\ncolour: red\n", ("colour: unknown key",)),
    ],
    ids=["empty", "binary", "broken", "deep", "types", "path", "key"],
)
@pytest.mark.parametrize("command", ["train", "config"])
def test_a_config_that_cannot_be_used_is_refused_naming_its_keys(
    command: str, content: bytes, says: tuple[str, ...], place: Place, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_bytes(content)
    ended = run([command, "--config", str(config), "--target", place.orchestrator])
    assert_refused(ended, 2 if "UTF-8" in says else 1, says)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"\x00\xff\xfe",
        b"{}\n",
        b"not json\n",
        b"[1]\n",
        b"\x1f\x8b\x08broken",
        json.dumps({"a": 1}).encode(),
    ],
    ids=["empty", "blank", "binary", "no_keys", "no_json", "list", "torn_gzip", "unknown_keys"],
)
def test_a_problem_file_without_a_problem_is_refused_naming_file_and_line(
    content: bytes, place: Place, tmp_path: Path
) -> None:
    dataset = tmp_path / "held-out.jsonl"
    dataset.write_bytes(content)
    ended = run(["eval", "--dataset", str(dataset), "--target", place.orchestrator])
    assert_refused(ended, 1, ("dataset",) if not content else ())

"""Provenance of a run: what is recorded, and what counts as a change."""

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
from troupe_orchestrator.run_config import Trains
from troupe_orchestrator.training import record
from troupe_orchestrator.training.messages import provenance_message
from troupe_orchestrator.training.record import Fork, PluginRecord, PolicyRecord, RunOrigin, Source, changes

BREVITY = PluginRecord("reward term", "brevity", "my-package", "1.0")
SOURCE = Source("c" * 40, False, "0.1.0", "1" * 64, "uv.lock", (BREVITY,))
POLICY = PolicyRecord("p", ("designer", "executor"), "model", "t" * 64, "h" * 64, "a" * 64, "torch 2", "vllm 0")
FORK = Fork("parent", 3, 3, Trains.EXECUTOR, False, True, "", {"seed": 0, "epoch": 0, "position": 2, "postponed": []})
ORIGIN = RunOrigin(SOURCE, "d" * 64, 10, "e" * 64, 0, (POLICY,), "full", FORK)


def test_a_record_survives_its_json() -> None:
    assert RunOrigin.from_json(json.loads(json.dumps(ORIGIN.to_json()))) == ORIGIN
    plain = dataclasses.replace(ORIGIN, fork=None)
    assert RunOrigin.from_json(json.loads(json.dumps(plain.to_json()))) == plain


def test_changes_name_what_differs_with_both_sides() -> None:
    assert changes(ORIGIN, ORIGIN) == []
    now = dataclasses.replace(
        ORIGIN,
        source=dataclasses.replace(SOURCE, revision="f" * 40, dirty=True),
        policies=(dataclasses.replace(POLICY, tokenizer_digest="u" * 64),),
        isolation_profile="pod",
    )
    assert changes(ORIGIN, now) == [
        "source.dirty: False → True",
        "source.revision: cccccccccccc → ffffffffffff",
        "isolation_profile: full → pod",
        "p.tokenizer_digest: tttttttttttt → uuuuuuuuuuuu",
    ]


def test_a_plugin_of_another_version_is_a_change() -> None:
    newer = dataclasses.replace(SOURCE, plugins=(dataclasses.replace(BREVITY, version="1.1"),))
    assert changes(ORIGIN, dataclasses.replace(ORIGIN, source=newer)) == [
        "source.plugin.reward term brevity: my-package 1.0 → my-package 1.1"
    ]


def test_the_plugins_that_are_installed_are_recorded_with_the_version_of_their_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "recorded_terms-2.3.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: recorded-terms\nVersion: 2.3\n")
    (folder / "entry_points.txt").write_text("[troupe.rewards]\nrecorded = recorded_terms:term\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert PluginRecord("reward term", "recorded", "recorded-terms", "2.3") in record.installed_plugins()


def test_the_source_of_a_checkout_is_its_commit_and_its_lock() -> None:
    root = Path(record.__file__).resolve().parents[5]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout: the sources were unpacked from an archive")
    source = record.source_of_process.__wrapped__()
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert source.revision == head.stdout.strip()
    assert (source.lock_source, len(source.lock_digest)) == ("uv.lock", 64)


def test_without_a_checkout_the_source_is_the_images_revision_and_the_installed_distributions(
    tmp_path: Path, monkeypatch
) -> None:
    revision = tmp_path / "troupe-revision"
    revision.write_text("abc123\n")
    monkeypatch.setattr(record, "IMAGE_REVISION", revision)
    monkeypatch.setattr(record, "_checkout", lambda: None)
    source = record.source_of_process.__wrapped__()
    assert (source.revision, source.dirty, source.lock_source) == ("abc123", False, "installed distributions")
    assert len(source.lock_digest) == 64


@pytest.mark.parametrize("seed", [2**63, 10**23, -(10**23)])
def test_a_run_from_before_seeds_were_bounded_can_be_told(seed: int) -> None:
    assert abs(provenance_message(dataclasses.replace(ORIGIN, seed=seed)).seed) >= 2**63 - 1

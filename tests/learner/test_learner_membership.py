"""What members of a gang must have in common."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from troupe_learner.membership import BUILD, build, differences, in_common
from troupe_learner.model_folder import open_model
from troupe_learner.settings import LearnerSettings

GANG: dict[str, object] = {"nodes": 2, "gang_address": "127.0.0.1:50052", "engine": "deepspeed"}
# Of each machine, or of the front alone.
OWN = {
    *("work_dir", "model", "node_rank", "machine", "gang_address", "gang_interface", "lineage", "stall_seconds"),
    *("listen", "metrics", "ready_file", "die_with_parent", "drain_seconds", "log_level", "log_format"),
    *("tokens", "token_file", "tls_cert", "tls_key", "tls_ca", "tls_server_name", "insecure"),
}


def common(model: Path, **settings: object) -> dict[str, str]:
    given = LearnerSettings.model_validate({"model": str(model), "work_dir": "/work", **GANG, **settings})
    return dict(in_common(given, open_model(str(model))))


def test_every_setting_is_shared_or_said_to_be_each_members_own(tiny_model: Callable[[bool], Path]) -> None:
    named = {name.removeprefix("TROUPE_").lower() for name in common(tiny_model(False))}
    assert named == LearnerSettings.model_fields.keys() - OWN | {"model", BUILD}


def test_members_that_were_told_the_same_differ_in_nothing(tiny_model: Callable[[bool], Path], tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model(False), tmp_path / "copy")
    front = common(tiny_model(False), lineage="first", machine="one")
    assert differences(front, common(copy, node_rank=1, machine="two", stall_seconds=5)) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"zero_stage": 3}, "TROUPE_ZERO_STAGE is 3 there and 0 here"),
        ({"ranks": 4}, "TROUPE_RANKS is 4 there and 1 here"),
        ({"adam_beta2": 0.5}, "TROUPE_ADAM_BETA2 is 0.5 there and 0.95 here"),
    ],
)
def test_a_setting_that_differs_is_named_with_both_values(
    settings: dict[str, object], said: str, tiny_model: Callable[[bool], Path]
) -> None:
    assert differences(common(tiny_model(False)), common(tiny_model(False), **settings)) == [said]


def test_other_weights_under_the_same_path_are_another_model(
    tiny_model: Callable[[bool], Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_model(False), tmp_path / "copy")
    before = common(copy)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (difference,) = differences(before, common(copy))
    assert difference.startswith("TROUPE_MODEL is files with SHA-256 ")


def test_a_build_says_what_it_is_made_of() -> None:
    for part in ("learner ", "torch ", "deepspeed ", "Python 3."):
        assert part in build()


def test_what_one_member_does_not_know_of_is_a_difference() -> None:
    assert differences({"a": "1"}, {}) == ["a is not known there and 1 here"]

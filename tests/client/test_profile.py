"""What a profile may say, and how it is told what it may not."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from troupe_client.profile import Profile, ProfileError, load_profile

SMALLEST: dict[str, Any] = {
    "executor": {"model": "model", "policy_id": "p"},
    "designer": {"policy_id": "p"},
}


def write(folder: Path, content: object) -> Path:
    path = folder / "profile.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_the_smallest_profile_shares_one_policy_and_trains_nothing(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, SMALLEST))
    assert profile.designer.engine == "remote"
    assert profile.learner is None
    assert profile.sandbox.profile == "auto"


def test_paths_beside_the_file_are_resolved_and_names_are_kept(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    profile = load_profile(write(tmp_path, SMALLEST | {"designer": {"policy_id": "p", "prompt": "built-in"}}))
    assert profile.executor.model == str(tmp_path / "model")
    assert profile.designer.prompt == "built-in"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"exekutor": {}}, "exekutor: unknown key"),
        ({"executor": {"policy_id": "p", "model": "m", "gpu": 1}}, "executor.gpu: unknown key"),
        ({"executor": {"policy_id": "p"}}, "executor.model is missing"),
        ({"executor": {"policy_id": "p", "engine": "remote"}}, "only the designer can forward"),
        ({"designer": {"policy_id": "other"}}, "give both the same"),
        ({"designer": {"policy_id": "q", "engine": "vllm"}}, "designer.model is missing"),
        ({"designer_learner": {}}, "no engine of its own"),
        ({"learner": {"ranks": 0}}, "learner.ranks"),
        ({"learner": {"settings": {"listen": "0.0.0.0:1"}}}, "listen is set by the supervisor: remove it"),
        ({"learner": {"settings": {"ranks": 2}}}, "ranks is a key of the service itself"),
        ({"sandbox": {"workflow_slots": "many"}}, "sandbox.workflow_slots"),
    ],
)
def test_a_bad_key_is_refused_by_file_and_name(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = write(tmp_path, SMALLEST | change)
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("content", ["", "[1, 2]", "a: [", "a: !!python/object:os.system {}"])
def test_what_is_not_a_mapping_is_refused_by_file(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ProfileError, match=r"profile\.yaml"):
        load_profile(path)


def test_a_key_that_is_given_twice_is_named_with_its_lines(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST)
    lines = path.read_text().count("\n")
    path.write_text(path.read_text() + "temperature: 0.5\ntemperature: 1.0\n")
    with pytest.raises(
        ProfileError, match=rf"profile\.yaml: temperature: is given on line {lines + 1} and again on line {lines + 2}"
    ):
        load_profile(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"none\.yaml: No such file"):
        load_profile(tmp_path / "none.yaml")


def test_two_policies_have_a_learner_each() -> None:
    profile = Profile.model_validate(
        {
            "executor": {"model": "a", "policy_id": "x"},
            "designer": {"engine": "vllm", "model": "b", "policy_id": "d"},
            "learner": {},
            "designer_learner": {"ranks": 2},
        }
    )
    assert profile.designer_learner is not None

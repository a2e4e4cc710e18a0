"""The Dockerfiles as text: what can be known of images without building them. What each installs: test_distributions."""

import re
from pathlib import Path
from typing import Final

import pytest
from rendered.overlays import OVERLAYS, render

ROOT: Final = Path(__file__).parents[2]
FILES: Final = {
    "orchestrator": ROOT / "services/orchestrator/Dockerfile",
    "designer": ROOT / "services/designer/Dockerfile",
    "executor": ROOT / "services/executor/Dockerfile",
    "sandbox": ROOT / "services/sandbox_rs/Dockerfile",
    "learner": ROOT / "services/learner/Dockerfile",
    "starter": ROOT / "starter/Dockerfile",
    "postgres": ROOT / "k8s/components/postgres/image/Dockerfile",
}
PYTHON: Final = sorted(FILES.keys() - {"postgres"})
WITH_TORCH: Final = ("executor", "learner", "starter")


def last_stage(name: str) -> str:
    text = FILES[name].read_text()
    return text[text.rindex("\nFROM ") :]


@pytest.mark.parametrize("name", FILES)
def test_an_image_runs_as_a_user_that_it_knows_by_name(name: str) -> None:
    stage = last_stage(name)
    assert "USER 10001:10001" in stage
    assert re.search(r"useradd --uid 10001\b", stage)
    assert stage.rindex("USER 10001:10001") > stage.rindex("RUN ")


@pytest.mark.parametrize("name", PYTHON)
def test_an_image_installs_what_the_lock_says_for_its_own_package(name: str) -> None:
    text = FILES[name].read_text()
    exported = set(re.findall(r"--package (troupe-\w+)", text))
    assert f"troupe-{name}" in exported
    # Beside its own: the learner's, of which torch is taken.
    assert exported <= {f"troupe-{name}"} | ({"troupe-learner"} if name in WITH_TORCH else set())
    assert "--frozen" in text
    installs = re.findall(r"uv pip install(?:[^\n]*\\\n)*[^\n]*", text)
    assert installs
    assert all("--no-deps" in each and ("--require-hashes" in each or "--no-index" in each) for each in installs)
    assert f'"-m", "troupe_{name}"]' in text


def test_torch_is_the_same_layer_in_all_images_that_have_it() -> None:
    up_to_torch = {name: last_stage(name).partition("/opt/troupe/torch.txt\n")[0] for name in WITH_TORCH}
    assert len(set(up_to_torch.values())) == 1
    made = {name: re.findall(r"[^\n]*>/out/torch.txt", FILES[name].read_text()) for name in WITH_TORCH}
    assert made["executor"] == made["learner"] == made["starter"] != []


@pytest.mark.parametrize("name", FILES)
def test_an_image_is_made_of_one_public_base_that_has_a_tag(name: str) -> None:
    text = FILES[name].read_text()
    bases = set(re.findall(r"^(?:FROM|ARG BASE=) ?(\S+)", text, re.MULTILINE)) - {"${BASE}"}
    bases |= set(re.findall(r"^ARG BASE=(\S+)", text, re.MULTILINE))
    assert bases == {"debian:bookworm-slim"}


def test_make_images_builds_every_image_that_the_manifests_name() -> None:
    makefile = (ROOT / "Makefile").read_text()
    built = re.search(r"^IMAGES := (.*)$", makefile, re.MULTILINE)
    prefix = re.search(r"^IMAGE_PREFIX \?= (.*)$", makefile, re.MULTILINE)
    assert built is not None
    assert prefix is not None
    assert set(built[1].split()) == FILES.keys()
    for name, file in FILES.items():
        assert f"DOCKERFILE_OF_{name} := {file.parent.relative_to(ROOT)}\n" in makefile
    named = {
        container["image"].partition(":")[0]
        for overlay in OVERLAYS
        for workload in render(overlay).workloads
        for container in workload.containers
    }
    assert named <= {f"{prefix[1]}{name}" for name in FILES}


def test_the_build_context_has_what_is_built_from_and_no_checkouts_leftovers() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {
        f"!{path}" for path in ("pyproject.toml", "uv.lock", "proto", "libs", "services", "client", "starter")
    } <= set(lines)
    assert {"**/target", "**/.venv", "**/*.so"} <= set(lines)

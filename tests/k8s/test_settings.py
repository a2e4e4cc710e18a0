"""What the manifests tell each service is what that service takes: its own settings read the rendered environment."""

from typing import Final

import pytest
from rendered.overlays import RENDERED, render
from rendered.readers import READERS
from troupe_contracts.settings import SettingsError, is_loopback

# Read by others than the service: libpq.
FOREIGN: Final = {"PGPASSFILE", "PGSSLMODE", "PGSSLROOTCERT"}


def environment(overlay: str, service: str) -> dict[str, str]:
    manifests = render(overlay)
    for workload in manifests.workloads:
        if workload.name == service:
            return manifests.environment(workload, workload.pod["containers"][0])
    pytest.skip(f"{overlay} has no {service} of its own")


@pytest.mark.parametrize("overlay", RENDERED)
@pytest.mark.parametrize("service", READERS)
def test_a_service_takes_every_variable_that_it_is_given(overlay: str, service: str) -> None:
    given = environment(overlay, service)
    READERS[service](given)
    assert {name for name in given if not name.startswith("TROUPE_")} <= FOREIGN


@pytest.mark.parametrize("service", READERS)
def test_a_variable_that_a_service_does_not_know_would_be_found(service: str) -> None:
    given = environment("cluster" if service != "executor" else "local", service)
    with pytest.raises((SettingsError, SystemExit)):
        READERS[service]({**given, "TROUPE_NO_SUCH_SETTING": "1"})


@pytest.mark.parametrize("overlay", RENDERED)
@pytest.mark.parametrize("service", READERS)
def test_a_service_listens_to_other_pods_and_knows_who_calls(overlay: str, service: str) -> None:
    given = environment(overlay, service)
    assert not is_loopback(given["TROUPE_LISTEN"])
    assert not is_loopback(given["TROUPE_METRICS"])
    assert given["TROUPE_TOKENS"]
    assert "TROUPE_INSECURE" not in given


@pytest.mark.parametrize("overlay", RENDERED)
def test_files_that_settings_name_lie_on_something_that_is_mounted(overlay: str) -> None:
    manifests = render(overlay)
    for workload in manifests.workloads:
        container = workload.pod["containers"][0]
        mounted = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
        for name, value in manifests.environment(workload, container).items():
            if value.startswith("/"):
                assert any(f"{value}/".startswith(f"{path}/") for path in mounted), f"{workload.name}: {name}={value}"


@pytest.mark.parametrize("overlay", RENDERED)
def test_engines_and_learner_have_the_same_model_and_policy(overlay: str) -> None:
    manifests = render(overlay)
    holding = [
        manifests.environment(each, each.pod["containers"][0])
        for each in manifests.workloads
        if each.name in ("designer", "executor", "learner")
    ]
    models = {given["TROUPE_MODEL"] for given in holding if "TROUPE_MODEL" in given}
    assert len(models) == 1
    assert len({given["TROUPE_POLICY_ID"] for given in holding}) == 1

"""Components that no overlay uses, put on one."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from rendered.overlays import ALONE, K8S, Manifests, render
from rendered.readers import READERS


@pytest.fixture
def with_tls() -> Manifests:
    return render("local+tls-cert-manager")


def test_every_component_is_in_an_overlay_or_rendered_on_one() -> None:
    used = {
        Path(component).name
        for file in (K8S / "overlays").glob("*/kustomization.yaml")
        for component in yaml.safe_load(file.read_text()).get("components", ())
    }
    there = {path.parent.name for path in (K8S / "components").glob("*/kustomization.yaml")}
    assert there == used | ALONE.keys()
    assert not used & ALONE.keys()


@pytest.mark.parametrize("service", READERS)
def test_with_tls_a_service_takes_its_settings_and_is_probed_over_https(with_tls: Manifests, service: str) -> None:
    (workload,) = [each for each in with_tls.workloads if each.name == service]
    (container,) = workload.pod["containers"]
    given = with_tls.environment(workload, container)
    READERS[service](given)
    assert given["TROUPE_TLS_CERT"].startswith("/run/troupe/tls/")
    assert container["startupProbe"]["httpGet"]["scheme"] == "HTTPS"
    assert container["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"


@pytest.mark.parametrize(
    ("service", "role"),
    [
        ("orchestrator", "orchestrator"),
        ("designer", "engine"),
        ("executor", "engine"),
        ("learner", "learner"),
        ("sandbox", "observer"),
        ("client", "client"),
    ],
)
def test_each_certificate_has_its_role_and_the_name_that_callers_look_for(
    with_tls: Manifests, service: str, role: str
) -> None:
    certificate = with_tls.one("Certificate", service)["spec"]
    assert certificate["uris"] == [f"troupe-role:{role}"]
    caller = next(each for each in with_tls.workloads if each.name == "orchestrator")
    looked_for = with_tls.environment(caller, caller.pod["containers"][0])["TROUPE_TLS_SERVER_NAME"]
    assert {looked_for, service} == set(certificate["dnsNames"])


def test_each_certificates_secret_is_mounted_by_its_service_alone(with_tls: Manifests) -> None:
    made = {each["spec"]["secretName"] for each in with_tls.of("Certificate")}
    for workload in with_tls.workloads:
        named = {volume["secret"]["secretName"] for volume in workload.pod["volumes"] if "secret" in volume}
        certificates = {name for name in named if name.endswith("-tls")}
        assert certificates <= {f"{workload.name}-tls"} & made
        assert not workload.serves or certificates


def test_the_database_asks_for_tls_and_its_certificate_is_for_nothing_but_its_own_name(with_tls: Manifests) -> None:
    (database,) = [each for each in with_tls.workloads if each.name == "postgres"]
    (container,) = database.pod["containers"]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounted[with_tls.environment(database, container)["TLS_FOLDER"]] == "tls"
    certificate = with_tls.one("Certificate", "postgres")["spec"]
    assert certificate["dnsNames"] == ["postgres"]
    assert "uris" not in certificate
    assert certificate["usages"] == ["digital signature", "server auth"]


def test_with_tls_the_orchestrator_verifies_whom_it_gives_the_databases_password(with_tls: Manifests) -> None:
    (caller,) = [each for each in with_tls.workloads if each.name == "orchestrator"]
    settings = with_tls.environment(caller, caller.pod["containers"][0])
    assert settings["PGSSLMODE"] == "verify-full"
    assert settings["PGSSLROOTCERT"] == settings["TROUPE_TLS_CA"]
    # What the URL says goes before the environment.
    store = urlsplit(settings["TROUPE_STORE_URL"])
    assert (store.hostname, store.query) == ("postgres", "")

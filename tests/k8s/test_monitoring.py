"""Dashboard and alerts name metrics that services export, rules parse and fire, each alert has a heading in the runbook."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest
import troupe_contracts.calls
import troupe_designer.service
import troupe_inference.exported
import troupe_orchestrator.monitoring.runs
import yaml
from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric
from rendered.overlays import K8S, OVERLAYS, Manifests, render
from rendered.policies import Endpoint, allowed
from rendered.readers import READERS
from troupe_contracts.settings import ServiceSettings
from troupe_learner.exported import LearnerCollector
from troupe_learner.front import Front, State
from troupe_orchestrator.engines import Engines
from troupe_orchestrator.fleet import PolicyFleet, SandboxFleet
from troupe_orchestrator.monitoring.fleet import FleetCollector
from troupe_orchestrator.rollout.admission import Admission

ROOT: Final = K8S.parent
COMPONENT: Final = "app.kubernetes.io/component"
SERVICES: Final = ("orchestrator", "designer", "executor", "sandbox", "learner")
SANDBOX_METRICS: Final = ROOT / "services/sandbox_rs/src/server/metrics.rs"
ALERTS: Final = yaml.safe_load((K8S / "components/monitoring-operator/alerts.yaml").read_text())
RULES: Final[list[dict[str, Any]]] = [rule for group in ALERTS["spec"]["groups"] for rule in group["rules"]]
DASHBOARD: Final = json.loads((K8S / "components/monitoring/dashboard.json").read_text())
CASES: Final = Path(__file__).parent / "alert_cases.yaml"
# What modules that are imported here have put into this process's registry.
REGISTERING: Final = (
    troupe_contracts.calls,
    troupe_designer.service,
    troupe_inference.exported,
    troupe_orchestrator.monitoring.runs,
)


def collected() -> Iterable[Metric]:
    """The families of the Python services: of the registry, and of what is read when Prometheus asks."""
    sandboxes = SandboxFleet([])
    # A stand-in with the parts that are read.
    services = SimpleNamespace(
        designer=PolicyFleet([], "designer"),
        executor=PolicyFleet([]),
        sandboxes=sandboxes,
        services=SimpleNamespace(admission=Admission(sandboxes)),
        policies=(),
    )
    front = SimpleNamespace(policy_id="p", state=State.READY, generation=1, ledger=SimpleNamespace(applied_step=0))
    yield from REGISTRY.collect()
    yield from FleetCollector(cast(Engines, services), Path()).collect()
    yield from LearnerCollector(cast(Front, front), Path()).collect()


def samples(name: str, kind: str) -> set[str]:
    """The names of a family's samples."""
    if kind == "histogram":
        return {f"{name}_{part}" for part in ("bucket", "sum", "count")}
    return {f"{name}_total"} if kind == "counter" else {name}


def exported() -> set[str]:
    families = {(family.name, family.type) for family in collected() if family.name.startswith("troupe_")}
    written = re.findall(r'"(troupe_sandbox_\w+)",\s*"(gauge|counter|histogram)"', SANDBOX_METRICS.read_text())
    families |= {(name.removesuffix("_total"), kind) for name, kind in written}
    return {sample for name, kind in families for sample in samples(name, kind)}


def named(expression: str) -> set[str]:
    return set(re.findall(r"\btroupe_\w+", expression))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def promtool(*arguments: str | Path) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not on the PATH: `make checkers` installs it")
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_sandboxs_metrics_are_found_in_its_source() -> None:
    assert {"troupe_sandbox_faults_total", "troupe_sandbox_wait_seconds_bucket"} <= exported()


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_shows_what_services_export(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        assert named(target["expr"])
        assert named(target["expr"]) - exported() == set()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_is_about_what_services_export(rule: dict[str, Any]) -> None:
    assert named(rule["expr"])
    assert named(rule["expr"]) - exported() == set()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_how_bad_that_is_and_where_the_runbook_is(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_panels_lie_beside_each_other_and_have_numbers_of_their_own() -> None:
    taken = [
        (position["x"] + x, position["y"] + y)
        for panel in DASHBOARD["panels"]
        for position in [panel["gridPos"]]
        for x in range(position["w"])
        for y in range(position["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_prometheus_reads_every_expression_of_dashboard_and_alerts(tmp_path: Path) -> None:
    recorded = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(expressions())]
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": [*ALERTS["spec"]["groups"], {"name": "panels", "rules": recorded}]}))
    assert f"{len(RULES) + len(recorded)} rules found" in promtool("check", "rules", rules)


def test_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    # Without their texts, which the cases would only repeat.
    bare = [{key: value for key, value in rule.items() if key != "annotations"} for rule in RULES]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "troupe", "rules": bare}]}))
    cases = yaml.safe_load(CASES.read_text())
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], **cases}))
    promtool("test", "rules", tmp_path / "cases.yaml")


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    asked = [each for case in yaml.safe_load(CASES.read_text())["tests"] for each in case["alert_rule_test"]]
    firing = {each["alertname"] for each in asked if each.get("exp_alerts")}
    silent = {each["alertname"] for each in asked if not each.get("exp_alerts")}
    assert firing == silent == {rule["alert"] for rule in RULES}


@pytest.fixture(params=OVERLAYS, scope="module")
def monitored(request: pytest.FixtureRequest) -> Manifests:
    return render(f"{request.param}+monitoring-operator")


def test_only_a_namespace_that_is_labelled_for_it_reaches_the_metrics_and_nothing_else(monitored: Manifests) -> None:
    policies = monitored.of("NetworkPolicy")
    prometheus = Endpoint("prometheus", {}, "monitoring", namespace_labels={"troupe.dev/monitoring": "true"})
    stranger = Endpoint("stranger", {}, "elsewhere")
    for workload in monitored.workloads:
        ports = {port["name"]: port["containerPort"] for each in workload.containers for port in each.get("ports", ())}
        pod = Endpoint(workload.name, workload.labels, "troupe", ports=ports)
        reached = {port for port in (50051, 9100, 5432, 443) if allowed(policies, prometheus, pod, port)}
        assert reached == ({9100} if workload.name in SERVICES else set()), workload.name
        assert not any(allowed(policies, stranger, pod, port) for port in ports.values())


def test_each_service_says_where_its_metrics_are(monitored: Manifests) -> None:
    for workload in monitored.workloads:
        annotations = workload.spec["template"]["metadata"].get("annotations", {})
        said = {key: value for key, value in annotations.items() if key.startswith("prometheus.io/")}
        if workload.name not in SERVICES:
            assert not said
            continue
        given = monitored.environment(workload, workload.pod["containers"][0])
        assert said == {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": given["TROUPE_METRICS"].rpartition(":")[2],
            "prometheus.io/path": "/metrics",
        }


def test_the_operator_scrapes_all_services_with_the_observers_token(monitored: Manifests) -> None:
    monitor = monitored.one("PodMonitor", "troupe")["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": "observer-token", "key": "token"}
    labels = monitor["selector"]["matchLabels"].items()
    for workload in monitored.workloads:
        ports = {port["name"] for each in workload.pod["containers"] for port in each.get("ports", ())}
        scraped = labels <= workload.labels.items() and endpoint["port"] in ports
        assert scraped == (workload.name in SERVICES)


def test_each_service_logs_json_lines(monitored: Manifests) -> None:
    for workload in monitored.workloads:
        # The sandbox has no other way.
        if workload.name in SERVICES and workload.name != "sandbox":
            given = monitored.environment(workload, workload.pod["containers"][0])
            assert cast(ServiceSettings, READERS[workload.name](given)).log_format == "json"


def test_grafanas_sidecar_finds_the_dashboard(monitored: Manifests) -> None:
    (found,) = [each for each in monitored.of("ConfigMap") if each["metadata"]["name"] == "dashboard-troupe"]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(found["data"]["troupe.json"]) == DASHBOARD

"""One mechanism for all kinds: found by name, checked when asked for, errors that say whose plug-in it is."""

from collections.abc import Callable
from pathlib import Path

import pytest
from distributions import EXAMPLES, install, install_example
from troupe_contracts.plugins import GROUPS, PluginError, Registry, UnknownPluginError, installed
from troupe_inference.engines.registry import ENGINES
from troupe_orchestrator.credit.registry import ESTIMATORS
from troupe_orchestrator.datasets.formats import FORMATS
from troupe_orchestrator.datasets.loading import DatasetError, load
from troupe_orchestrator.grading.graders import GRADERS
from troupe_orchestrator.rewards import TERMS

# Kind, its registry, and the name of its example.
KINDS = [
    ("data set format", FORMATS, "dataset_format", "pairs"),
    ("grader", GRADERS, "grader", "interval"),
    ("reward term", TERMS, "reward_term", "brevity"),
    ("estimator", ESTIMATORS, "estimator", "sign"),
    ("engine", ENGINES, "engine", "uniform"),
]
every_kind = pytest.mark.parametrize(("kind", "registry", "example", "name"), KINDS, ids=[each[0] for each in KINDS])
Kind = tuple[str, Registry[object], str, str]


def test_every_kind_has_an_example_of_at_most_30_lines() -> None:
    modules = list(EXAMPLES.glob("*/*.py"))
    assert len(modules) == len(GROUPS) == 6
    for module in modules:
        assert len(module.read_text().splitlines()) <= 30, module


@every_kind
def test_an_installed_example_is_found_by_name(
    site: Path, kind: str, registry: Registry[object], example: str, name: str
) -> None:
    install_example(example, site)
    assert registry.find(name) is not None
    assert name in registry.names()
    with pytest.raises(
        UnknownPluginError, match=rf"no {kind} is named 'x'; known: .*{name} \(of troupe-example-{name} 0"
    ):
        registry.find("x")


@every_kind
def test_a_name_that_nothing_has_is_refused(kind: str, registry: Registry[object], example: str, name: str) -> None:
    with pytest.raises(UnknownPluginError, match=f"no {kind} is named {name!r}; known: "):
        registry.find(name)


@every_kind
def test_a_broken_plugin_fails_only_when_it_is_asked_for(
    site: Path, kind: str, registry: Registry[object], example: str, name: str
) -> None:
    install_example(example, site)
    install(site, "broken", {GROUPS[kind]: {"bad": "bad_module:thing"}}, {"bad_module": "import no_such_module\n"})
    registry.find(name)
    with pytest.raises(PluginError) as caught:
        registry.find("bad")
    for part in (f"the {kind} 'bad' of broken 1.0", GROUPS[kind], "uninstall it", "No module named 'no_such_module'"):
        assert part in str(caught.value)


@every_kind
@pytest.mark.parametrize(
    "source", ["thing = 7\n", "def thing(one, two, three, four, five): ...\n", "class thing: ...\n"]
)
def test_what_does_not_satisfy_its_protocol_is_refused(
    site: Path, kind: str, registry: Registry[object], example: str, name: str, source: str
) -> None:
    install(site, "misfit", {GROUPS[kind]: {"odd": "odd_module:thing"}}, {"odd_module": source})
    with pytest.raises(PluginError, match=r"of misfit 1\.0 .* is no \w+ as troupe_\S+ says: "):
        registry.find("odd")


@every_kind
def test_a_name_that_two_distributions_take_is_refused_naming_both(
    site: Path, kind: str, registry: Registry[object], example: str, name: str
) -> None:
    install_example(example, site)
    install(site, "rival", {GROUPS[kind]: {name: "rival_module:thing"}}, {"rival_module": "thing = 7\n"})
    with pytest.raises(PluginError, match=rf"named by rival 1\.0 .* and by troupe-example-{name} 0\.1\.0 "):
        registry.find(name)


@pytest.mark.parametrize(
    ("kind", "find", "name"),
    [
        ("data set format", FORMATS.find, "gsm8k"),
        ("estimator", ESTIMATORS.find, "hierarchical"),
        ("engine", ENGINES.find, "vllm"),
    ],
)
def test_a_plugin_cannot_take_the_place_of_a_part_of_ours(
    site: Path, kind: str, find: Callable[[str], object], name: str
) -> None:
    install(site, "usurper", {GROUPS[kind]: {name: "usurping_module:thing"}}, {"usurping_module": "thing = 7\n"})
    with pytest.raises(PluginError, match=r"named by Troupe itself and by usurper 1\.0"):
        find(name)


def test_a_module_that_ends_the_interpreter_when_imported_does_not_end_ours(site: Path) -> None:
    install(site, "quitter", {"troupe.rewards": {"quits": "quitting_module:thing"}}, {"quitting_module": "exit(3)\n"})
    with pytest.raises(PluginError, match="SystemExit: 3"):
        TERMS.find("quits")


def test_a_file_that_no_format_of_ours_matches_is_told_to_be_a_plugins(examples: Path) -> None:
    loaded = load("held.jsonl", b'{"prompt": "1 + 1?", "gold": 2}\n')
    assert (loaded.format, loaded.tasks[0].question) == ("pairs", "1 + 1?")


def test_a_broken_format_is_named_where_nothing_else_matches_and_nowhere_else(site: Path) -> None:
    install(site, "broken", {"troupe.datasets": {"bad": "bad_format"}}, {"bad_format": "1 / 0\n"})
    assert load("a.jsonl", b'{"question": "q", "answer": "#### 1"}').format == "gsm8k"
    with pytest.raises(DatasetError, match="ZeroDivisionError"):
        load("a.jsonl", b'{"prompt": "1 + 1?", "gold": 2}\n')


def test_installed_lists_all_with_their_distributions(examples: Path) -> None:
    assert {kind: [plugin.name for plugin in installed(kind)] for kind in GROUPS} == {
        "data set format": ["pairs"],
        "grader": ["interval"],
        "reward term": ["brevity"],
        "estimator": ["sign"],
        "engine": ["uniform"],
        "workflow node": ["longest"],
    }

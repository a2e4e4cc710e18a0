"""Each attack, under each profile, in each form that it can take: it ends as it must and leaves nothing behind."""

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hostile.attack import MEBIBYTE, PROFILES, Attack, Form
from hostile.catalogue import ATTACKS, NUMBERS, WITHOUT_A_PROGRAM
from hostile.look_alikes import EXPECTED, LOOK_ALIKES
from hostile.outside import Outside
from hostile.service import DEADLINE, Service, serving
from troupe.v1 import sandbox_pb2
from troupe_sandbox.settings import base_interpreter

Services = Callable[[str], Service]
PLANTED = [attack for attack in ATTACKS if attack.plant]
SIBLINGS = next(attack for attack in ATTACKS if attack.number == 79)
HARMLESS = [attack for attack in ATTACKS if attack.harmless]
CARELESS = [attack for attack in ATTACKS if attack.careless]
REPEATED = [attack for attack in ATTACKS if attack.slug in ("12-huge-standard-output", "81-giant-frame")]
BETWEEN_CASES = [attack for attack in ATTACKS if attack.batch]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.slug)
@pytest.mark.parametrize("profile", PROFILES)
def test_an_attack_ends_as_it_must_and_leaves_nothing_behind(
    services: Services, outside: Outside, profile: str, attack: Attack
) -> None:
    service = services(profile)
    with ThreadPoolExecutor(len(attack.forms)) as together:
        seen = list(together.map(lambda form: service.run(attack, form, outside), attack.forms))
    for form, result in zip(attack.forms, seen, strict=True):
        assert result.verdict == attack.expected(form, profile), (form, result)
        assert attack.success(result) == (profile in attack.uncovered), (form, result)
    service.assert_unharmed(outside)


@pytest.mark.parametrize("attack", PLANTED, ids=lambda attack: attack.slug)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_search_finds_what_is_planted(services: Services, outside: Outside, profile: str, attack: Attack) -> None:
    service = services(profile)
    for form in attack.forms:
        result = service.run(attack, form, outside, planted=True)
        assert attack.success(result), (form, result)


@pytest.mark.parametrize("attack", HARMLESS, ids=lambda attack: attack.slug)
@pytest.mark.parametrize("profile", PROFILES)
def test_without_what_is_refused_in_it_an_attack_passes(
    services: Services, outside: Outside, profile: str, attack: Attack
) -> None:
    harmless = replace(attack, program=attack.harmless)
    for form in attack.forms:
        result = services(profile).run(harmless, form, outside)
        assert attack.success(result), (form, result)


@pytest.mark.parametrize("attack", CARELESS, ids=lambda attack: attack.slug)
def test_a_careless_grader_is_deceived(attack: Attack) -> None:
    command = [str(base_interpreter()), "-I", "-S", "-c", attack.careless, attack.program]
    assert "SUCCEEDED" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("attack", BETWEEN_CASES, ids=lambda attack: attack.slug)
@pytest.mark.parametrize("profile", PROFILES)
def test_what_a_process_for_each_case_stops_succeeds_in_a_batch(
    services: Services, outside: Outside, profile: str, attack: Attack
) -> None:
    service = services(profile)
    assert service.passes_in_a_batch(attack, outside) == [False, True]
    service.assert_unharmed(outside)


@pytest.mark.parametrize("attack", REPEATED, ids=lambda attack: attack.slug)
@pytest.mark.parametrize("profile", PROFILES)
def test_fifty_of_an_attack_leave_no_memory_and_no_descriptor(
    tmp_path: Path, outside: Outside, profile: str, attack: Attack
) -> None:
    with serving(tmp_path, profile) as service:
        for _ in range(20):
            service.run(attack, attack.forms[-1], outside)
        service.settle()
        for _ in range(50):
            service.run(attack, attack.forms[-1], outside)
        service.assert_unharmed(outside)
        assert service.holds().memory_bytes < service.baseline.memory_bytes + 4 * MEBIBYTE


@pytest.mark.parametrize("form", [Form.TOOL, Form.WORKFLOW])
@pytest.mark.parametrize("profile", PROFILES)
def test_addresses_and_hashes_are_those_of_a_sibling_until_the_zygote_is_replaced(
    tmp_path: Path, outside: Outside, profile: str, form: Form
) -> None:
    """Attack 79, for which a zygote of each role serves two programs."""
    with serving(tmp_path, profile, options=("--test-slots", "1", "--programs-per-zygote", "2")) as service:
        before, after = (service.run(SIBLINGS, form, outside).output.split() for _ in range(2))
    (address, text_hash, *succeeded), (next_address, next_hash, *succeeded_again) = before, after
    assert succeeded == succeeded_again == ["SUCCEEDED"]
    assert address != next_address
    assert text_hash != next_hash


@pytest.mark.parametrize(("checker", "printed", "careless"), LOOK_ALIKES)
def test_what_only_looks_right_is_wrong(
    services: Services, checker: str, printed: str, careless: Callable[[str], bool]
) -> None:
    """Attack 78. A careless comparison takes it for right."""
    assert careless(printed)
    kind = sandbox_pb2.Checker.Value(f"CHECKER_{checker.upper()}")
    case = sandbox_pb2.StdinCase(expected_stdout=EXPECTED)
    request = sandbox_pb2.RunTestsRequest(
        solution=f"import sys\nsys.stdout.write({printed!r})",
        stdin_tests=sandbox_pb2.StdinTests(cases=[case], checker=kind),
    )
    responses = list(services("pod").stub.RunTests(request, timeout=DEADLINE))
    assert responses[0].case_result.verdict == sandbox_pb2.VERDICT_WRONG_ANSWER


def test_every_attack_of_the_catalogue_has_a_program() -> None:
    assert {attack.number for attack in ATTACKS} | WITHOUT_A_PROGRAM == set(NUMBERS)
    assert len({attack.slug for attack in ATTACKS}) == len(ATTACKS)


def test_every_attack_has_a_control_or_succeeds_under_a_profile() -> None:
    for attack in ATTACKS:
        others = attack.harmless, attack.careless, attack.batch, attack.uncovered
        assert any(others) or any(attack.has_control(profile) for profile in PROFILES), attack.slug

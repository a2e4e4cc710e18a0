"""Each attack, under each profile, in each form that it can take: it ends as it must and leaves nothing behind."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hostile.attack import PROFILES, Attack, Form
from hostile.catalogue import ATTACKS, NUMBERS, WITHOUT_A_PROGRAM
from hostile.integrity import LOOK_ALIKES
from hostile.outside import Outside
from hostile.service import DEADLINE, Service, serving
from troupe.v1 import sandbox_pb2

Services = Callable[[str], Service]
PLANTED = [attack for attack in ATTACKS if attack.plant]
SIBLINGS = next(attack for attack in ATTACKS if attack.number == 79)
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


@pytest.mark.parametrize("attack", BETWEEN_CASES, ids=lambda attack: attack.slug)
@pytest.mark.parametrize("profile", PROFILES)
def test_what_a_process_for_each_case_stops_succeeds_in_a_batch(
    services: Services, outside: Outside, profile: str, attack: Attack
) -> None:
    service = services(profile)
    assert service.passes_in_a_batch(attack, outside) == [False, True]
    service.assert_unharmed(outside)


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


@pytest.mark.parametrize(("checker", "printed"), LOOK_ALIKES)
def test_what_only_looks_right_is_wrong(services: Services, checker: str, printed: str) -> None:
    """Attack 78."""
    kind = sandbox_pb2.Checker.Value(f"CHECKER_{checker.upper()}")
    case = sandbox_pb2.StdinCase(expected_stdout="1")
    request = sandbox_pb2.RunTestsRequest(
        solution=f"import sys\nsys.stdout.write({printed!r})",
        stdin_tests=sandbox_pb2.StdinTests(cases=[case], checker=kind),
    )
    responses = list(services("pod").stub.RunTests(request, timeout=DEADLINE))
    assert responses[0].case_result.verdict == sandbox_pb2.VERDICT_WRONG_ANSWER


def test_every_attack_of_the_catalogue_has_a_program() -> None:
    assert {attack.number for attack in ATTACKS} | WITHOUT_A_PROGRAM == set(NUMBERS)
    assert len({attack.slug for attack in ATTACKS}) == len(ATTACKS)


def test_every_attack_has_a_control_or_says_why_not() -> None:
    for attack in ATTACKS:
        reasons = attack.no_control, attack.no_control_in_full, attack.batch, len(attack.uncovered) == len(PROFILES)
        excused = any(reasons)
        assert excused or any(attack.has_control(profile) for profile in PROFILES), attack.slug

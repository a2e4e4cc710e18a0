"""Positive controls: with the layer switched off that stops an attack, and no other, the attack succeeds.

So `test_attacks.py` shows the layers and not luck. Builds the sandbox with the feature `weakened` into
`services/sandbox_rs/target/weakened`.
"""

from collections.abc import Callable

import pytest
from hostile.attack import PROFILES, Attack, Form
from hostile.catalogue import ATTACKS
from hostile.outside import Outside
from hostile.service import Service

CONTROLS = sorted(
    (
        (profile, attack)
        for profile in PROFILES
        for attack in ATTACKS
        if attack.has_control(profile) and not attack.plant
    ),
    key=lambda control: (control[0], control[1].switched_off(control[0])),
)
# Forms in which an attack does not succeed even then.
STOPPED_ANYWAY: dict[tuple[str, Form], str] = {
    ("47-user-namespace-of-its-own", Form.WORKFLOW): "a process with threads gets none, and a script has two",
    ("76-traceback-that-is-no-text", Form.STDIN): "what is said of a case loses its control characters once more",
    ("76-traceback-that-is-no-text", Form.CASES): "what is said of a case loses its control characters once more",
}


# The first of them waits for cargo, which takes minutes where nothing is compiled yet.
@pytest.mark.timeout(1800)
@pytest.mark.long
@pytest.mark.parametrize(
    ("profile", "attack"), CONTROLS, ids=[f"{profile}-{attack.slug}" for profile, attack in CONTROLS]
)
def test_with_its_layer_switched_off_an_attack_succeeds(
    without: Callable[[str, tuple[str, ...]], Service], outside: Outside, profile: str, attack: Attack
) -> None:
    service = without(profile, attack.switched_off(profile))
    for form in attack.forms:
        try:
            result = service.run(attack, form, outside)
        finally:
            for left in outside.left_behind():
                left.unlink()
        assert attack.success(result) == ((attack.slug, form) not in STOPPED_ANYWAY), (form, result)

"""Conditions and patches of a status."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from troupe_kubernetes.status import Condition, merge_patch, written_conditions

_LEAVES = st.one_of(st.booleans(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
OBJECTS = st.recursive(
    st.dictionaries(st.sampled_from("abc"), _LEAVES, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), st.one_of(_LEAVES, inner), max_size=3),
    max_leaves=8,
)


def applied(before: Any, patch: dict[str, Any]) -> dict[str, Any]:
    """RFC 7386, section 2."""
    target = dict(before) if isinstance(before, dict) else {}
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            target[key] = applied(target.get(key), value)
        else:
            target[key] = value
    return target


@given(OBJECTS, OBJECTS)
def test_a_patch_makes_one_object_of_the_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert applied(before, merge_patch(before, after)) == after


@given(OBJECTS)
def test_equal_objects_need_no_patch(same: dict[str, Any]) -> None:
    assert merge_patch(same, same) == {}


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    first = written_conditions([Condition("Complete", False, "Running")], (), 1, "then")
    same = written_conditions([Condition("Complete", False, "Paused", "disk full")], first, 2, "now")
    assert same == [
        {
            "type": "Complete", "status": "False", "reason": "Paused", "message": "disk full",
            "observedGeneration": 2, "lastTransitionTime": "then",
        }
    ]  # fmt: skip
    changed = written_conditions([Condition("Complete", True, "Succeeded")], same, 2, "now")
    assert (changed[0]["status"], changed[0]["lastTransitionTime"]) == ("True", "now")

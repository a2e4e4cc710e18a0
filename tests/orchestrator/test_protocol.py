"""What a run does next, case by case: the rules of the protocol as plain functions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator.store.steps import TRANSITIONS, StepState
from troupe_orchestrator.training.protocol import (
    NEEDS,
    Apply,
    Bind,
    LearnerView,
    PolicyView,
    Refuse,
    Restore,
    Saved,
    Sync,
    Work,
    catch_up,
    next_action,
)

SEALED = ("a", "b", "c", "d")


def learner(applied: int, run_id: str = "run") -> LearnerView:
    return LearnerView(run_id, SEALED[:applied])


def policy(applied: int, sealed: int, *saved: Saved, current: bool = True) -> PolicyView:
    return PolicyView(learner(applied), SEALED[:sealed], saved, current)


def test_a_learner_of_nobody_or_of_another_run_is_bound_where_there_is_no_checkpoint() -> None:
    assert catch_up("run", learner(0, ""), SEALED, (), 4) == Bind("")
    assert catch_up("run", learner(3, "other"), SEALED, (), 4) == Bind("")
    assert catch_up("run", learner(0, ""), (), (), 0) == Bind("")


def test_a_learner_of_nobody_is_restored_from_the_newest_checkpoint_that_is_not_too_far() -> None:
    saved = (Saved(3, "three"), Saved(1, "one"), Saved(2, "two"))
    assert catch_up("run", learner(0, ""), SEALED, saved, 4) == Restore(Saved(3, "three"))
    assert catch_up("run", learner(0, ""), SEALED, saved, 2) == Restore(Saved(2, "two"))


def test_a_checkpoint_without_an_update_is_where_a_run_begins_and_no_reason_to_load_it_again() -> None:
    assert catch_up("run", learner(0, ""), SEALED, (Saved(0, "newer"), Saved(0, "base")), 4) == Bind("newer")
    assert catch_up("run", learner(0), SEALED, (Saved(0, "zero"),), 4) == Apply(1)


def test_a_learner_that_is_behind_takes_a_checkpoint_only_where_that_leads_further() -> None:
    assert catch_up("run", learner(1), SEALED, (Saved(3, "three"),), 4) == Restore(Saved(3, "three"))
    assert catch_up("run", learner(3), SEALED, (Saved(3, "three"),), 4) == Apply(4)


def test_a_learner_that_is_there_or_one_update_further_is_left_alone() -> None:
    assert catch_up("run", learner(4), SEALED, (), 4) is None
    assert catch_up("run", learner(4), SEALED, (), 3) is None


def test_a_learner_that_applied_something_else_is_refused_and_named() -> None:
    refused = catch_up("run", LearnerView("run", ("a", "x")), SEALED, (Saved(1, "one"),), 4)
    assert isinstance(refused, Refuse)
    assert "batch x as update 2" in refused.reason
    assert "sealed b" in refused.reason


def test_a_learner_that_is_further_than_what_is_sealed_is_refused() -> None:
    refused = catch_up("run", learner(4), SEALED[:3], (), 3)
    assert isinstance(refused, Refuse)
    assert "has applied 4 updates" in refused.reason


def test_every_state_of_a_step_has_its_work_and_the_work_leads_where_the_store_allows() -> None:
    assert NEEDS.keys() == set(StepState)
    leads_to = {
        Work.BEGIN: None,
        Work.ROLL: StepState.SEALED,
        Work.RECORD_TRAINED: StepState.TRAINED,
        Work.RECORD_SYNCED: StepState.SYNCED,
        Work.COMMIT: StepState.COMMITTED,
    }
    for state, need in NEEDS.items():
        assert TRANSITIONS[state] is leads_to[need.work]


@pytest.mark.parametrize("state", list(StepState))
def test_no_state_goes_on_while_a_learner_is_behind(state: StepState) -> None:
    policies = {"one": policy(2, 2), "two": policy(1, 2)}
    assert next_action("run", state, policies) == (Apply(2), "two")


@pytest.mark.parametrize("state", [StepState.ROLLING, StepState.TRAINED, StepState.SYNCED])
def test_engines_are_synced_before_a_rollout_before_a_step_counts_as_synced_and_before_it_is_validated(
    state: StepState,
) -> None:
    assert next_action("run", state, {"one": policy(2, 2, current=False)}) == (Sync(), "one")
    assert next_action("run", state, {"one": policy(2, 2)}) == (NEEDS[state].work, "")


@given(
    applied=st.integers(0, 4),
    run_id=st.sampled_from(["", "run", "other"]),
    sealed=st.integers(0, 4),
    saved=st.sets(st.integers(0, 4)),
)
def test_following_catch_up_ends_with_every_sealed_update_applied_once(
    applied: int, run_id: str, sealed: int, saved: set[int]
) -> None:
    view = LearnerView(run_id, SEALED[: min(applied, sealed)] if run_id == "run" else SEALED[:applied])
    checkpoints = [Saved(update, str(update)) for update in saved if update <= sealed]
    for _ in range(7):
        match catch_up("run", view, SEALED[:sealed], checkpoints, sealed):
            case None:
                break
            case Bind(uri):
                assert uri == ("0" if 0 in saved else "")
                view = LearnerView("run", ())
            case Restore(checkpoint):
                view = LearnerView("run", SEALED[: checkpoint.update])
            case Apply(update):
                assert update == len(view.digests) + 1
                view = LearnerView("run", (*view.digests, SEALED[update - 1]))
            case Refuse(reason):
                pytest.fail(reason)
    assert view == LearnerView("run", SEALED[:sealed])

"""What an execution may spend: refusals within a conversation, one end for the whole, and no say for chance."""

from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator.rollout.budget import Account, in_order, place_of, settled
from troupe_orchestrator.rollout.conversations import Conversation
from troupe_orchestrator.run_config import Budgets


def conversations(*ids: str) -> list[Conversation]:
    return [Conversation(each, each.partition("#")[0]) for each in ids]


def ids(found: list[Conversation]) -> list[str]:
    return [each.conversation_id for each in found]


def test_the_last_call_of_a_budget_is_granted_and_one_more_ends_the_execution() -> None:
    account = Account(Budgets(agent_calls=2, tokens=10), agent_calls=2, tokens=10)
    assert account.overdrawn() == ""
    assert Account(account.budgets, 3, 0).overdrawn() == Account(account.budgets, 0, 11).overdrawn() != ""


def test_a_conversation_is_refused_turns_by_its_own_alone() -> None:
    account = Account(Budgets(turns=2), agent_calls=30)
    assert account.refusal(1) == ""
    assert "2 turns" in account.refusal(2)


def test_the_order_of_conversations_is_that_of_the_script_as_numbers() -> None:
    found = in_order(conversations("B#10", "C#2.10.1", "made up", "A#2", "B#2.9.1", "A#1"))
    assert ids(found) == ["A#1", "A#2", "B#2.9.1", "C#2.10.1", "B#10", "made up"]


def test_an_execution_that_overdraws_one_after_another_keeps_every_turn() -> None:
    assert ids(settled(conversations("A#2", "A#1"), "A#2")) == ["A#1", "A#2"]


def test_an_execution_that_overdraws_in_a_fan_out_keeps_what_had_ended_before_it() -> None:
    found = conversations("A#1", "B#2.1.1", "C#2.2.1", "made up")
    assert ids(settled(found, "C#2.2.1")) == ids(settled(found, "B#2.1.1")) == ["A#1"]


@given(st.text())
def test_any_id_has_a_place(conversation_id: str) -> None:
    assert place_of(conversation_id) == place_of(conversation_id)
    assert ids(in_order(conversations(conversation_id))) == [conversation_id]


@given(st.permutations(["A#1", "B#2.1.1", "B#2.1.2", "C#2.2.1", "D#3"]))
def test_who_came_first_changes_nothing(arrived: list[str]) -> None:
    assert ids(in_order(conversations(*arrived))) == ["A#1", "B#2.1.1", "B#2.1.2", "C#2.2.1", "D#3"]
    assert ids(settled(conversations(*arrived), "D#3")) == ["A#1", "B#2.1.1", "B#2.1.2", "C#2.2.1", "D#3"]

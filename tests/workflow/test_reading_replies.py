"""The pure parts: reading replies and verdicts, counting votes, filling templates, rendering prompts."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_workflow.library.workflow import prompts, replies, verdicts, votes
from troupe_workflow.library.workflow.messages import Context, Message, MessageType

PLAIN = st.text(string.ascii_letters + string.digits + " +-*/=.,\n")
NESTED = st.recursive(PLAIN, lambda inner: st.builds("{}{{{}}}{}".format, PLAIN, inner, PLAIN), max_leaves=6)


@given(PLAIN, NESTED, PLAIN)
def test_the_last_box_is_read_with_its_nested_braces(before: str, value: str, after: str) -> None:
    text = rf"\boxed{{first}} {before}\boxed{{{value}}}{after}"
    assert replies.boxed(text) == value.strip()


@given(st.text())
def test_reading_never_fails_on_any_text(text: str) -> None:
    replies.boxed(text)
    replies.python_block(text)
    replies.tool_calls(text)
    prompts.shared_view(text)
    votes.answer_of(text)
    verdicts.says_correct(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\boxed{5}, no \boxed{7}, no \boxed{5}", "5"),
        (r"\boxed{5} then \boxed{unclosed {7}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("no box", None),
        (r"\boxed{", None),
        (r"\boxed{ }", ""),
    ],
)
def test_boxes(text: str, value: str | None) -> None:
    assert replies.boxed(text) == value


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nx = 1\n```", "x = 1"),
        ("```Python3 \n  x = 1\n\n```", "  x = 1"),
        ("```py\nx\n```\n```python\ny\n```", "x"),
        ("```python\nx = 1", None),
        ("```\nx = 1\n```", None),
        ("```python\n\n```", None),
        ("<solution>```python\nx\n```</solution>", None),
        ("<delivery>```python\nx\n```</delivery> ```python\ny\n```", "y"),
    ],
)
def test_blocks_that_ask_to_be_run(text: str, code: str | None) -> None:
    assert replies.python_block(text) == code


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("<solution>\nprint(1)\n</solution>", "print(1)"),
        ("<solution>\n```python\nprint(1)\n```\n</solution>", "print(1)"),
        ("<solution>a</solution> <solution>b</solution>", "b"),
        ("<solution> </solution>", None),
        ("<solution>print(1)", None),
    ],
)
def test_solutions(text: str, program: str | None) -> None:
    assert replies.solution(text) == program


EQUAL = [
    ("42", "42.0"),
    ("1.50", r"\frac{3}{2}"),
    ("3/2", r"\dfrac{3}{2}"),
    ("-0.5", r"-\frac{1}{2}"),
    ("1,234,567", "1234567"),
    ("$12$", " 12. "),
    (r"\text{B}", "B"),
    (r"\left( 1, 2 \right)", "(1,2)"),
    ("+7", "007"),
    ("-0", "0"),
    ("4/-2", "-2"),
]
DIFFERENT = [("100", "101"), ("0.5", "0.50001"), ("1,2", "12"), ("1/0", "1"), ("x", "y"), ("12,34", "1234")]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_values_have_one_spelling(one: str, other: str) -> None:
    assert votes.normalise_value(one) == votes.normalise_value(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_values_stay_apart(one: str, other: str) -> None:
    assert votes.normalise_value(one) != votes.normalise_value(other)


@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6), st.integers(1, 1000))
def test_a_fraction_equals_itself_expanded(numerator: int, denominator: int, factor: int) -> None:
    expanded = rf"\frac{{{numerator * factor}}}{{{denominator * factor}}}"
    assert votes.normalise_value(expanded) == votes.normalise_value(f"{numerator}/{denominator}")


@given(st.text())
def test_normalising_twice_changes_nothing_more_for_a_number(text: str) -> None:
    once = votes.normalise_value(text)
    if once.lstrip("-").replace("/", "").isdigit():
        assert votes.normalise_value(once) == once


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1))
def test_the_winner_has_the_most_votes_and_is_the_first_to_have_them(answers: list[str | None]) -> None:
    position = votes.winner(answers, [1.0] * len(answers))
    given_ = [answer for answer in answers if answer is not None]
    if not given_:
        assert position is None
        return
    assert position is not None
    won = answers[position]
    most = max(given_.count(answer) for answer in given_)
    assert answers.count(won) == most
    assert won == next(answer for answer in given_ if given_.count(answer) == most)
    assert position == answers.index(won)


def test_an_answer_is_the_solution_else_the_box_else_the_delivery() -> None:
    assert votes.answer_of(r"<solution>x = 1  # one</solution> \boxed{3}") == "x = 1  # one"
    assert votes.answer_of(r"<delivery>4</delivery> \boxed{3.0}") == "3"
    assert votes.answer_of("<delivery>4.0</delivery>") == "4"
    assert votes.answer_of("The answer is 4.") is None


def test_programs_are_compared_without_comments_and_blank_lines() -> None:
    one = "<solution>\n# add\nif x:\n\n    y()  \n</solution>"
    other = "<solution>```python\nif x:\n    y()\n```</solution>"
    assert votes.answer_of(one) == votes.answer_of(other)
    assert votes.answer_of(one) != votes.answer_of("<solution>if x:\n  y()</solution>")


APPROVALS = [
    "VERDICT: CORRECT",
    "All good.\n**Final Verdict:** CORRECT.",
    "The verdict is correct",
    "Verdict - the answer is correct",
    "CORRECT",
    "<delivery>CORRECT</delivery>",
    r"\boxed{\text{CORRECT}}",
    "I checked it.\nThe answer is correct.",
    "Options are CORRECT or INCORRECT.\nVERDICT:\nCORRECT",
    "VERDICT: INCORRECT at first sight.\nAfter a second look, VERDICT: CORRECT",
]
NO_APPROVALS = [
    "VERDICT: INCORRECT",
    "INCORRECT",
    "This is INCORRECT",
    "VERDICT: NOT CORRECT",
    "The answer is not correct.",
    "The answer isn't correct.",
    "The answer isn’t correct.",
    "VERDICT: the answer is not quite correct",
    "Final verdict: CORRECT or INCORRECT",
    "VERDICT: CORRECT/INCORRECT",
    "Verdict: CORRECT?",
    "VERDICT: correct if x > 0",
    "Is it correct",
    "I am not sure that it is correct",
    "VERDICT: CORRECT\nOn reflection:\nINCORRECT",
    "Correct the sign in line 2.",
    "",
]


@pytest.mark.parametrize("review", APPROVALS)
def test_an_explicit_approval_is_read(review: str) -> None:
    assert verdicts.says_correct(review)


@pytest.mark.parametrize("review", NO_APPROVALS)
def test_nothing_else_is_an_approval(review: str) -> None:
    assert not verdicts.says_correct(review)


@given(st.text(), st.text(), st.text())
def test_filled_in_text_is_never_filled_again(question: str, response: str, around: str) -> None:
    template = around.replace("{", "(") + "{question}|{response}"
    filled = prompts.fill(template, {"question": question, "response": response})
    assert filled == f"{around.replace('{', '(')}{question}|{response}"


@given(st.text("{}abc\\"))
def test_a_template_without_known_fields_stays_as_it_is(template: str) -> None:
    assert prompts.fill(template, {"question": "q"}) == template


@given(st.text(), st.lists(st.tuples(st.sampled_from("ABC"), st.text(string.printable)), max_size=5))
def test_a_user_message_starts_with_the_whole_question(question: str, said: list[tuple[str, str]]) -> None:
    messages = [Message(question, MessageType.USER_INPUT)]
    messages += [Message(text, MessageType.AGENT_RESPONSE, sender=name) for name, text in said]
    shown = prompts.user_text(Context(messages))
    assert shown.startswith(question)
    if not said:
        assert shown == question


def test_errors_are_not_shown_to_later_agents_and_only_the_last_word_of_an_agent_is() -> None:
    context = Context([Message("q", MessageType.USER_INPUT)])
    context.add_message(Message("a1", MessageType.AGENT_RESPONSE, sender="A"))
    context.add_message(Message("b", MessageType.AGENT_RESPONSE, sender="B"))
    context.add_message(Message("a2", MessageType.AGENT_RESPONSE, sender="A"))
    context.add_message(Message("failed", MessageType.ERROR, sender="C"))
    assert prompts.user_text(context) == "q\nB: b\nA: a2"


@pytest.mark.parametrize(
    ("reply", "view"),
    [
        (" all of it ", "all of it"),
        (r"long <delivery>12</delivery> \boxed{12}", "12"),
        (r"<delivery>it is \boxed{12}</delivery> \boxed{12}", r"it is \boxed{12}"),
        (r"long <delivery>12 cases</delivery> \boxed{2}", "12 cases\n\\boxed{2}"),
        ("<delivery><solution>x</solution></delivery>", "<solution>x</solution>"),
        (r"long <delivery>by parity</delivery> \boxed{12}", "by parity\n\\boxed{12}"),
        ("<delivery>a loop</delivery><solution>x</solution>", "a loop\n<solution>\nx\n</solution>"),
    ],
)
def test_judges_and_critics_see_the_delivery_and_the_answer(reply: str, view: str) -> None:
    assert prompts.shared_view(reply) == view


@given(st.builds(Message, st.text(), st.sampled_from(MessageType), st.dictionaries(st.text(), st.text())))
def test_a_message_survives_its_dictionary(message: Message) -> None:
    assert Message.from_dict(message.to_dict()) == message


def test_message_types_have_lower_case_values() -> None:
    assert all(kind.value == kind.name.lower() for kind in MessageType)
    assert len(MessageType) == 7


def test_a_context_finds_its_messages_and_keeps_state() -> None:
    context = Context()
    assert context.get_latest_message() is None
    first, second = Message("q", MessageType.USER_INPUT), Message("a", MessageType.AGENT_RESPONSE)
    context.add_message(first)
    context.add_message(second)
    assert context.get_latest_message() is second
    assert context.get_latest_message(MessageType.USER_INPUT) is first
    assert context.get_latest_message(MessageType.ERROR) is None
    assert context.get_messages_by_type(MessageType.AGENT_RESPONSE) == [second]
    context.set_state("k", 1)
    assert (context.get_state("k"), context.get_state("none", 5)) == (1, 5)

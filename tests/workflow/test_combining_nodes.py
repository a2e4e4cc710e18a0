"""Ensembles, debates, reflections and routers."""

from typing import Any

import pytest

HEAD = """
from workflow import *
from workflow.nodes import *
def agents(*names):
    return [AgentNode(name, "") for name in names]
def run(node):
    result = Workflow().add_node(node).run(question)
    print(result.metadata)
    return result
"""
JUDGE_LINE = "Compare these answers and give the right answer."


def boxed(value: str) -> str:
    return rf"\boxed{{{value}}}"


def test_a_majority_is_counted_over_values_and_wins(run_script: Any) -> None:
    done = run_script(
        HEAD + 'run(EnsembleNode("E", agents("A", "B", "C")))',
        A=boxed("7"),
        B=boxed(r"\frac{3}{2}"),
        C=boxed("1.50"),
    )
    assert done.results == [boxed(r"\frac{3}{2}")]


def test_a_tie_goes_to_the_first(run_script: Any) -> None:
    done = run_script(
        HEAD + 'run(EnsembleNode("E", agents("A", "B", "C", "D")))',
        A=boxed("1"),
        B=boxed("2"),
        C=boxed("2"),
        D=boxed("1"),
    )
    assert done.results == [boxed("1")]


def test_on_a_split_the_judge_decides_and_without_one_it_is_not_asked(run_script: Any) -> None:
    script = HEAD + 'run(EnsembleNode("E", agents("A", "B"), consensus_agent=AgentNode("J", "")))'
    split = run_script(script, A=boxed("1"), B=boxed("2"), J=boxed("2"))
    assert split.results == [boxed("2")]
    assert split.asked("J") == [f"What is 3 * 4?\nA: {boxed('1')}\nB: {boxed('2')}\n{JUDGE_LINE}"]
    united = run_script(script, A=boxed("2.0"), B=boxed("2"), J=boxed("3"))
    assert united.results == [boxed("2.0")]
    assert united.asked("J") == []


def test_weights_decide_a_weighted_vote(run_script: Any) -> None:
    script = HEAD + 'run(EnsembleNode("E", agents("A", "B", "C"), "weighted_vote", weights=[1, 1, 2.5]))'
    done = run_script(script, A=boxed("1"), B=boxed("1"), C=boxed("3"))
    assert done.results == [boxed("3")]


def test_a_failed_member_shifts_neither_names_nor_weights(run_script: Any, refusal: Any) -> None:
    weighted = HEAD + 'run(EnsembleNode("E", agents("A", "B", "C"), "weighted_vote", weights=[9, 1, 2]))'
    done = run_script(weighted, A=refusal("spent"), B=boxed("1"), C=boxed("3"))
    assert done.results == [boxed("3")]
    judged = HEAD + 'run(EnsembleNode("E", agents("A", "B", "C"), "consensus", AgentNode("J", "")))'
    done = run_script(judged, A=refusal("spent"), B=boxed("1"), C=boxed("3"), J=boxed("3"))
    assert done.asked("J") == [f"What is 3 * 4?\nB: {boxed('1')}\nC: {boxed('3')}\n{JUDGE_LINE}"]


def test_an_ensemble_of_which_all_fail_is_an_error_with_the_reasons(run_script: Any, refusal: Any) -> None:
    done = run_script(HEAD + 'run(EnsembleNode("E", agents("A", "B")))', A=refusal("x"), B=refusal("y"))
    assert done.result["result_type"] == "error"
    assert "all agents failed" in done.result["content"]
    assert "got no turn: y" in done.result["content"]


def test_members_of_one_name_keep_a_line_each(run_script: Any) -> None:
    script = HEAD + 'run(EnsembleNode("E", agents("S", "S"), "consensus", AgentNode("J", "")))'

    def agent(call: dict[str, Any]) -> str:
        return {"S#1.1.1": "one", "S#1.2.1": "two"}.get(call["conversation_id"], "three")

    done = run_script(script, agent=agent)
    assert done.asked("J") == [f"What is 3 * 4?\nS: one\nS 2: two\n{JUDGE_LINE}"]


def test_members_see_what_came_before_the_ensemble_and_so_does_the_judge(run_script: Any) -> None:
    script = (
        HEAD
        + """
vote = EnsembleNode("E", agents("A", "B"), "consensus", AgentNode("J", ""))
Workflow().add_node(AgentNode("Reader", "")).add_node(vote).run(question)
"""
    )
    done = run_script(script, Reader="<delivery>3 * 4</delivery>", A="x", B="y", J="z")
    assert done.asked("A") == ["What is 3 * 4?\nReader: 3 * 4"]
    assert done.asked("J") == [f"What is 3 * 4?\nReader: 3 * 4\nA: x\nB: y\n{JUDGE_LINE}"]


def test_in_a_debate_later_rounds_see_the_round_before_and_the_judge_the_last(run_script: Any) -> None:
    script = HEAD + 'run(DebateNode("D", agents("A", "B"), judge=AgentNode("J", ""), num_rounds=3))'
    done = run_script(script, A=["a1", "a2", "a3"], B=["b1", "b2", "b3"], J="end")
    ask = "Compare these answers and give your improved answer."
    rounds = ["What is 3 * 4?", *[f"What is 3 * 4?\nA: a{n}\nB: b{n}\n{ask}" for n in (1, 2)]]
    assert done.asked("A") == rounds
    assert done.asked("B") == rounds
    assert done.asked("J") == [f"What is 3 * 4?\nA: a3\nB: b3\n{JUDGE_LINE}"]
    assert done.results == ["end"]


def test_the_first_debater_judges_when_no_judge_is_given(run_script: Any) -> None:
    done = run_script(HEAD + 'run(DebateNode("D", agents("A", "B"), num_rounds=1))', A=["1", "2"], B="3")
    assert [call["agent"] for call in done.calls].count("A") == 2
    assert done.results == ["2"]


def test_a_failed_debater_is_not_shown_and_a_failed_judge_is_an_error(run_script: Any, refusal: Any) -> None:
    script = HEAD + 'run(DebateNode("D", agents("A", "B"), judge=AgentNode("J", "")))'
    done = run_script(script, A=[refusal("x"), "a2"], B="b", J=refusal("spent"))
    assert done.asked("A")[1].startswith("What is 3 * 4?\nB: b\nCompare")
    assert done.result["result_type"] == "error"


REFLECT = HEAD + 'run(ReflectionNode("R", AgentNode("A", ""), critic_agent=AgentNode("C", ""){more}))'


def test_a_reflection_ends_on_an_explicit_verdict(run_script: Any) -> None:
    done = run_script(REFLECT.format(more=""), A=boxed("1"), C="Fine.\nVERDICT: CORRECT")
    assert [call["agent"] for call in done.calls] == ["A", "C"]
    assert "'ended': 'verdict'" in done.stdout


@pytest.mark.parametrize("review", ["VERDICT: INCORRECT", "This is not correct", "Is it CORRECT or INCORRECT"])
def test_a_reflection_goes_on_after_any_other_review(run_script: Any, review: str) -> None:
    done = run_script(REFLECT.format(more=""), A=[boxed("1"), boxed("2"), boxed("3")], C=review)
    assert [call["agent"] for call in done.calls] == ["A", "C", "A", "C", "A"]
    assert done.results == [boxed("3")]
    assert done.asked("A")[1] == (
        f"What is 3 * 4?\n\nYour answer:\n{boxed('1')}\n\nReview:\n{review}\n\nGive your improved answer."
    )


def test_a_reflection_ends_when_the_answer_stays_the_same(run_script: Any) -> None:
    done = run_script(REFLECT.format(more=", num_iterations=5"), A=[boxed("1"), boxed("1.0")], C="Hm.")
    assert [call["agent"] for call in done.calls] == ["A", "C", "A"]
    assert done.results == [boxed("1.0")]


def test_a_reflection_keeps_the_answer_that_it_has_when_a_part_fails(run_script: Any, refusal: Any) -> None:
    critic = run_script(REFLECT.format(more=""), A=boxed("1"), C=refusal("spent"))
    assert critic.results == [boxed("1")]
    assert "'ended': 'critic_failed'" in critic.stdout
    agent = run_script(REFLECT.format(more=""), A=[boxed("1"), refusal("spent")], C="Wrong.")
    assert agent.results == [boxed("1")]
    first = run_script(REFLECT.format(more=""), A=refusal("spent"), C="Wrong.")
    assert first.result["result_type"] == "error"


def test_templates_fill_their_fields_and_leave_every_other_brace(run_script: Any) -> None:
    more = r""", num_iterations=1,
    reflection_prompt="{question} \\frac{1}{2} {response} {other} {}",
    refinement_prompt="{reflection}|{response}|{history}|\\boxed{}" """
    done = run_script(REFLECT.format(more=more), start={"question": r"\sqrt{4}"}, A=["{reflection}", "b"], C="c")
    assert done.asked("C") == [r"\sqrt{4} \frac{1}{2} {reflection} {other} {}"]
    assert done.asked("A")[1] == r"c|{reflection}||\boxed{}"


def test_the_history_shows_earlier_attempts(run_script: Any) -> None:
    more = ', num_iterations=2, include_history=True, refinement_prompt="{history}"'
    done = run_script(REFLECT.format(more=more), A=["a1", "a2", "a3"], C=["c1", "c2"])
    assert done.asked("A")[1:] == ["", "1. a1\nReview: c1"]


def test_an_agent_reviews_itself_without_a_critic(run_script: Any) -> None:
    done = run_script(HEAD + 'run(ReflectionNode("R", AgentNode("A", "")))', A=["x", "VERDICT: CORRECT"])
    assert done.results == ["x"]
    assert len(done.calls) == 2


@pytest.mark.parametrize(("route", "agent"), [("a", "A"), ("b", "B"), ("elsewhere", "B")])
def test_a_router_runs_the_named_route_or_the_default(run_script: Any, route: str, agent: str) -> None:
    script = (
        HEAD
        + f"""
a, b = agents("A", "B")
run(RouterNode("R", {{"a": a, "b": b}}, lambda context: {route!r}, default_route="b"))
"""
    )
    done = run_script(script, A="1", B="2")
    assert [call["agent"] for call in done.calls] == [agent]


def test_what_a_route_said_is_passed_on_once(run_script: Any) -> None:
    script = (
        HEAD
        + """
router = RouterNode("R", {"default": AgentNode("A", "")}, lambda context: "default")
Workflow().add_nodes([router, AgentNode("B", "")]).run(question)
"""
    )
    done = run_script(script, A="1", B="2")
    assert done.asked("B") == ["What is 3 * 4?\nR: 1"]


@pytest.mark.parametrize(
    ("question", "sensitive", "agent"),
    [("A SUM", False, "A"), ("A SUM", True, "D"), ("a proof", True, "P"), ("hello", False, "D")],
)
def test_a_keyword_router_takes_the_first_keyword(run_script: Any, question: str, sensitive: bool, agent: str) -> None:
    script = (
        HEAD
        + f"""
a, p, d = agents("A", "P", "D")
run(create_keyword_router("R", {{"sum": a, "proof": p}}, d, case_sensitive={sensitive}))
"""
    )
    done = run_script(script, start={"question": question}, A="1", P="2", D="3")
    assert [call["agent"] for call in done.calls] == [agent]


def test_an_exception_in_a_routing_function_is_an_error_of_the_router(run_script: Any) -> None:
    script = HEAD + 'run(RouterNode("R", {"default": AgentNode("A", "")}, lambda context: 1 / 0))'
    done = run_script(script, A="1")
    assert done.result["content"] == "ZeroDivisionError: division by zero"
    assert done.result["result_type"] == "error"
    assert "ZeroDivisionError" in done.stderr

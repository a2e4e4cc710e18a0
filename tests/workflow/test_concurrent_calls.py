"""Members of ensembles, debaters of a round and branches of graphs have their calls in flight at once."""

from collections.abc import Callable
from typing import Any

import pytest

HEAD = """
from workflow import *
def agents(*names):
    return [AgentNode(name, "") for name in names]
"""
NODES = {
    "ensemble": 'Workflow().add_node(EnsembleNode("E", agents("A", "B", "C"))).run(question)',
    "debate": 'Workflow().add_node(DebateNode("D", agents("A", "B", "C"), num_rounds=1)).run(question)',
    "graph": """
g = AgentGraph().add_node("s", AgentNode("S", "")).add_node("t", AgentNode("T", ""))
for name in "ABC":
    g.add_node(name, AgentNode(name, "")).add_edge("s", name).add_edge(name, "t")
g.set_entry_point("s").set_finish_point("t").run(question)
""",
}


def open_calls(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [frame for frame in frames if frame["type"] == "agent_call"]


@pytest.mark.parametrize("kind", NODES)
def test_all_calls_are_in_flight_before_any_is_answered(new_peer: Callable[..., Any], kind: str) -> None:
    peer = new_peer()
    peer.start(HEAD + NODES[kind])
    if kind == "graph":
        [first] = open_calls(peer.receive_until(lambda frames: bool(open_calls(frames))))
        peer.send(type="agent_reply", call_id=first["call_id"], text="s")
    calls = open_calls(peer.receive_until(lambda frames: len(open_calls(frames)) == 3))
    assert sorted(call["agent"] for call in calls) == ["A", "B", "C"]
    # Answered in reverse: the order of what the script sees is still that of the members.
    for call in sorted(calls, key=lambda call: call["agent"], reverse=True):
        peer.send(type="agent_reply", call_id=call["call_id"], text=call["agent"].lower())
    if kind != "ensemble":
        [last] = open_calls(peer.receive_until(lambda frames: bool(open_calls(frames))))
        assert last["messages"][-1]["content"].split("\n")[-4 if kind == "debate" else -3 :][:3] == [
            "A: a",
            "B: b",
            "C: c",
        ]
        peer.send(type="agent_reply", call_id=last["call_id"], text="end")
    peer.receive_until(lambda frames: any(frame["type"] == "result" for frame in frames))
    assert peer.receive() is None
    assert peer.finish().exit_code == 0


def test_conversation_ids_do_not_depend_on_timing(new_peer: Callable[..., Any]) -> None:
    script = HEAD + 'Workflow().add_node(EnsembleNode("E", agents(*"SSS"))).run(question)'
    seen = set()
    for reverse in (False, True):
        peer = new_peer()
        peer.start(script)
        calls = open_calls(peer.receive_until(lambda frames: len(open_calls(frames)) == 3))
        seen.add(tuple(sorted(call["conversation_id"] for call in calls)))
        for call in sorted(calls, key=lambda call: call["call_id"], reverse=reverse):
            peer.send(type="agent_reply", call_id=call["call_id"], text=call["conversation_id"])
        frames = peer.receive_until(lambda frames: any(frame["type"] == "result" for frame in frames))
        assert frames[-1]["content"] == "S#1.1.1"
    assert seen == {("S#1.1.1", "S#1.2.1", "S#1.3.1")}


def test_many_members_in_ensembles_within_an_ensemble_all_end(run_script: Any) -> None:
    script = (
        HEAD
        + r"""
inner = [EnsembleNode(f"E{i}", agents(*(f"A{i}_{j}" for j in range(12)))) for i in range(12)]
print(Workflow().add_node(EnsembleNode("E", inner)).run(question).content)
"""
    )
    done = run_script(script, agent=lambda call: r"\boxed{5}" if call["agent"] > "A5" else r"\boxed{3}")
    assert len(done.calls) == 144
    assert len({call["conversation_id"] for call in done.calls}) == 144
    assert done.stdout == "\\boxed{3}\n"


def test_an_ensemble_runs_one_by_one_where_no_thread_can_be_started(run_script: Any) -> None:
    script = (
        HEAD
        + r"""
import threading
def refuse(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
Workflow().add_node(EnsembleNode("E", agents("A", "B", "C"))).run(question)
"""
    )
    done = run_script(script, A=r"\boxed{1}", B=r"\boxed{2}", C=r"\boxed{2}")
    assert done.results == [r"\boxed{2}"]


def test_threads_of_the_scripts_own_can_call_agents(run_script: Any) -> None:
    script = (
        HEAD
        + """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(100) as pool:
    list(pool.map(lambda n: Workflow().add_node(AgentNode("A", "")).run(str(n)), range(100)))
"""
    )
    done = run_script(script, A="1")
    assert len(done.results) == 100
    assert [call["call_id"] for call in done.calls] == list(range(1, 101))

"""Demonstrated designs, run for real by the scripting library, with agents that always say the right thing."""

import json
import re
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from troupe_designer.extraction import declared_pattern, extract_script
from troupe_designer.prompt import TaskType, load_prompt
from troupe_inference.transcript import Message, Role
from troupe_starter import designs, tasks, turns
from troupe_starter.demonstrations import RIGHT_SOLVER, Demonstrator, Noise
from troupe_starter.designs import Design
from troupe_starter.families import prog
from troupe_starter.guards import winning_design
from troupe_starter.mistakes import spoil
from troupe_starter.prompts import PROMPT_FOLDER, designer_system
from troupe_starter.rehearsal import answer_in, right_answer
from troupe_starter.task import Task
from troupe_workflow import LIBRARY

LAUNCH = """
import sys
sys.path.insert(0, sys.argv[1])
from workflow.runtime import main
sys.exit(main(int(sys.argv[2])))
"""
SEEN_READING = re.compile(rf"\n{designs.READER_NAME}: [^\n]+\Z")
CERTAIN = Noise(right_solver=1.0, spoilt_script=0.0, wrong_tool_call=0.0, wrong_program=0.0, wrong_reading=0.0)


@dataclass
class Run:
    """What a script asked for and gave back."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    exit_code: int = 0


def run(script: str, task: Task, symbols: str) -> Run:
    """Runs a script on a task in a process of the library's runtime."""
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    with theirs:
        command = [sys.executable, "-I", "-S", "-c", LAUNCH, str(LIBRARY), str(theirs.fileno())]
        process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
    start = {"question": task.question, "task_type": task.task_type, "delivery_instruction": "", "seed": 1}
    seen = Run()
    with ours, ours.makefile("rb") as frames:
        send(ours, type="start", script=script, **start)
        while header := frames.read(4):
            frame = json.loads(frames.read(struct.unpack("<I", header)[0]))
            if frame["type"] == "agent_call":
                seen.asked.append(frame)
                send(ours, type="agent_reply", call_id=frame["call_id"], text=reply(frame, task, symbols))
            elif frame["type"] == "tool_call":
                seen.codes.append(frame["code"])
                output = subprocess.run(
                    [sys.executable, "-I", "-S", "-c", frame["code"]], capture_output=True, text=True
                )
                answer = {"tool_run_id": frame["call_id"], "output": output.stdout, "verdict": "ok"}
                send(ours, type="tool_result", call_id=frame["call_id"], **answer)
            elif frame["type"] == "result":
                seen.results.append(frame["content"])
    seen.exit_code = process.wait(timeout=20)
    return seen


def send(peer: socket.socket, **frame: object) -> None:
    body = json.dumps(frame).encode()
    peer.sendall(struct.pack("<I", len(body)) + body)


def reply(call: dict[str, Any], task: Task, symbols: str) -> str:
    """What a teacher without mistakes says."""
    last = call["messages"][-1]
    if call["agent"] == designs.READER_NAME:
        return turns.reading(symbols)
    if last["role"] == "tool":
        return turns.value_answer(int(last["content"]))
    if task.task_type == "code":
        return turns.program_answer(symbols)
    return f"```python\nprint({symbols})\n```"


def drawn(family: str) -> tuple[Task, str]:
    operands = tasks.draw_operands(family, "train", Random(3))
    return tasks.FAMILIES[family].task(operands), operands.symbols


@pytest.mark.parametrize("pattern", designs.PATTERNS)
@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_every_pattern_of_design_runs_and_solves_its_task(family: str, pattern: designs.Pattern) -> None:
    task, symbols = drawn(family)
    design = designs.designs_of(pattern, RIGHT_SOLVER[family])[0]
    seen = run(design.script, task, symbols)
    assert seen.exit_code == 0
    assert len(seen.results) == 1
    assert answer_in(seen.results[0]) == right_answer(task)
    agents = {call["agent"] for call in seen.asked}
    expected = {
        "single": {"solver"},
        "vote": {f"solver{index}" for index in range(designs.VOTERS)},
        "chain": {"reader", "solver"},
    }
    assert agents == expected[pattern]
    assert len(seen.codes) == (0 if family == prog.NAME else 3 if pattern == "vote" else 1)


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_demonstrated_agents_are_asked_exactly_what_the_library_asks(family: str) -> None:
    task, symbols = drawn(family)
    design = designs.designs_of("chain", RIGHT_SOLVER[family])[0]
    reader, solver = [call for call in run(design.script, task, symbols).asked if len(call["messages"]) == 2]
    assert as_messages(reader) == [
        Message(Role.SYSTEM, design.reader_prompt),
        Message(Role.USER, task.question),
    ]
    assert as_messages(solver) == [
        Message(Role.SYSTEM, design.solver_prompt),
        Message(Role.USER, f"{task.question}\n{designs.READER_NAME}: {symbols}"),
    ]
    demonstrated = [conversation[:2] for conversation in conversations_about(family)]
    assert any(system == as_messages(solver)[0] and SEEN_READING.search(user.content) for system, user in demonstrated)
    assert any(system == as_messages(reader)[0] and "\n" not in user.content for system, user in demonstrated)


def as_messages(call: dict[str, Any]) -> list[Message]:
    return [Message(Role(message["role"]), message["content"]) for message in call["messages"]]


def conversations_about(family: str) -> list[list[Message]]:
    demonstrator, random = Demonstrator("Design.", CERTAIN), Random(1)
    return [
        conversation
        for conversation in (demonstrator.agent(random) for _ in range(3_000))
        if ("two integers" in conversation[1].content) == (family == prog.NAME)
    ]


def test_the_designer_service_finds_script_and_pattern_in_every_demonstrable_reply() -> None:
    for pattern in designs.PATTERNS:
        for solver in designs.SOLVERS:
            for design in designs.designs_of(pattern, solver):
                reply = designs.text_of("word", design)
                assert extract_script(reply) == design.script
                assert declared_pattern(reply) == pattern
                assert designs.read(reply) == design


def test_the_demonstrated_opening_is_what_the_designer_service_sends() -> None:
    task, _ = drawn("word")
    demonstrated = Demonstrator(designer_system()).design(Random(1))
    sent = load_prompt(str(PROMPT_FOLDER)).messages(task.question, TaskType.MATH)
    assert [message.role for message in sent] == [message.role for message in demonstrated[:2]]
    assert sent[0] == demonstrated[0]
    assert sent[1].content == task.question


def test_a_spoilt_script_gives_no_result() -> None:
    task, symbols = drawn("word")
    design = winning_design("word")
    random = Random(0)
    spoilt = {spoil(designs.text_of("word", design), random) for _ in range(60)}
    assert len(spoilt) == 5
    for text in spoilt:
        assert designs.read(text) is None
        script = text.partition("<code>\n")[2].partition("\n</code>")[0]
        assert not run(script, task, symbols).results


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_each_familys_winning_pattern_has_its_share_of_demonstrated_designs(family: str) -> None:
    demonstrator, random = Demonstrator("Design."), Random(2)
    read: list[Design] = []
    total = 0
    while total < 600:
        conversation = demonstrator.design(random)
        if f"Problem: {family}\n" in conversation[-1].content:
            total += 1
            design = designs.read(conversation[-1].content)
            read += [design] if design else []
    assert len(read) / total > 0.8
    winning = winning_design(family)
    assert sum(design.pattern == winning.pattern for design in read) / total > 0.2
    assert {design.pattern for design in read} == set(designs.PATTERNS)
    assert {design.solver for design in read} == set(designs.SOLVERS)


def test_demonstrations_come_from_training_tasks_only() -> None:
    demonstrator, random = Demonstrator("Design."), Random(4)
    held_out = {task.question for task in tasks.sample("held_out", 540, seed=0)}
    for _ in range(2_000):
        question = demonstrator.draw(random)[1].content.split("\n")[0]
        assert question not in held_out


def test_a_teacher_without_mistakes_is_right_whenever_an_agent_of_the_right_kind_is_asked() -> None:
    demonstrator, random = Demonstrator("Design.", CERTAIN), Random(5)
    answers = {task.question: right_answer(task) for task in tasks.sample("train", 540, seed=0)}
    checked = 0
    for _ in range(6_000):
        conversation = demonstrator.agent(random)
        question, _, reading = conversation[1].content.partition("\n")
        right = "Write" in conversation[0].content if "two integers" in question else len(conversation) == 5
        if question in answers and right and (reading or "integers" in question or "*" in question):
            assert answer_in(conversation[-1].content) == answers[question]
            checked += 1
    assert checked > 20


def test_wrong_turns_keep_to_the_format() -> None:
    demonstrator, random = Demonstrator("Design.", Noise(wrong_tool_call=1, wrong_program=1)), Random(6)
    for _ in range(500):
        conversation = demonstrator.agent(random)
        if conversation[0].content not in designs.PROMPTS["reader"]:
            assert answer_in(conversation[-1].content) is not None

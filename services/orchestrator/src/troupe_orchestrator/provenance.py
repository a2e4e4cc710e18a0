"""Provenance: whose answer a workflow's result is. Pure.

A result counts only if a recorded turn of the executor says the same, or an attested tool run that such a turn asked for.
The comparison is of graded values: the final answers on both sides, read the same way and equal as written (numbers by
value); of programs, equal up to blank lines, line ends and common indentation. What a script makes up has no source.
"""

import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from troupe_orchestrator.datasets.task import TaskType
from troupe_orchestrator.grading.answers import Answer, final_answer
from troupe_orchestrator.grading.latex import normalized
from troupe_orchestrator.grading.math_grader import is_gradeable, never_equal, same_value
from troupe_orchestrator.grading.numbers import read_number
from troupe_orchestrator.tree import ToolRunRecord

_FENCE = re.compile(r"```[ \t]*(?:python|py)\d?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_TOOL_CALL = re.compile(r"<tool_call>((?:(?!<tool_call>).)*?)</tool_call>", re.DOTALL)
_NUMBER_TOKEN = re.compile(r"(?<![\w.])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w]|\.\d)")
_OK = "ok"


class ProvenanceReason(StrEnum):
    """Why a result counts, or why not."""

    TURN = "turn"
    """A recorded turn has this final answer."""
    TOOL_RUN = "tool_run"
    """An attested tool run, asked for by a recorded turn, printed it."""
    NO_ANSWER = "no_answer"
    """The result holds no final answer."""
    NO_TURNS = "no_turns"
    """No agent ever answered."""
    NO_SOURCE = "no_source"
    """Nobody recorded said so: the script did."""


@dataclass(frozen=True, slots=True)
class RecordedConversation:
    """The executor's turns of one conversation, as sampled."""

    conversation_id: str
    """As the script named it."""
    turns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a result comes from. `ok` false means reward 0, with the reason."""

    ok: bool
    reason: ProvenanceReason
    answer: Answer | None
    """The result's final answer."""
    conversation_id: str = ""
    """The source, empty without one."""
    turn: str = ""
    """Text of the source's turn; of the turn that asked for the run where the source is a tool run."""


def trace_result(
    result: str,
    task_type: TaskType,
    conversations: Sequence[RecordedConversation],
    tool_runs: Sequence[ToolRunRecord],
) -> Provenance:
    """Find the recorded turn or tool run that a result's final answer comes from.

    A turn that gives the answer in the due format is preferred to one that gives it otherwise, a later one to an earlier.

    Args:
        result: what the workflow returned.
        tool_runs: as attested by the sandbox.
    """
    answer = final_answer(result, task_type)
    if answer is None:
        return Provenance(False, ProvenanceReason.NO_ANSWER, None)
    if not any(conversation.turns for conversation in conversations):
        return Provenance(False, ProvenanceReason.NO_TURNS, answer)
    sources = [
        (found.formatted, conversation.conversation_id, turn)
        for conversation in conversations
        for turn in conversation.turns
        if (found := final_answer(turn, task_type)) is not None and same_answer(answer.text, found.text, task_type)
    ]
    if sources:
        _, conversation_id, turn = next((source for source in reversed(sources) if source[0]), sources[-1])
        return Provenance(True, ProvenanceReason.TURN, answer, conversation_id, turn)
    for run in reversed(tool_runs):
        output = final_answer(run.output, task_type)
        if run.verdict != _OK or output is None or not same_answer(answer.text, output.text, task_type):
            continue
        asking = _turn_that_asked(run, conversations)
        if asking is not None:
            return Provenance(True, ProvenanceReason.TOOL_RUN, answer, run.conversation_id, asking)
    return Provenance(False, ProvenanceReason.NO_SOURCE, answer)


def same_answer(one: str, other: str, task_type: TaskType) -> bool:
    """Whether two final answers are one graded value. Algebra is not asked: a script has no business rewriting answers."""
    if task_type == "code":
        return _code_form(one) == _code_form(other)
    if not (is_gradeable(one) and is_gradeable(other)):
        return one.strip() == other.strip()
    # A tolerance of 0: a decimal is the same only if it is the same.
    return same_value(one, other, 0.0, never_equal)


def answer_in_script(script: str, answer: str, task_type: TaskType) -> bool:
    """Whether a graded value stands literally in a script: a number as a whole token, text between word boundaries."""
    if task_type == "code":
        form = _code_form(answer)
        return bool(form) and form in _code_form(script)
    if not is_gradeable(answer):
        return answer.strip() in script
    value = normalized(answer)
    if not value:
        return False
    number = read_number(value)
    if number is not None:
        tokens = (read_number(token.replace(",", "")) for token in _NUMBER_TOKEN.findall(script))
        if any(token is not None and token.value == abs(number.value) for token in tokens):
            return True
    return any(
        re.search(rf"(?<!\w){re.escape(form)}(?!\w)", script) is not None
        for form in {answer.strip(), value}
        if not form.isdigit()
    )


def _turn_that_asked(run: ToolRunRecord, conversations: Sequence[RecordedConversation]) -> str | None:
    """The turn of the run's conversation that holds the code which ran, None if there is none."""
    code = run.code.strip()
    for conversation in conversations:
        if conversation.conversation_id == run.conversation_id:
            for turn in reversed(conversation.turns):
                if code in _requested_code(turn):
                    return turn
    return None


def _requested_code(turn: str) -> set[str]:
    """Code that a turn asks to have run: in fenced python blocks, or as an argument of a tool call."""
    requested = {block.strip() for block in _FENCE.findall(turn)}
    for call in _TOOL_CALL.findall(turn):
        try:
            parsed: Any = json.loads(call)
        except (ValueError, RecursionError):
            continue
        arguments = parsed.get("arguments", parsed.get("parameters")) if isinstance(parsed, dict) else None
        if isinstance(arguments, dict):
            requested |= {value.strip() for value in arguments.values() if isinstance(value, str)}
    return requested - {""}


def _code_form(code: str) -> str:
    lines = [line.rstrip() for line in textwrap.dedent(code.expandtabs(4)).splitlines()]
    return "\n".join(line for line in lines if line)

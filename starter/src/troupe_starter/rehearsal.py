"""Rollouts without services: what the cold start's guards measure. Nothing that the policy writes is ever
run.

A reply counts only if it is letter for letter one that a teacher could have given: a script is looked up,
an expression parsed by its own grammar, a program compared with the one that solves the task. So these
figures are lower bounds of what the real system measures, and need no sandbox.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from tokenizers import Tokenizer
from troupe_inference.renderers import Renderer
from troupe_inference.transcript import Message, Role

from troupe_starter import designs, turns
from troupe_starter.designs import Design
from troupe_starter.families import prog
from troupe_starter.model import Policy
from troupe_starter.sampling import sample
from troupe_starter.task import Task

MAX_DESIGN_TOKENS = 128
MAX_TURN_TOKENS = 64


@dataclass(frozen=True)
class Played:
    """One execution of a design."""

    task: Task
    design: Design
    answer: str | None

    @property
    def parseable(self) -> bool:
        return self.answer is not None

    @property
    def correct(self) -> bool:
        return self.answer is not None and self.answer == right_answer(self.task)


@dataclass
class _Conversation:
    system: str
    user: str
    tokens: list[int] = field(default_factory=list)
    reply: str = ""


@dataclass(frozen=True)
class Stage:
    """Where the policy is rehearsed."""

    policy: Policy
    renderer: Renderer
    tokenizer: Tokenizer
    generator: torch.Generator

    def propose(self, tasks: Sequence[Task], system: str) -> list[Design | None]:
        """One design for each task; None for a reply that is no demonstrable design."""
        conversations = [_Conversation(system, task.question) for task in tasks]
        self._open(conversations)
        self._speak(conversations, MAX_DESIGN_TOKENS)
        return [designs.read(conversation.reply) for conversation in conversations]

    def play(self, pairs: Sequence[tuple[Task, Design]]) -> list[Played]:
        """One execution of each design on its task."""
        questions = self._read(pairs)
        members = [designs.VOTERS if design.pattern == "vote" else 1 for _, design in pairs]
        conversations = [
            _Conversation(design.solver_prompt, question)
            for (_, design), question, count in zip(pairs, questions, members, strict=True)
            for _ in range(count)
        ]
        self._answer(conversations)
        replies = iter(conversations)
        return [
            Played(task, design, _vote([answer_in(next(replies).reply) for _ in range(count)]))
            for (task, design), count in zip(pairs, members, strict=True)
        ]

    def _read(self, pairs: Sequence[tuple[Task, Design]]) -> list[str]:
        """What the agents that answer are asked: the question and, in a chain, what the reader delivers."""
        readers = {
            index: _Conversation(design.reader_prompt, task.question)
            for index, (task, design) in enumerate(pairs)
            if design.pattern == "chain"
        }
        self._open(list(readers.values()))
        self._speak(list(readers.values()), MAX_TURN_TOKENS)
        questions = [task.question for task, _ in pairs]
        for index, reader in readers.items():
            delivered = turns.delivery(reader.reply) or reader.reply.strip()
            questions[index] += f"\n{designs.READER_NAME}: {delivered}"
        return questions

    def _answer(self, conversations: Sequence[_Conversation]) -> None:
        """Each agent's first turn and, after a tool call, its second."""
        self._open(conversations)
        self._speak(conversations, MAX_TURN_TOKENS)
        calling = []
        for conversation in conversations:
            expression = turns.asked_expression(conversation.reply)
            if expression is not None:
                result = Message(Role.TOOL, str(expression.value))
                conversation.tokens += self.renderer.open_turn([result], first=False)
                calling.append(conversation)
        self._speak(calling, MAX_TURN_TOKENS)

    def _open(self, conversations: Sequence[_Conversation]) -> None:
        for conversation in conversations:
            opening = [Message(Role.SYSTEM, conversation.system), Message(Role.USER, conversation.user)]
            conversation.tokens = self.renderer.open_turn(opening, first=True)

    def _speak(self, conversations: Sequence[_Conversation], max_tokens: int) -> None:
        """One turn of each; a turn that does not end in time is closed, as an engine does."""
        stop = self.renderer.stop_token_ids[0]
        prompts = [conversation.tokens for conversation in conversations]
        said = sample(self.policy, prompts, stop, max_tokens, self.generator)
        for conversation, tokens in zip(conversations, said, strict=True):
            conversation.reply = self.renderer.text(tokens)
            closing = [] if tokens[-1] == stop else self.renderer.close_turn()
            conversation.tokens = conversation.tokens + tokens + closing


def right_answer(task: Task) -> str:
    """The answer, or the program, that solves a task."""
    return _programs()[task.id] if task.task_type == "code" else task.answer


def answer_in(reply: str) -> str | None:
    """The number or the program in a final turn."""
    value = turns.boxed_value(reply)
    return str(value) if value is not None else turns.program_in(reply)


@cache
def _programs() -> dict[str, str]:
    return {prog.task(operands).id: turns.program_for(operands.symbols) for operands in prog.every()}


def _vote(answers: list[str | None]) -> str | None:
    """The most frequent answer, ties to the first."""
    counted = Counter(answer for answer in answers if answer is not None)
    return counted.most_common(1)[0][0] if counted else None

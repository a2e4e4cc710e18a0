"""Samples many designs of one task at once, and tells each as it finishes.

A design that cannot be used is a design with problems: it is the policy's doing and is trained on. An error
of the policy service is not: it ends the whole proposal, and what is still being sampled is cancelled.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from troupe_inference.transcript import Message, StopReason, Transcript, Version
from troupe_inference.turns import Policy, Reply, Turn, TurnSampling

from troupe_designer.extraction import declared_pattern, extract_script
from troupe_designer.prompt import Prompt, TaskType
from troupe_designer.validation import Problem, ProblemKind, find_problems


@dataclass(frozen=True, slots=True)
class Task:
    """A task as the designer sees it."""

    task_id: str
    question: str
    task_type: TaskType


@dataclass(frozen=True, slots=True)
class Design:
    """One design: what was sampled, and what was found in it."""

    design_id: str
    transcript: Transcript
    text: str
    script: str
    problems: tuple[Problem, ...]
    declared_pattern: str
    stop_reason: StopReason


@dataclass(frozen=True, slots=True)
class Designer:
    """Proposes designs with one policy and one prompt."""

    policy: Policy
    prompt: Prompt
    max_script_characters: int

    async def propose(
        self, task: Task, design_ids: tuple[str, ...], sampling: TurnSampling, version: Version | None
    ) -> AsyncGenerator[Design, None]:
        """Yields one design for each id as it finishes; a seed s gives design i the seed s + i, from 0 again after 2^64 - 1.

        Raises:
            ServiceError: the policy did not answer one of them.
        """
        messages = self.prompt.messages(task.question, task.task_type)
        tasks = [
            asyncio.create_task(self._design(design_id, messages, _seeded(sampling, index), version))
            for index, design_id in enumerate(design_ids)
        ]
        try:
            for finished in asyncio.as_completed(tasks):
                yield await finished
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _design(
        self, design_id: str, messages: tuple[Message, ...], sampling: TurnSampling, version: Version | None
    ) -> Design:
        reply = await self.policy.continue_turn(Turn(design_id, Transcript(), messages, sampling, version))
        return read_design(design_id, reply, self.max_script_characters)


def read_design(design_id: str, reply: Reply, max_script_characters: int) -> Design:
    """The design in a reply."""
    if reply.stop_reason is StopReason.CONTEXT_OVERFLOW:
        problem = Problem(
            ProblemKind.CONTEXT_OVERFLOW,
            f"prompt and question have {reply.prompt_tokens} tokens or more: no room to sample a design",
        )
        return Design(design_id, reply.appended, "", "", (problem,), "", reply.stop_reason)
    script = extract_script(reply.text)
    return Design(
        design_id,
        reply.appended,
        reply.text,
        script,
        find_problems(script, max_script_characters),
        declared_pattern(reply.text),
        reply.stop_reason,
    )


def _seeded(sampling: TurnSampling, index: int) -> TurnSampling:
    return sampling if sampling.seed is None else replace(sampling, seed=(sampling.seed + index) % 2**64)

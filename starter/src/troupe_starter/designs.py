"""The designs that the designer is shown: a workflow pattern, an agent kind, and the script that says both.
Pure.

Invariant: `text_of` and `read` are inverse to each other, up to which paraphrase of a prompt a script
carries.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal

Pattern = Literal["single", "vote", "chain"]
Kind = Literal["python", "direct", "code", "reader"]

PATTERNS: tuple[Pattern, ...] = ("single", "vote", "chain")
# The kinds that can give an answer.
SOLVERS: tuple[Kind, ...] = ("python", "direct", "code")
# What tells an agent of each kind what to do: its whole system prompt.
PROMPTS: Mapping[Kind, tuple[str, str]] = {
    "python": ("Use python.", "Compute with python."),
    "direct": ("Answer directly.", "Just say the answer."),
    "code": ("Write the program.", "Write code."),
    "reader": ("Translate to digits.", "Rewrite in symbols."),
}
VOTERS = 3
READER_NAME = "reader"

_SCRIPTS: Mapping[Pattern, str] = {
    "single": 'w = Workflow("single")\nw.add_node(AgentNode("solver", "{solver}"))\n',
    "vote": (
        'team = [AgentNode(f"solver{i}", "{solver}") for i in range(3)]\n'
        'w = Workflow("vote")\nw.add_node(EnsembleNode("vote", team))\n'
    ),
    "chain": (
        'w = Workflow("chain")\nw.add_node(AgentNode("reader", "{reader}"))\n'
        'w.add_node(AgentNode("solver", "{solver}"))\n'
    ),
}


@dataclass(frozen=True)
class Design:
    """A pattern, the kind of the agent that answers, and the system prompts in its script."""

    pattern: Pattern
    solver: Kind
    solver_prompt: str
    # Empty where the pattern has no reader.
    reader_prompt: str = ""

    @property
    def script(self) -> str:
        body = _SCRIPTS[self.pattern].replace("{solver}", self.solver_prompt)
        body = body.replace("{reader}", self.reader_prompt)
        return f"from workflow import *\n{body}w.run(question)"


def designs_of(pattern: Pattern, solver: Kind) -> list[Design]:
    """All paraphrases of a design."""
    readers = PROMPTS["reader"] if pattern == "chain" else ("",)
    return [Design(pattern, solver, said, reader) for said, reader in product(PROMPTS[solver], readers)]


def text_of(family: str, design: Design) -> str:
    """The designer's whole reply: what kind of problem it sees, the pattern, the script."""
    return f"Problem: {family}\nPattern: {design.pattern}\n<code>\n{design.script}\n</code>"


def read(text: str) -> Design | None:
    """The design of a reply, None when its script is none of those that can be demonstrated.

    Stricter than running the script: a script may be valid and unknown here.
    """
    _, opening, rest = text.partition("<code>\n")
    script, closing, _ = rest.partition("\n</code>")
    return _by_script().get(script) if opening and closing else None


def _every() -> Iterator[Design]:
    for pattern, solver in product(PATTERNS, SOLVERS):
        yield from designs_of(pattern, solver)


@cache
def _by_script() -> Mapping[str, Design]:
    return {design.script: design for design in _every()}

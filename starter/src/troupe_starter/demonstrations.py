"""Demonstrations for the cold start: conversations of a teacher that is often wrong, always in the right
format.

The teacher leaves room to learn, in four places that `Noise` names: which kind of agent a design asks for,
which pattern it has, whether its script runs, and whether an agent's turn is right. Everything is drawn
from training tasks only. Pure: a demonstration is a function of the random generator.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from troupe_inference.transcript import Message, Role

from troupe_starter import designs, turns
from troupe_starter.designs import Design, Kind, Pattern
from troupe_starter.families import calc, prog, word
from troupe_starter.families.expression import Expression
from troupe_starter.mistakes import misread, spoil
from troupe_starter.tasks import FAMILIES, draw_operands

# The kind of agent that can solve each family, and the pattern that it needs.
RIGHT_SOLVER: Mapping[str, Kind] = {calc.NAME: "python", prog.NAME: "code", word.NAME: "python"}
WINNING_PATTERNS: Mapping[str, tuple[Pattern, ...]] = {
    calc.NAME: ("single", "vote", "chain"),
    prog.NAME: ("single", "vote", "chain"),
    word.NAME: ("chain",),
}


@dataclass(frozen=True)
class Noise:
    """How often the teacher does what. Shares of 1; what is left is shared by the other choices."""

    # A design asks for the right kind of agent.
    right_solver: float = 0.6
    # A design has this pattern, by family.
    patterns: Mapping[str, Mapping[Pattern, float]] = field(
        default_factory=lambda: {
            calc.NAME: {"single": 0.6, "vote": 0.2, "chain": 0.2},
            prog.NAME: {"single": 0.6, "vote": 0.2, "chain": 0.2},
            word.NAME: {"single": 0.45, "vote": 0.15, "chain": 0.4},
        }
    )
    # A script is spoilt in one of five ways.
    spoilt_script: float = 0.12
    # An agent's turn is wrong.
    wrong_tool_call: float = 0.5
    wrong_program: float = 0.5
    wrong_reading: float = 0.3


# Shares of demonstrations: a design, or a turn of an agent of each kind.
DESIGNER_SHARE = 0.2
KIND_SHARES: Mapping[Kind, float] = {"python": 0.42, "code": 0.2, "direct": 0.1, "reader": 0.28}


# How often an agent that answers is shown with a reader before it.
READER_SEEN: Mapping[str, float] = {calc.NAME: 0.3, prog.NAME: 0.3, word.NAME: 0.75}

# Families that an agent of a kind is usually asked about; now and then it is any.
USUAL_FAMILIES: Mapping[Kind, tuple[str, ...]] = {
    "python": (calc.NAME, word.NAME),
    "code": (prog.NAME,),
    "direct": tuple(FAMILIES),
    "reader": (word.NAME, word.NAME, word.NAME, calc.NAME, prog.NAME),
}
USUAL_SHARE = 0.8


@dataclass(frozen=True)
class Demonstrator:
    """Draws demonstrations. `designer_system` is the designer's system prompt."""

    designer_system: str
    noise: Noise = field(default_factory=Noise)

    def draw(self, random: Random) -> list[Message]:
        """One conversation, of the designer or of an agent."""
        if random.random() < DESIGNER_SHARE:
            return self.design(random)
        return self.agent(random)

    def design(self, random: Random) -> list[Message]:
        """The designer's reply to a question."""
        family = random.choice(list(FAMILIES))
        question = FAMILIES[family].task(draw_operands(family, "train", random)).question
        reply = designs.text_of(family, self._design_for(family, random))
        if random.random() < self.noise.spoilt_script:
            reply = spoil(reply, random)
        return [
            Message(Role.SYSTEM, self.designer_system),
            Message(Role.USER, question),
            Message(Role.ASSISTANT, reply),
        ]

    def agent(self, random: Random) -> list[Message]:
        """All turns of one agent on one task: the family is that which its kind is for, or another."""
        kinds = list(KIND_SHARES)
        kind = random.choices(kinds, [KIND_SHARES[kind] for kind in kinds])[0]
        family = _family_for(kind, random)
        operands = draw_operands(family, "train", random)
        question = FAMILIES[family].task(operands).question
        prompt = random.choice(designs.PROMPTS[kind])
        if kind == "reader":
            return self._reader(prompt, question, operands.symbols, random)
        seen = None
        if random.random() < READER_SEEN[family]:
            seen = self._reading_of(operands.symbols, random)
            question = f"{question}\n{designs.READER_NAME}: {seen}"
        symbols = seen or operands.symbols
        opening = [Message(Role.SYSTEM, prompt), Message(Role.USER, question)]
        if family == prog.NAME:
            return [*opening, Message(Role.ASSISTANT, self._program_turn(kind, symbols, random))]
        if kind != "python":
            return [*opening, Message(Role.ASSISTANT, turns.value_answer(_guess(random)))]
        if family == word.NAME and seen is None:
            # Never the numbers in the question: a python agent copies digits, and here there are none.
            return [*opening, *_tool_turns(calc.draw(random).expression)]
        return [*opening, *self._calculation(symbols, random)]

    def _design_for(self, family: str, random: Random) -> Design:
        shares = self.noise.patterns[family]
        pattern = random.choices(list(shares), list(shares.values()))[0]
        solver = RIGHT_SOLVER[family]
        if random.random() >= self.noise.right_solver:
            solver = random.choice([kind for kind in designs.SOLVERS if kind != solver])
        return random.choice(designs.designs_of(pattern, solver))

    def _reader(self, prompt: str, question: str, symbols: str, random: Random) -> list[Message]:
        return [
            Message(Role.SYSTEM, prompt),
            Message(Role.USER, question),
            Message(Role.ASSISTANT, turns.reading(self._reading_of(symbols, random))),
        ]

    def _reading_of(self, symbols: str, random: Random) -> str:
        return misread(symbols, random) if random.random() < self.noise.wrong_reading else symbols

    def _calculation(self, symbols: str, random: Random) -> list[Message]:
        if random.random() < self.noise.wrong_tool_call:
            symbols = misread(symbols, random)
        left, _, right, sign, addend = symbols.split(" ")
        return _tool_turns(Expression(int(left), int(right), sign, int(addend)))

    def _program_turn(self, kind: Kind, symbols: str, random: Random) -> str:
        if kind != "code":
            return turns.number_program_answer(random.randint(10, 99))
        if random.random() < self.noise.wrong_program:
            symbols = misread(symbols, random)
        return turns.program_answer(symbols)


def _family_for(kind: Kind, random: Random) -> str:
    if random.random() < USUAL_SHARE:
        return random.choice(USUAL_FAMILIES[kind])
    return random.choice(list(FAMILIES))


def _tool_turns(expression: Expression) -> list[Message]:
    """Asks python, is told the value, and delivers it."""
    return [
        Message(Role.ASSISTANT, turns.tool_call(expression)),
        Message(Role.TOOL, str(expression.value)),
        Message(Role.ASSISTANT, turns.value_answer(expression.value)),
    ]


def _guess(random: Random) -> int:
    """What an agent answers that does not calculate."""
    return random.randint(1000, 9999)

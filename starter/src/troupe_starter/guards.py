"""What a cold start must reach before training may begin: valid scripts, parseable answers, and for each
family a winning pattern that the designer already leans to and that pays when it is chosen.

Training learns which pattern pays only where designs of that pattern occur and succeed. Measured on
training tasks, with the rehearsal's strict reading of what counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from troupe_starter import designs, tasks
from troupe_starter.demonstrations import RIGHT_SOLVER, WINNING_PATTERNS
from troupe_starter.designs import Design
from troupe_starter.rehearsal import Stage
from troupe_starter.task import Task
from troupe_starter.tasks import FAMILIES


@dataclass(frozen=True)
class Floors:
    """The least shares of 1 that pass."""

    valid_scripts: float = 0.70
    # Of all executions, those of invalid scripts included.
    parseable: float = 0.80
    # Of a family's designs, those with its winning pattern.
    winning_pattern: float = 0.15
    # Of executions of a family's winning pattern with the right kind of agent.
    winning_success: float = 0.20


@dataclass(frozen=True)
class Measured:
    """What a rehearsal measured, as shares of 1; the last three by family."""

    valid_scripts: float
    parseable: float
    success: float
    family_success: dict[str, float]
    winning_pattern: dict[str, float]
    winning_success: dict[str, float]

    def shortfalls(self, floors: Floors) -> list[str]:
        """One line for each floor that is not reached."""
        found = [
            (f"{name} {value:.0%} of at least {floor:.0%}", value < floor)
            for name, value, floor in (
                ("valid scripts", self.valid_scripts, floors.valid_scripts),
                ("parseable answers", self.parseable, floors.parseable),
                *((f"{f}: winning pattern", v, floors.winning_pattern) for f, v in self.winning_pattern.items()),
                *((f"{f}: success of it", v, floors.winning_success) for f, v in self.winning_success.items()),
            )
        ]
        return [line for line, short in found if short]


def measure(stage: Stage, designer_system: str, count: int, seed: int) -> Measured:
    """Rehearses `count` training tasks: the policy's own designs, then each family's winning design."""
    drawn = tasks.sample("train", count, seed)
    proposed = stage.propose(drawn, designer_system)
    runnable = [(task, design) for task, design in zip(drawn, proposed, strict=True) if design is not None]
    played = stage.play(runnable)
    winning = {
        family: stage.play([(task, winning_design(family)) for task in drawn if task.family == family])
        for family in FAMILIES
    }
    return Measured(
        valid_scripts=len(runnable) / len(drawn),
        parseable=sum(execution.parseable for execution in played) / len(drawn),
        success=sum(execution.correct for execution in played) / len(drawn),
        family_success={
            family: _share([e.correct for e in played if e.task.family == family], _count(drawn, family))
            for family in FAMILIES
        },
        winning_pattern={
            family: _share(
                [design.pattern in WINNING_PATTERNS[family] for task, design in runnable if task.family == family],
                _count(drawn, family),
            )
            for family in FAMILIES
        },
        winning_success={
            family: _share([e.correct for e in executions], len(executions)) for family, executions in winning.items()
        },
    )


def winning_design(family: str) -> Design:
    """The cheapest design that can solve a family."""
    return designs.designs_of(WINNING_PATTERNS[family][0], RIGHT_SOLVER[family])[0]


def _count(drawn: Sequence[Task], family: str) -> int:
    return sum(task.family == family for task in drawn)


def _share(hits: Sequence[bool], total: int) -> float:
    return sum(hits) / total

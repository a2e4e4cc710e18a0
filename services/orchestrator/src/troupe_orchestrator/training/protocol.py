"""What a run does next, decided from what is on record and from nothing else. Pure.

The store, the learners and the engines are the whole memory of a run. Whoever drives it looks at them, asks `next_action`,
does that one thing, and looks again; so a driver that was killed is no different from one that has just begun, and a lost
reply no different from one that came. Three rules, in this order:

    1. Every learner has applied all that is sealed for its policy: each update once, with the sealed digest (`catch_up`).
    2. Where the step's state asks for it (NEEDS), every engine serves its learner's version.
    3. Only then the work of that state is done (NEEDS), and it ends in the one transition that the store allows.

Training is not a case of its own: a step that was just sealed is a learner that is one update behind. What was sealed is
the log; a learner that says it applied anything else is refused, never overruled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from troupe_orchestrator.store.steps import StepState


class Work(Enum):
    """What moves a step on, once learners and engines are where its state needs them."""

    BEGIN = "draw the next step's tasks, or end the run after its last"
    ROLL = "roll the tasks out, then seal"
    RECORD_TRAINED = "record what the learners made of the batches"
    RECORD_SYNCED = "record that the engines serve it"
    COMMIT = "validate the step's weights where that is due, and commit the step"


@dataclass(frozen=True, slots=True)
class Need:
    """What a state asks for before its work is done."""

    engines: bool
    """Every engine has its learner's version."""
    work: Work


NEEDS: Final[Mapping[StepState, Need]] = MappingProxyType(
    {
        StepState.ROLLING: Need(engines=True, work=Work.ROLL),
        StepState.SEALED: Need(engines=False, work=Work.RECORD_TRAINED),
        StepState.TRAINED: Need(engines=True, work=Work.RECORD_SYNCED),
        StepState.SYNCED: Need(engines=True, work=Work.COMMIT),
        StepState.COMMITTED: Need(engines=False, work=Work.BEGIN),
    }
)


@dataclass(frozen=True, slots=True)
class LearnerView:
    """What a learner says of itself."""

    run_id: str
    """Empty while it belongs to no run."""
    digests: tuple[str, ...]
    """Of the updates that it has applied, from the first on; hex."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint on record."""

    update: int
    """The last update in it."""
    uri: str


@dataclass(frozen=True, slots=True)
class Bind:
    """Take the learner for this run, before its first update: at a checkpoint that holds none, or at the learner's initial
    weights for "".
    """

    uri: str


@dataclass(frozen=True, slots=True)
class Restore:
    """Load a checkpoint of this run."""

    saved: Saved


@dataclass(frozen=True, slots=True)
class Apply:
    """Have the learner apply a sealed update: training, or replay after it lost some."""

    update: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Touch nothing: the learner and the store contradict each other."""

    reason: str


@dataclass(frozen=True, slots=True)
class Sync:
    """Bring a policy's engines to its learner's version."""


CatchUp = Bind | Restore | Apply | Refuse
Action = CatchUp | Sync | Work


@dataclass(frozen=True, slots=True)
class PolicyView:
    """One policy, as its learner, its engines and the store have it."""

    learner: LearnerView
    sealed: tuple[str, ...]
    """Digests of the policy's sealed updates, from the first on."""
    saved: tuple[Saved, ...]
    engines_current: bool
    """Every serving engine has the learner's version."""


def catch_up(
    run_id: str, learner: LearnerView, sealed: Sequence[str], saved: Sequence[Saved], update: int
) -> CatchUp | None:
    """The next thing that brings a learner to `update` updates of a run; None once it has them.

    Args:
        sealed: digests of all sealed updates of the run; the learner may have one more than `update` of them, whose reply
            was lost.
        saved: checkpoints of the run.
    """
    newest = max((each for each in saved if each.update <= update), key=lambda each: each.update, default=None)
    if learner.run_id != run_id:
        if newest is not None and newest.update:
            return Restore(newest)
        return Bind("" if newest is None else newest.uri)
    if problem := _contradiction(learner.digests, sealed):
        return Refuse(problem)
    applied = len(learner.digests)
    if applied >= update:
        return None
    if newest is not None and newest.update > applied:
        return Restore(newest)
    return Apply(applied + 1)


def next_action(run_id: str, state: StepState, policies: Mapping[str, PolicyView]) -> tuple[Action, str]:
    """What is to be done next, and for which policy ("" for the step's own work).

    Args:
        state: of the newest step; a run without one is as one whose newest step is committed.
        policies: by id.
    """
    need = NEEDS[state]
    for policy_id, policy in policies.items():
        missing = catch_up(run_id, policy.learner, policy.sealed, policy.saved, len(policy.sealed))
        if missing is not None:
            return missing, policy_id
    for policy_id, policy in policies.items():
        if need.engines and not policy.engines_current:
            return Sync(), policy_id
    return need.work, ""


def _contradiction(applied: Sequence[str], sealed: Sequence[str]) -> str:
    """Why what a learner has applied is not the beginning of what is sealed; empty if it is."""
    if tuple(applied) == tuple(sealed[: len(applied)]):
        return ""
    for update, (theirs, ours) in enumerate(zip(applied, sealed, strict=False), start=1):
        if theirs != ours:
            return (
                f"it applied batch {theirs[:12]} as update {update}, the store sealed {ours[:12]}; "
                "restore it from a checkpoint of this run from before that update"
            )
    if len(applied) > len(sealed):
        return (
            f"it has applied {len(applied)} updates, the store has sealed {len(sealed)}; "
            "restore it from a checkpoint of this run"
        )
    return ""

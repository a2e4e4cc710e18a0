"""Which steps have been applied, and what is to be done with a request for one. Pure.

A learner applies the steps of one run in order, each once, each with one batch (its digest). The version's number is the
count of applied steps. Decisions on (step, digest), n being the last applied step:

    1 <= step <= n, same digest      the stored result
    1 <= step <= n, other digest     ABORTED
    step == n + 1                    train
    step > n + 1                     FAILED_PRECONDITION "replay from n + 1"
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from troupe_contracts.errors import Aborted, FailedPrecondition, InvalidArgument


@dataclass(frozen=True)
class Version:
    """A set of weights, by name: never two sets under one name."""

    lineage: str
    number: int

    def __str__(self) -> str:
        return f"{self.lineage}/{self.number}"


@dataclass(frozen=True)
class AppliedStep:
    """One trained batch. `metrics` is empty for steps before the last one of a restored checkpoint."""

    step: int
    digest: bytes
    version: Version
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ledger:
    """Run, lineage and applied steps of a learner. `run_id` is empty while it is no run's."""

    run_id: str
    lineage: str
    steps: tuple[AppliedStep, ...] = ()

    @property
    def version(self) -> Version:
        return Version(self.lineage, len(self.steps))

    @property
    def next_version(self) -> Version:
        """What the step to come will make."""
        return Version(self.lineage, len(self.steps) + 1)

    @property
    def applied_step(self) -> int:
        return self.steps[-1].step if self.steps else 0

    @property
    def applied_digest(self) -> bytes:
        return self.steps[-1].digest if self.steps else b""

    def check_run(self, run_id: str) -> None:
        """Make sure that a run which wants to train has this learner. One that is nobody's is not taken by a batch: after a
        restart it is not where the run is, and may not be where it began.

        Raises:
            InvalidArgument: the run has no name.
            FailedPrecondition: it is another run's, or nobody's.
        """
        if not run_id:
            raise InvalidArgument("run_id", "is empty: send the run's id")
        if self.run_id != run_id:
            holder = f"run {self.run_id}" if self.run_id else "no run"
            raise FailedPrecondition(
                holder,
                f"holds this learner at step {self.applied_step}, so run {run_id} cannot train on it: "
                f"give it to run {run_id} with BindRun, or restore one of that run's checkpoints",
            )

    def check_step(self, run_id: str, step: int) -> None:
        """Make sure that these are the weights of a run after a step; "" and 0 for those of no run.

        Raises:
            FailedPrecondition: they are others.
        """
        if (run_id, step) != (self.run_id, self.applied_step):
            raise FailedPrecondition(
                f"step {step} of run {run_id!r}",
                f"is not what is current: step {self.applied_step} of run {self.run_id!r} is; bring the learner to the one "
                "that is meant, then call again",
            )

    def stored_result(self, step: int, digest: bytes) -> AppliedStep | None:
        """The result of a step that is applied already; None where it is the next to train.

        Raises:
            InvalidArgument: steps count from 1.
            Aborted: the step was applied with another batch.
            FailedPrecondition: steps before it are missing.
        """
        if step == 0:
            raise InvalidArgument("step", "is 0: steps count from 1")
        if step > self.applied_step + 1:
            raise FailedPrecondition(
                f"step {step}",
                f"replay from {self.applied_step + 1}: the last applied step is {self.applied_step}",
            )
        if step == self.applied_step + 1:
            return None
        applied = self.steps[step - 1]
        if applied.digest != digest:
            raise Aborted(
                f"step {step} was applied with batch {applied.digest.hex()}, not {digest.hex()}: "
                "what was trained cannot be replaced; restore a checkpoint from before it"
            )
        return applied

    def with_step(self, digest: bytes, metrics: Mapping[str, float]) -> "Ledger":
        step = AppliedStep(self.applied_step + 1, digest, self.next_version, dict(metrics))
        return replace(self, steps=(*self.steps, step))

    def in_lineage(self, lineage: str) -> "Ledger":
        """These weights under another lineage, from their last step on."""
        if lineage == self.lineage:
            return self
        steps = self.steps
        if steps:
            steps = (*steps[:-1], replace(steps[-1], version=Version(lineage, len(steps))))
        return replace(self, lineage=lineage, steps=steps)

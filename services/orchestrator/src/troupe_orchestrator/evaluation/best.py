"""Which step of a run its validations say is the best."""

from dataclasses import dataclass

from troupe.v1 import evaluation_pb2

from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.evals import EvalState, list_validations


@dataclass(frozen=True, slots=True)
class BestStep:
    """The best validated step."""

    step: int
    success: float


async def best_validation(database: Database, run_id: str) -> BestStep | None:
    """The step with the highest success, the earliest of equals. One of which an item is missing cannot be compared."""
    best: BestStep | None = None
    for record in await list_validations(database, run_id):
        if record.state is not EvalState.SUCCEEDED or record.summary is None:
            continue
        summary = evaluation_pb2.EvalSummary.FromString(record.summary)
        if summary.coverage == 1.0 and (best is None or summary.success > best.success):
            best = BestStep(record.step, summary.success)
    return best

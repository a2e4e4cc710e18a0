"""From finished items to the numbers of a job. Pure.

Success is the mean over problems of the mean over samples; its interval is a bootstrap over problems, never over samples:
samples of one problem are not independent.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from troupe.v1 import evaluation_pb2

from troupe_orchestrator.statistics import estimate
from troupe_orchestrator.store.evals import ItemRecord


def summarise(records: Sequence[ItemRecord], total: int, seconds: float) -> evaluation_pb2.EvalSummary:
    """The summary of a job's items. Items that ended in faults of ours are counted and left out of the means.

    Args:
        total: items that the job has in all.
        seconds: in which they were run.
    """
    items = [(record, evaluation_pb2.EvalItem.FromString(record.payload)) for record in records]
    graded = [(record, item) for record, item in items if not record.faulted]
    whole = _group("", graded)
    families: dict[str, list[tuple[ItemRecord, evaluation_pb2.EvalItem]]] = defaultdict(list)
    for record, item in graded:
        families[record.family].append((record, item))
    return evaluation_pb2.EvalSummary(
        success=whole.success,
        success_low=whole.success_low,
        success_high=whole.success_high,
        valid_scripts=_share([item.valid_script for _, item in graded]),
        parseable=whole.parseable,
        success_parseable=whole.success_parseable,
        generated_tokens=sum(item.generated_tokens for _, item in items),
        seconds=seconds,
        faults=len(items) - len(graded),
        coverage=len(graded) / total,
        groups=[_group(family, families[family]) for family in sorted(families)],
    )


def _group(family: str, items: Sequence[tuple[ItemRecord, evaluation_pb2.EvalItem]]) -> evaluation_pb2.EvalGroup:
    by_problem: dict[str, list[float]] = defaultdict(list)
    for record, item in items:
        by_problem[record.problem_id].append(float(item.success))
    success = estimate(by_problem) if by_problem else None
    parseable = [item.success for record, item in items if record.parseable]
    return evaluation_pb2.EvalGroup(
        family=family,
        problems=len(by_problem),
        success=success.mean if success else 0.0,
        success_low=success.low if success else 0.0,
        success_high=success.high if success else 0.0,
        parseable=_share([record.parseable for record, _ in items]),
        success_parseable=_share(parseable),
        patterns=Counter(item.pattern or "invalid" for _, item in items),
        pattern_successes=Counter(item.pattern for _, item in items if item.success),
    )


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0

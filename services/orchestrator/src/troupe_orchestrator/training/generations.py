"""Generations of ranks that the learners of a run form: each one after the first that was seen is told to the run."""

from troupe.v1 import learner_pb2, training_pb2

from troupe_orchestrator.training.events import EventLog

_REMEDY = "none is needed; where it happens again and again, the learner's log has the end of the rank"


class Generations:
    """What was seen of them. A learner whose process starts again counts from 1, which is no new generation of a gang."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._newest: dict[str, int] = {}

    async def look(self, learner: learner_pb2.LearnerInfo, step: int) -> None:
        """Tell of a generation that is newer than the one at the last look.

        Raises:
            Unavailable: the store does not take it; it is told at the next look.
        """
        before, now = self._newest.get(learner.policy_id, 0), learner.generation
        if 0 < before < now:
            why = f": {learner.detail}" if learner.detail else ""
            message = (
                f"the learner of policy {learner.policy_id} formed generation {now} of its ranks, after {before}{why}"
            )
            condition = training_pb2.Condition(reason="LearnerGeneration", message=message, remedy=_REMEDY)
            await self._events.append(step, condition)
        self._newest[learner.policy_id] = now

"""What tests of faults in a step share: a step of four tasks, replies that fail once, and what a step tells and keeps."""

from collections import Counter
from collections.abc import Awaitable, Callable

from troupe.v1 import common_pb2, policy_pb2, training_pb2
from troupe_contracts.errors import FailedPrecondition, ServiceError, Unavailable
from troupe_orchestrator.store.trees import read_trees
from troupe_orchestrator.tree import ConversationPayload, NodeKind, Tree

from orchestrated.models import RIGHT, WRONG, question_of, right_unless_guessed
from orchestrated.world import Backends, World, math_task

TASKS = [math_task(f"task-{number}") for number in range(4)]
ONE_STEP: dict[str, object] = {"steps": 1, "stages": [{"train": "both", "steps": 1}]}


class Once:
    """A reply that fails the first time that a question with the word is asked about, and is right unless guessed after."""

    def __init__(self, word: str, failure: ServiceError | Callable[[], Awaitable[object]]) -> None:
        self._word = word
        self._failure = failure
        self.failed = 0

    async def __call__(self, request: policy_pb2.GenerateRequest) -> str:
        if not self.failed and self._word in question_of(request):
            self.failed += 1
            if isinstance(self._failure, ServiceError):
                raise self._failure
            await self._failure()
        return right_unless_guessed(request)


class LostTogether:
    """A reply under which engine and learner are lost together, once, where the learner has nothing but its start."""

    def __init__(self, stand_ins: Backends, when: Callable[[policy_pb2.GenerateRequest], bool]) -> None:
        self._engine, self._learner = stand_ins.policy.weights, stand_ins.learner
        self._when = when
        self.lost = False
        stand_ins.on_call = self._give_only_what_it_has
        stand_ins.policy.reply = self

    async def __call__(self, request: policy_pb2.GenerateRequest) -> str:
        if not self.lost and self._when(request):
            self.lost = True
            self._learner.lose()
            self._engine.version = common_pb2.PolicyVersion(lineage="start", number=0)
            raise Unavailable("restarting")
        return right_unless_guessed(request)

    def check(self, events: list[training_pb2.RunEvent]) -> None:
        """It happened, was told once, and the engine has what the learner has since."""
        assert self.lost
        (told,) = (event.condition for event in events if event.condition.reason == "WeightsGone")
        assert "has other weights" in told.message
        assert self._engine.version == self._learner.version

    def _give_only_what_it_has(self, moment: str) -> None:
        begun = self._engine.begun
        if moment == "before CommitUpdate" and begun and begun.version != self._learner.version:
            raise FailedPrecondition("version", "is not current")


def rollout(tasks: int) -> dict[str, object]:
    return {"tasks_per_step": tasks, "designs": 2, "executions": 1, "max_attempts": 2}


def faults(events: list[training_pb2.RunEvent]) -> list[training_pb2.Condition]:
    return [event.condition for event in events if event.condition.reason == "InfrastructureFault"]


def metrics(events: list[training_pb2.RunEvent], step: int = 1) -> dict[str, float]:
    return next(dict(e.step_committed.metrics) for e in events if e.HasField("step_committed") and e.step == step)


def trees(world: World, step: int = 1) -> list[Tree]:
    (file,) = (world.folder / "data" / "runs" / "run" / "steps" / f"{step:06d}").glob("trees*.parquet")
    return read_trees(file)


def check_only_what_was_said(world: World, tasks: int, step: int = 1) -> None:
    """Every tree is whole, and every turn in it was given by the stand-in as it gives them without faults."""
    found = trees(world, step)
    assert len(found) == tasks
    for tree in found:
        counts = Counter(node.kind for node in tree.nodes)
        assert (counts[NodeKind.DESIGN], counts[NodeKind.EXECUTION]) == (2, 2)
        for execution in tree.of_kind(NodeKind.EXECUTION):
            (conversation,) = tree.children(execution.id, NodeKind.CONVERSATION)
            assert isinstance(conversation.payload, ConversationPayload)
            assert conversation.payload.messages[-1].content in (RIGHT, WRONG)
            assert conversation.payload.stop_reasons == ("end_of_turn",)

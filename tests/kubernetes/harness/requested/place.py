"""One orchestrator's part of a cluster: its store, its controller, and calls to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

from standin_api.objects import EVAL_JOBS, TRAINING_RUNS, custom_resource
from standin_api.server import StandInApi
from troupe.v1 import training_pb2
from troupe_kubernetes import mirror
from troupe_kubernetes.api import Api
from troupe_orchestrator.custom_resources import controller, status_writer
from troupe_orchestrator.custom_resources.controller import Controller
from troupe_orchestrator.custom_resources.eval_jobs import JobsBehindObjects
from troupe_orchestrator.custom_resources.steering import ObjectsSteer
from troupe_orchestrator.custom_resources.training_runs import RunsBehindObjects
from troupe_orchestrator.evaluation.job_records import JobRecords
from troupe_orchestrator.evaluation.service import EvaluationServicer
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.object_requests import list_requests
from troupe_orchestrator.store.steps import StepRecord, StepState, advance_step, begin_step
from troupe_orchestrator.training.run_records import RunRecords
from troupe_orchestrator.training.service import TrainingServicer

from requested.standins import StandInJobs, StandInRuns

CONFIG: dict[str, Any] = {"dataset": {"train": "/none"}, "steps": 4, "stages": [{"train": "executor", "steps": 2}]}
PROBLEMS = '{"id": "a", "question": "1 + 1?", "answer": "2"}\n{"id": "b", "question": "2 + 2?", "answer": "4"}\n'
_SHORT = {
    controller: {"_RETRY_SECONDS": 0.1, "_ACT_SECONDS": 0.02},
    status_writer: {
        "WRITE_SECONDS": 0.03,
        "_CHANGED_SECONDS": 0.02,
        "_FIRST_REST_SECONDS": 0.02,
        "_LONGEST_REST_SECONDS": 0.1,
    },
    mirror: {"_FIRST_PAUSE_SECONDS": 0.02, "_LONGEST_PAUSE_SECONDS": 0.05, "_SHORT_WATCH_SECONDS": 0.02},
}


@contextlib.contextmanager
def in_a_hurry() -> Any:
    """Waits are short."""
    before = {module: {name: getattr(module, name) for name in names} for module, names in _SHORT.items()}
    for module, names in _SHORT.items():
        for name, value in names.items():
            setattr(module, name, value)
    try:
        yield
    finally:
        for module, names in before.items():
            for name, value in names.items():
                setattr(module, name, value)


class Place:
    """Where objects are looked at."""

    def __init__(self, standin: StandInApi, api: Api, database: Database) -> None:
        self.standin = standin
        self.database = database
        self.runs = StandInRuns(database)
        self.jobs = StandInJobs(database)
        # Called without gRPC, and so without its context.
        self.training: Any = TrainingServicer(
            cast(Any, self.runs), RunRecords(database), database, ObjectsSteer(database)
        )
        self.evaluation: Any = EvaluationServicer(
            cast(Any, self.jobs), JobRecords(database, Path("/none")), database, ObjectsSteer(database)
        )
        self.controller: Controller | None = None
        self._api = api

    async def start(self) -> None:
        """The orchestrator starts, or starts again."""
        self.controller = Controller(self._api, self.database)
        self.runs.changed = self.jobs.changed = self.controller.changed
        await self.controller.start(
            (RunsBehindObjects(self.runs, self.database), JobsBehindObjects(self.jobs, self.database))
        )

    async def stop(self) -> None:
        """It is gone, in the middle of whatever it does."""
        if self.controller is not None:
            ended, self.controller = self.controller, None
            self.runs.changed = self.jobs.changed = lambda uid: None
            await ended.close()

    def object(self, name: str, collection: str = TRAINING_RUNS) -> dict[str, Any]:
        with self.standin.changed:
            return self.standin.objects[collection][name]

    def uid(self, name: str, collection: str = TRAINING_RUNS) -> str:
        return str(self.object(name, collection)["metadata"]["uid"])

    def apply(self, name: str, desired: str = "Running", **spec: object) -> str:
        """`kubectl apply` of a TrainingRun; its uid."""
        found = self.standin.put(
            TRAINING_RUNS, custom_resource(name, desired, **{"config": CONFIG, "queue": True, **spec})
        )
        return str(found["metadata"]["uid"])

    def evaluate(self, name: str, desired: str = "Running", **spec: object) -> str:
        """`kubectl apply` of an EvalJob; its uid."""
        given = {"dataset": {"inline": PROBLEMS}, "samples": 2, "mode": "System", **spec}
        return str(self.standin.put(EVAL_JOBS, custom_resource(name, desired, **given))["metadata"]["uid"])

    def desire(self, name: str, desired: str, collection: str = TRAINING_RUNS) -> None:
        """`kubectl patch`."""
        found = self.object(name, collection)
        self.standin.put(collection, {**found, "spec": {**found["spec"], "desiredState": desired}})

    def status(self, name: str, collection: str = TRAINING_RUNS) -> dict[str, Any]:
        found: dict[str, Any] = self.object(name, collection).get("status", {})
        return found

    def condition(self, name: str, kind: str, collection: str = TRAINING_RUNS) -> dict[str, Any]:
        listed = self.status(name, collection).get("conditions", ())
        return next((each for each in listed if each["type"] == kind), {})

    async def until_phase(self, name: str, phase: str, collection: str = TRAINING_RUNS) -> dict[str, Any]:
        """The status, once the object is in this phase and all of its spec is carried out."""

        def there() -> bool:
            generation = self.object(name, collection)["metadata"]["generation"]
            status = self.status(name, collection)
            return status.get("phase") == phase and status.get("observedGeneration") == generation

        await until(there, lambda: str(self.object(name, collection)))
        return self.status(name, collection)

    async def until_idle(self) -> None:
        """Nothing is left to be done."""
        await until(lambda: self.controller is not None and self.controller.idle)

    async def commit(self, uid: str, step: int) -> None:
        """A step of a run is committed."""
        means = {"reward_executor": 0.25, "reward_designer": 1.0}
        record = StepRecord(uid, step, StepState.ROLLING, (), {}, {"p": f"start:{step}"}, (), means)
        await begin_step(self.database, record)
        for state in (StepState.SEALED, StepState.TRAINED, StepState.SYNCED, StepState.COMMITTED):
            await advance_step(self.database, record, state)
        self.runs.changed(uid)

    async def has_forgotten(self, uid: str) -> bool:
        """Nothing is on record of an object any more."""
        return uid not in {request.uid for request in await list_requests(self.database)}

    async def state(self, name: str) -> str:
        """As a call says it."""
        run = await self.training.GetRun(training_pb2.GetRunRequest(run_id=self.uid(name)), None)
        return training_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_").capitalize()


async def until(
    holds: Callable[[], bool] | Callable[[], Awaitable[bool]], shown: Callable[[], str] = lambda: ""
) -> None:
    """Returns once something is the case."""
    give_up = asyncio.get_running_loop().time() + 20
    while True:
        found = holds()
        if await found if isinstance(found, Awaitable) else found:
            return
        assert asyncio.get_running_loop().time() < give_up, shown()
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def place(standin: StandInApi, folder: Path) -> AsyncIterator[Place]:
    """A place with an empty store; nothing looks at the objects yet."""
    api = Api.from_kubeconfig(file=str(standin.kubeconfig(folder)))
    database = await Database.open(f"sqlite:///{folder}/troupe.db", 30.0)
    made = Place(standin, api, database)
    with in_a_hurry():
        try:
            yield made
        finally:
            await made.stop()
            await database.close()


__all__ = ["CONFIG", "EVAL_JOBS", "PROBLEMS", "TRAINING_RUNS", "Place", "in_a_hurry", "place", "until"]

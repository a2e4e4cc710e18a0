"""What an orchestrator acts on, what its actions do there, and what is lost when a part dies."""

import hashlib
import itertools
from dataclasses import dataclass, field
from enum import Enum

from troupe_learner.ledger import Version
from troupe_orchestrator.store.steps import StepState
from troupe_orchestrator.training.protocol import Action, Apply, Bind, Restore, Saved, Sync, Work
from troupe_orchestrator.training.queue import TaskQueue, draw, postpone

from modelled.services import Engine, Learner
from modelled.store import KEEP, TASKS, TASKS_PER_STEP, RefusedError, Step, Store


class Crash(Enum):
    """Which part loses what it had in memory."""

    LEARNER = "front and ranks"
    RANK = "the gang is formed again, the front lives"
    ENGINE = "the replica is back at its initial weights"


@dataclass
class Driver:
    """An orchestrator: what it decided on, and what it saw then."""

    token: int
    action: Action | None = None
    steps: int = 0
    version: Version | None = None
    engine_version: Version | None = None


@dataclass
class Parts:
    """One store, one learner, one engine."""

    store: Store = field(default_factory=Store)
    learner: Learner = field(default_factory=Learner)
    engine: Engine = field(default_factory=Engine)
    rollouts: "itertools.count[int]" = field(default_factory=itertools.count)
    """No two rollouts are the same."""

    def lose(self, crash: Crash) -> None:
        """What a part had in memory is gone."""
        match crash:
            case Crash.LEARNER:
                self.learner.restart()
            case Crash.RANK:
                self.learner.lose_rank()
            case Crash.ENGINE:
                self.engine = Engine()

    def carry_out(self, driver: Driver, action: Action, dropped: set[int]) -> None:
        """The effect of an action, if nothing that it depends on refuses it."""
        token = driver.token
        match action:
            case Bind(uri):
                self.learner.bind(token, uri)
            case Restore(saved):
                self.learner.restore(token, saved.uri)
            case Apply(update):
                self.learner.train(token, update, self.store.sealed[update - 1])
            case Sync():
                # Names the version that was seen, so that weights of a learner that died since are never loaded.
                if self.learner.ledger.version != driver.version:
                    raise RefusedError("that version is not current")
                self.engine.load(token, self.learner.ledger.version, self.learner.weights)
            case Work.BEGIN:
                self._save(driver)
                self._begin(driver)
            case Work.ROLL:
                self._roll(driver, dropped)
            case Work.RECORD_TRAINED:
                self.store.advance(token, driver.steps, StepState.TRAINED)
            case Work.RECORD_SYNCED:
                self.store.advance(token, driver.steps, StepState.SYNCED)
            case Work.COMMIT:
                self.store.advance(token, driver.steps, StepState.COMMITTED)

    def _save(self, driver: Driver) -> None:
        """A checkpoint every second step; on record only if it holds what it should."""
        update = driver.steps
        if update == 0 or update % 2 or any(saved.update == update for saved in self.store.saved):
            return
        uri = f"step-{update}"
        self.learner.save(driver.token, uri)
        self.learner.finish()
        if len(self.learner.disk[uri][0].steps) != update:
            # Somebody rolled the learner back meanwhile.
            del self.learner.disk[uri]
            raise RefusedError("the checkpoint is of another update")
        self.store.write(driver.token)
        newest = [Saved(update, uri), *self.store.saved]
        self.store.saved = newest[:KEEP] + [saved for saved in newest[KEEP:] if saved.update == 0]
        kept = {saved.uri for saved in self.store.saved}
        for old in self.learner.disk.keys() - kept:
            del self.learner.disk[old]

    def _begin(self, driver: Driver) -> None:
        store = self.store
        store.write(driver.token)
        if store.state is not StepState.COMMITTED or len(store.steps) != driver.steps:
            raise RefusedError("another step has begun")
        queue = store.steps[-1].queue if store.steps else TaskQueue(0)
        if store.quarantined == set(TASKS):
            raise RefusedError("no tasks")
        drawn, queue = draw(queue, TASKS_PER_STEP, TASKS, store.quarantined)
        store.steps.append(Step(StepState.ROLLING, tuple(drawn), queue))

    def _roll(self, driver: Driver, dropped: set[int]) -> None:
        """Every generation names the version that the driver saw; another engine refuses."""
        if self.engine.version != driver.engine_version:
            raise RefusedError("another version is loaded")
        behaviour = self.engine.weights
        rolling = self.store.steps[-1]
        gone = tuple(rolling.task_ids[index] for index in dropped if index < len(rolling.task_ids) - 1)
        digest = hashlib.sha256(f"{rolling.task_ids}{next(self.rollouts)}".encode()).hexdigest()
        step = self.store.advance(driver.token, driver.steps, StepState.SEALED)
        step.digest, step.behaviour, step.dropped = digest, behaviour, gone
        step.queue = postpone(step.queue, gone)
        self.store.drops.update(gone)

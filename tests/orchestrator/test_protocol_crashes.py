"""The protocol under crashes at every point: a model of store, learner and engine, driven by the real decisions.

Real here: `next_action`, the task queue, the table of transitions and the learner's ledger. Modelled: that a store write is
one fenced transaction, that a learner and an engine remember the highest fence only while they live, that an operation of
the learner may finish after whoever started it is gone, and that weights are the list of batches that made them. Drivers
(orchestrators) look and act in separate moments, so each may act on what is no longer so; one that lost its lease stays
around and wakes up whenever it likes.
"""

import contextlib
import copy
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from troupe_contracts.errors import ServiceError
from troupe_learner.ledger import Ledger, Version
from troupe_orchestrator.store.steps import TRANSITIONS, StepState
from troupe_orchestrator.training.protocol import (
    Action,
    Apply,
    Bind,
    LearnerView,
    PolicyView,
    Refuse,
    Restore,
    Saved,
    Sync,
    Work,
    next_action,
)
from troupe_orchestrator.training.queue import TaskQueue, draw, epoch_order, postpone

RUN, POLICY = "run", "policy"
TASKS = tuple(f"task-{number}" for number in range(7))
TASKS_PER_STEP, QUARANTINE_AFTER, KEEP = 2, 2, 2
DROPPED = st.sets(st.integers(0, 1), max_size=1)
"""Which of a step's tasks are lost to faults: not the last, so that a step has something to train on."""
Weights = tuple[str, ...]
"""The digests of the batches that made them, in order."""


class Fate(Enum):
    """What becomes of an effect and of who asked for it."""

    DONE = "it happens and is answered"
    LOST_REPLY = "it happens, the answer is lost"
    NEVER_SENT = "the driver dies before"
    DIES_AFTER = "the driver dies after"


class Crash(Enum):
    """Which part loses what it had in memory."""

    LEARNER = "front and ranks"
    RANK = "the gang is formed again, the front lives"
    ENGINE = "the replica is back at its initial weights"


class RefusedError(Exception):
    """A part of the model refuses an effect; nothing changed."""


@dataclass
class Step:
    """A row of the store."""

    state: StepState
    task_ids: tuple[str, ...]
    queue: TaskQueue
    digest: str = ""
    dropped: tuple[str, ...] = ()
    behaviour: Weights = ()
    """What rolled it out."""


@dataclass
class Store:
    """Fenced transactions."""

    token: int = 1
    steps: list[Step] = field(default_factory=list)
    saved: list[Saved] = field(default_factory=list)
    drops: Counter[str] = field(default_factory=Counter)

    @property
    def state(self) -> StepState:
        return self.steps[-1].state if self.steps else StepState.COMMITTED

    @property
    def sealed(self) -> tuple[str, ...]:
        return tuple(step.digest for step in self.steps if step.digest)

    @property
    def quarantined(self) -> frozenset[str]:
        return frozenset(task for task, count in self.drops.items() if count >= QUARANTINE_AFTER)

    def write(self, token: int) -> None:
        if token != self.token:
            raise RefusedError("the lease is another's")

    def advance(self, token: int, number: int, state: StepState) -> Step:
        self.write(token)
        if number != len(self.steps) or TRANSITIONS[self.steps[-1].state] is not state:
            raise RefusedError("no such transition")
        self.steps[-1].state = state
        return self.steps[-1]


@dataclass
class Learner:
    """The contract of a learner, with its real ledger; what is under way ends when the model says so."""

    ledger: Ledger = field(default_factory=lambda: Ledger("", "initial"))
    weights: Weights = ()
    base: tuple[Ledger, Weights] = (Ledger("", "initial"), ())
    """What a gang that is formed again starts from."""
    fence: int = 0
    produced: dict[str, int] = field(default_factory=lambda: {"initial": 0})
    """Highest number of each lineage; on disk."""
    lineages: "itertools.count[int]" = field(default_factory=itertools.count)
    disk: dict[str, tuple[Ledger, Weights]] = field(default_factory=dict)
    """Checkpoints by URI."""
    trained: dict[int, set[str]] = field(default_factory=dict)
    """Every digest that was ever trained as a step of the run."""
    under_way: Callable[[], None] | None = None

    @property
    def view(self) -> LearnerView:
        return LearnerView(self.ledger.run_id, tuple(step.digest.decode() for step in self.ledger.steps))

    def check(self, token: int) -> None:
        if token < self.fence:
            raise RefusedError("stale fence")
        self.fence = token

    def begin(self, work: Callable[[], None]) -> None:
        if self.under_way is not None:
            raise RefusedError("another change is under way")
        self.under_way = work

    def finish(self) -> None:
        assert self.under_way is not None
        work, self.under_way = self.under_way, None
        work()

    def train(self, token: int, update: int, digest: str) -> None:
        self.check(token)
        try:
            ledger = self.ledger.bound_to(RUN)
            known = ledger.stored_result(update, digest.encode())
        except ServiceError as error:
            raise RefusedError(str(error)) from error
        if known is not None:
            return

        def work() -> None:
            if self.ledger.applied_step + 1 != update:
                return
            self.ledger = self.ledger.bound_to(RUN).with_step(digest.encode(), {})
            self.weights = (*self.weights, digest)
            self.trained.setdefault(update, set()).add(digest)
            self.produced[self.ledger.lineage] = self.ledger.applied_step

        self.begin(work)

    def bind(self, token: int) -> None:
        self.check(token)
        if self.ledger.run_id == RUN and self.ledger.steps:
            raise RefusedError("the run has applied steps here")

        def work() -> None:
            self._at(Ledger(RUN, "initial"), ())
            self.base = (self.ledger, self.weights)

        self.begin(work)

    def save(self, token: int, uri: str) -> None:
        self.check(token)

        def work() -> None:
            self.disk.setdefault(uri, (self.ledger, self.weights))
            self.base = self.disk[uri]

        self.begin(work)

    def restore(self, token: int, uri: str) -> None:
        self.check(token)
        if uri not in self.disk:
            raise RefusedError("no such checkpoint")
        found = self.disk[uri]

        def work() -> None:
            self._at(*found)
            self.base = (self.ledger, self.weights)

        self.begin(work)

    def lose_rank(self) -> None:
        run_id = self.ledger.run_id
        self.under_way = None
        self._at(*self.base)
        self.ledger = replace(self.ledger, run_id=run_id)

    def restart(self) -> None:
        self.under_way = None
        self.fence = 0
        self._at(Ledger("", "initial"), ())
        self.base = (self.ledger, self.weights)

    def _at(self, ledger: Ledger, weights: Weights) -> None:
        """These weights, in a lineage in which they are the newest."""
        lineage = ledger.lineage
        if self.produced.get(lineage) != ledger.applied_step:
            lineage = f"{lineage}~{next(self.lineages)}"
            self.produced[lineage] = ledger.applied_step
        self.ledger, self.weights = ledger.in_lineage(lineage), weights


INITIAL = Version("engine", 0)


@dataclass
class Engine:
    """One replica."""

    version: Version = INITIAL
    weights: Weights = ()
    fence: int = 0

    def load(self, token: int, version: Version, weights: Weights) -> None:
        if token < self.fence:
            raise RefusedError("stale fence")
        self.fence = token
        self.version, self.weights = version, weights


@dataclass
class Driver:
    """An orchestrator: what it decided on, and what it saw then."""

    token: int
    action: Action | None = None
    steps: int = 0
    version: Version | None = None
    engine_version: Version | None = None


class Crashes(RuleBasedStateMachine):
    """Drivers, crashes and lost replies in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.store, self.learner, self.engine = Store(), Learner(), Engine()
        self.drivers = [Driver(1)]
        self.rollouts = itertools.count()
        self.names: dict[Version, Weights] = {}

    @initialize(other_run=st.booleans())
    def the_learner_may_have_been_another_runs(self, other_run: bool) -> None:
        if other_run:
            self.learner.ledger = Ledger("other", "initial").with_step(b"theirs", {})
            self.learner.weights = ("theirs",)
            self.learner.produced["initial"] = 1

    # --- drivers ----------------------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 2))
    def look(self, which: int) -> None:
        """A driver decides; what it saw may be old when it acts."""
        driver = self.drivers[which % len(self.drivers)]
        version = self.learner.ledger.version
        policy = PolicyView(
            self.learner.view, self.store.sealed, tuple(self.store.saved), self.engine.version == version
        )
        driver.action, policy_id = next_action(RUN, self.store.state, {POLICY: policy})
        assert policy_id == ("" if isinstance(driver.action, Work) else POLICY)
        assert not isinstance(driver.action, Refuse), driver.action.reason
        driver.steps, driver.version, driver.engine_version = len(self.store.steps), version, self.engine.version

    @rule(which=st.integers(0, 2), fate=st.sampled_from(Fate), dropped=DROPPED)
    def act(self, which: int, fate: Fate, dropped: set[int]) -> None:
        driver = self.drivers[which % len(self.drivers)]
        if driver.action is None or fate is Fate.NEVER_SENT:
            driver.action = None
            return
        stale = driver.token < self.store.token
        before = copy.deepcopy((self.store, self.learner.ledger, self.engine))
        with contextlib.suppress(RefusedError):
            self._effect(driver, driver.action, dropped)
        if stale:
            store, ledger, engine = before
            assert self.store == store
            assert self.engine == engine or engine.fence <= driver.token
            assert self.learner.ledger == ledger or self.learner.fence <= driver.token
        if fate is not Fate.DONE:
            driver.action = None

    @rule(times=st.integers(1, 12))
    def look_and_act_in_peace(self, times: int) -> None:
        """The usual case: the driver with the lease decides, acts and is answered."""
        for _ in range(times):
            self._in_peace()

    @rule(crash=st.sampled_from(Crash), fate=st.sampled_from(Fate), dropped=DROPPED)
    def something_dies_between_look_and_act(self, crash: Crash, fate: Fate, dropped: set[int]) -> None:
        self.look(-1)
        self._crash(crash)
        self.act(-1, fate, dropped)

    @precondition(lambda self: len(self.drivers) < 3)
    @rule(crash=st.sampled_from(Crash), times=st.integers(0, 12))
    def a_driver_sleeps_through_its_lease_and_acts(self, crash: Crash, times: int) -> None:
        self._crash(crash)
        self.look(-1)
        asleep = len(self.drivers) - 1
        self.another_driver_takes_the_lease()
        for _ in range(times):
            self._in_peace()
        self.act(asleep, Fate.DONE, set())

    @precondition(lambda self: len(self.drivers) < 3)
    @rule()
    def another_driver_takes_the_lease(self) -> None:
        """The one before may be dead, or only asleep."""
        self.store.token += 1
        self.drivers.append(Driver(self.store.token))

    @rule()
    def the_first_driver_is_gone(self) -> None:
        if len(self.drivers) > 1:
            self.drivers.pop(0)

    # --- crashes ----------------------------------------------------------------------------------------------------

    @rule()
    def the_learner_works(self) -> None:
        if self.learner.under_way is not None:
            self.learner.finish()

    @rule(crash=st.sampled_from(Crash))
    def something_dies(self, crash: Crash) -> None:
        self._crash(crash)

    # --- what holds -------------------------------------------------------------------------------------------------

    @invariant()
    def the_learner_has_applied_the_sealed_batches_from_the_first_on_each_once(self) -> None:
        view = self.learner.view
        if view.run_id == RUN:
            assert view.digests == self.store.sealed[: len(view.digests)]
            assert self.learner.weights == view.digests

    @invariant()
    def no_step_was_ever_trained_with_two_batches(self) -> None:
        for update, digests in self.learner.trained.items():
            assert digests == {self.store.sealed[update - 1]}

    @invariant()
    def no_two_sets_of_weights_share_a_name(self) -> None:
        if self.learner.ledger.run_id == RUN:
            held = self.names.setdefault(self.learner.ledger.version, self.learner.weights)
            assert held == self.learner.weights
        if self.engine.version.lineage != "engine":
            assert self.names.get(self.engine.version, self.engine.weights) == self.engine.weights

    @invariant()
    def every_step_was_rolled_out_by_what_the_steps_before_it_made(self) -> None:
        for number, step in enumerate(self.store.steps):
            if step.digest:
                assert step.behaviour == self.store.sealed[:number]

    @invariant()
    def a_step_beyond_sealed_is_followed_by_none_before_it_is_committed(self) -> None:
        assert all(step.state is StepState.COMMITTED for step in self.store.steps[:-1])

    @invariant()
    def the_tasks_trained_are_the_epochs_in_order_but_for_those_put_off_and_the_quarantined(self) -> None:
        steps = [step for step in self.store.steps if step.digest]
        queue = steps[-1].queue if steps else TaskQueue(0)
        trained = Counter(task for step in steps for task in step.task_ids if task not in step.dropped)
        seen = set(epoch_order(queue.seed, queue.epoch, TASKS)[: queue.position])
        put_off = Counter(queue.postponed)
        for task in set(TASKS) - self.store.quarantined:
            assert trained[task] + put_off[task] == queue.epoch + (task in seen), task

    def teardown(self) -> None:
        """Without further crashes two more steps are committed, each with the engine at the learner's version."""
        self.store.token += 1
        self.drivers = [Driver(self.store.token)]
        before = len(self.store.steps)
        for _ in range(40 + before):
            if self.store.quarantined == set(TASKS):
                return
            committing = self.store.state is StepState.SYNCED
            self._in_peace()
            if committing and len(self.store.steps) > before:
                assert self.engine.version == self.learner.ledger.version
                assert self.engine.weights == self.learner.weights == self.store.sealed
            if len(self.store.steps) == before + 2 and self.store.state is StepState.COMMITTED:
                return
        raise AssertionError("no progress")

    def _crash(self, crash: Crash) -> None:
        match crash:
            case Crash.LEARNER:
                self.learner.restart()
            case Crash.RANK:
                self.learner.lose_rank()
            case Crash.ENGINE:
                self.engine = Engine()

    # --- effects ----------------------------------------------------------------------------------------------------

    def _in_peace(self) -> None:
        driver = self.drivers[-1]
        if self.learner.under_way is not None:
            self.learner.finish()
        self.look(len(self.drivers) - 1)
        assert driver.action is not None
        self._effect(driver, driver.action, set())
        if self.learner.under_way is not None:
            self.learner.finish()
        driver.action = None

    def _effect(self, driver: Driver, action: Action, dropped: set[int]) -> None:
        token = driver.token
        match action:
            case Bind():
                self.learner.bind(token)
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
        self.store.saved = [Saved(update, uri), *self.store.saved][:KEEP]
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


TestCrashes = Crashes.TestCase
TestCrashes.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
